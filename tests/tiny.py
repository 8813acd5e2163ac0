"""Tiny models, tokenizers and processors for the tests: seeded, built in memory, milliseconds to run."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    GPT2Config,
    GPT2Tokenizer,
    RobertaConfig,
    RobertaTokenizer,
    WhisperConfig,
    WhisperModel,
)

from modeling_collap import BeatsConfig, BeatsModel, CoLLAPConfig, CoLLAPModel
from processing import CoLLAPProcessor

REFERENCE = Path(__file__).parent / "reference"
VOCABULARY = 300
TEXTS = ["a slow song with piano and drums", "a choir sings over strings, then a loud guitar"]


class Decoder:
    """A stand-in for torchcodec's AudioDecoder, to which `datasets` decodes a column of audio."""

    def __init__(self, samples: torch.Tensor, rate: int):
        self.samples = SimpleNamespace(data=samples, sample_rate=rate)

    def get_all_samples(self) -> SimpleNamespace:
        return self.samples


def tiny_text_config(text: str = "gpt2") -> GPT2Config | RobertaConfig:
    """Two layers of width 32 that read 128 tokens."""
    if text == "gpt2":
        return GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=0, eos_token_id=0
        )
    return RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=130,
    )


def tiny_beats_config(**overrides) -> BeatsConfig:
    """Two layers of width 32 on 128 mel bins."""
    settings = {
        "embed_dim": 24,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "conv_pos_kernel": 16,
        "conv_pos_groups": 4,
        "num_buckets": 32,
        "max_distance": 64,
    }
    return BeatsConfig(**{**settings, **overrides})


def tiny_whisper_config(**overrides) -> WhisperConfig:
    """Two encoder layers of width 32 on 40 mel bins, with positions for 4 s."""
    settings = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "num_mel_bins": 40,
        "max_source_positions": 200,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "vocab_size": 100,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "decoder_start_token_id": 0,
    }
    return WhisperConfig(**{**settings, **overrides})


def tiny_config(text: str = "gpt2", **overrides) -> CoLLAPConfig:
    """Segments of 2 s (12 tokens), frames of 1 s (6 tokens) every 0.5 s (3 tokens), shared width 32."""
    settings = {
        "text_config": tiny_text_config(text),
        "music_config": tiny_beats_config(),
        "speech_config": tiny_whisper_config(),
        "projection_dim": 32,
        "segment_seconds": 2,
        "kernel_seconds": 1.0,
        "stride_seconds": 0.5,
    }
    return CoLLAPConfig(**{**settings, **overrides})


def tiny_model(text: str = "gpt2", seed: int = 0, segment_batch_size: int = 8, **overrides) -> CoLLAPModel:
    """Make a model of [`tiny_config`] in evaluation mode; the same seed gives the same weights. Its structure layers
    have an effect, as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CoLLAPModel(tiny_config(text, **overrides)).eval()
        for layer in model.structure.frame_layers:
            for output in (layer.attention_out, layer.feed_forward[-1]):
                torch.nn.init.normal_(output.weight, std=0.1)
    model.audio_tower.segment_batch_size = segment_batch_size
    return model


def undropped_model(seed: int = 0, **overrides) -> CoLLAPModel:
    """A [`tiny_model`] without dropout, whose forward pass is the same in training."""
    text = tiny_text_config("gpt2")
    text.update({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    music = tiny_beats_config(hidden_dropout=0.0, attention_dropout=0.0)
    return tiny_model("gpt2", seed, text_config=text, music_config=music, **overrides)


def tiny_tokenizer(kind: str = "gpt2") -> GPT2Tokenizer | RobertaTokenizer:
    """Byte-level BPE over a few English words, with the special tokens of its kind."""
    special = ["<|endoftext|>"] if kind == "gpt2" else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokenizer_class = GPT2Tokenizer if kind == "gpt2" else RobertaTokenizer
    return tokenizer_class(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def tiny_processor(text: str = "gpt2", **overrides) -> CoLLAPProcessor:
    """The processor that fits [`tiny_model`] of the same arguments."""
    return CoLLAPProcessor.from_model_config(tiny_config(text, **overrides), tiny_tokenizer(text))


def save_tiny_backbones(folder: Path) -> dict[str, Path]:
    """Writes gpt2, roberta (each with its tokenizer), beats and whisper folders without dropout."""
    torch.manual_seed(0)
    no_dropout = {
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    for kind, settings in no_dropout.items():
        config = tiny_text_config(kind)
        config.update(settings)
        AutoModel.from_config(config).save_pretrained(folder / kind)
        tiny_tokenizer(kind).save_pretrained(folder / kind)
    BeatsModel(tiny_beats_config(hidden_dropout=0.0, attention_dropout=0.0)).save_pretrained(folder / "beats")
    WhisperModel(tiny_whisper_config(max_source_positions=100)).save_pretrained(folder / "whisper")
    return {path.name: path for path in folder.iterdir()}
