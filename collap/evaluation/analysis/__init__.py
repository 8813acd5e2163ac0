"""Analyses of `collap evaluate --suite analysis`: one class for each, and this list of them."""

from .lengths import CaptionLength

ANALYSES = {one.name: one for one in (CaptionLength,)}
