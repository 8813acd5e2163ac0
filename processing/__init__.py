"""Audio and text to the inputs of CoLLAP: importing this package registers its classes with transformers."""

from transformers import AutoFeatureExtractor, AutoProcessor

from modeling_collap import CoLLAPConfig

from .audio_files import AudioFileError, load_audio, stream_audio
from .feature_extraction_collap import CoLLAPFeatureExtractor
from .processing_collap import CoLLAPProcessor

AutoFeatureExtractor.register(CoLLAPConfig, CoLLAPFeatureExtractor)
AutoProcessor.register(CoLLAPConfig, CoLLAPProcessor)
CoLLAPFeatureExtractor.register_for_auto_class()
CoLLAPProcessor.register_for_auto_class()

__all__ = ["AudioFileError", "CoLLAPFeatureExtractor", "CoLLAPProcessor", "load_audio", "stream_audio"]
