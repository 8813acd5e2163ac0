"""Tiny CLAP and PE-A models with random weights, saved as the released ones are, and read by the real processors."""

from pathlib import Path

import torch
from tiny import VOCABULARY, tiny_tokenizer
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PeAudioConfig,
    PeAudioFeatureExtractor,
    PeAudioModel,
    PeAudioProcessor,
)


def tiny_clap_folder(folder: Path, fused: bool, seed: int = 0, collapsed: bool = False) -> Path:
    """Write a HTSAT CLAP; a fused one reads four spectrograms. `collapsed`: its text projection is a constant."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 66,
    }
    audio = {
        "hidden_size": 32,
        "patch_embeds_hidden_size": 4,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 1, 1],
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
        "aff_block_r": 2,
        "num_classes": 4,
    }
    torch.manual_seed(seed)
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16)).eval()
    for name, weight in model.named_parameters():  # as drawn, they are so small that all clips are alike
        if weight.ndim > 1 and ("projection" in name or name.startswith("text_model")):
            torch.nn.init.normal_(weight, std=0.5)
    if collapsed:
        torch.nn.init.zeros_(model.text_projection.linear2.weight)
        torch.nn.init.ones_(model.text_projection.linear2.bias)
    model.save_pretrained(folder)
    extractor = ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc")
    ClapProcessor(extractor, tiny_tokenizer("roberta")).save_pretrained(folder)
    return folder


def tiny_pe_audio_folder(folder: Path, seed: int = 0) -> Path:
    """Write a PE-A model with a ModernBERT text tower and a DAC encoder."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
    }
    dac = {"encoder_hidden_size": 2, "hidden_size": 8, "codebook_dim": 8, "downsampling_ratios": [8, 8, 30]}
    audio = {
        "dac_config": {"model_type": "dac", **dac},
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    torch.manual_seed(seed)
    config = PeAudioConfig(text_config={"model_type": "modernbert", **text}, audio_config=audio)
    PeAudioModel(config).eval().save_pretrained(folder)
    PeAudioProcessor(PeAudioFeatureExtractor(), tiny_tokenizer("roberta")).save_pretrained(folder)
    return folder
