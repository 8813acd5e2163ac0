"""Analyses of `collap evaluate --suite analysis`: one class for each, and this list of them."""

from .audio_retrieval import AudioRetrieval
from .hubness import Hubness
from .length_bias import LengthBias
from .lengths import AudioLength, CaptionLength, Encoders
from .probe import LinearProbe
from .stability import Stability
from .tagging import Tagging

OF_CAPTIONS = (CaptionLength, AudioLength, Encoders, Stability, LengthBias, Hubness)
OF_LABELS = (Tagging, LinearProbe, AudioRetrieval)
ANALYSES = {one.name: one for one in (*OF_CAPTIONS, *OF_LABELS)}
