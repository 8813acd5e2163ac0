"""Analyses of `collap evaluate --suite analysis`: one class for each, and this list of them."""

from .hubness import Hubness
from .length_bias import LengthBias
from .lengths import AudioLength, CaptionLength, Encoders
from .stability import Stability

ANALYSES = {one.name: one for one in (CaptionLength, AudioLength, Encoders, Stability, LengthBias, Hubness)}
