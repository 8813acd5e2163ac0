"""The CoLLAP model: importing this package registers it with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel

from .configuration_beats import BeatsConfig
from .configuration_collap import CoLLAPConfig
from .loss_collap import contrastive_loss
from .modeling_beats import BeatsModel
from .modeling_collap import CoLLAPLocalization, CoLLAPModel, CoLLAPOutput
from .scoring_collap import attention_pooled_scores, mean_pooled_scores

AutoConfig.register("beats", BeatsConfig)
AutoModel.register(BeatsConfig, BeatsModel)
AutoConfig.register("collap", CoLLAPConfig)
AutoModel.register(CoLLAPConfig, CoLLAPModel)
CoLLAPConfig.register_for_auto_class()
CoLLAPModel.register_for_auto_class()

__all__ = [
    "BeatsConfig",
    "BeatsModel",
    "CoLLAPConfig",
    "CoLLAPLocalization",
    "CoLLAPModel",
    "CoLLAPOutput",
    "attention_pooled_scores",
    "contrastive_loss",
    "mean_pooled_scores",
]
