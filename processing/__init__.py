"""Audio and text to the inputs of CoLLAP: importing this package registers its classes with transformers."""

from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from modeling_collap import CoLLAPConfig

from .decode_audio import AudioFileError, load_audio, stream_audio
from .feature_extraction_collap import CoLLAPFeatureExtractor
from .pipeline_collap import TASK, MusicTextRetrievalPipeline
from .processing_collap import CoLLAPProcessor

AutoFeatureExtractor.register(CoLLAPConfig, CoLLAPFeatureExtractor)
AutoProcessor.register(CoLLAPConfig, CoLLAPProcessor)
CoLLAPFeatureExtractor.register_for_auto_class()
CoLLAPProcessor.register_for_auto_class()
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=MusicTextRetrievalPipeline, pt_model=AutoModel)

__all__ = [
    "AudioFileError",
    "CoLLAPFeatureExtractor",
    "CoLLAPProcessor",
    "MusicTextRetrievalPipeline",
    "load_audio",
    "stream_audio",
]
