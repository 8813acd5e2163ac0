"""Analyses of `collap evaluate --suite analysis`: one class for each, and this list of them."""

from .audio_retrieval import AudioRetrieval
from .lengths import CaptionLength
from .probe import LinearProbe
from .tagging import Tagging

ANALYSES = {one.name: one for one in (CaptionLength, Tagging, LinearProbe, AudioRetrieval)}
