"""A tiny Qwen2-Audio with random weights, and a scripted stand-in: captioners for the tests."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

WINDOW_SECONDS = 4  # of what its feature extractor takes at a time
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]


def save_tiny_qwen2_audio(folder: Path) -> Path:
    """Write model and processor as `save_pretrained` does, with a card."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator([], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=MARKS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=MARKS[2], pad_token=MARKS[0], extra_special_tokens=MARKS[1:]
    )
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_SECONDS)
    Qwen2AudioProcessor(extractor, tokenizer).save_pretrained(folder)
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "num_mel_bins": 16,
            "max_source_positions": 50 * WINDOW_SECONDS,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: tiny-noncommercial\n---\nRandom weights.\n")
    return folder


class Scripted:
    """Answer from a script, by kind of question: the last line of its prompt. What was asked is kept in `asked`."""

    name, licence = "scripted", "cc0-1.0"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def write(
        self, prompts: list[str], audios: list[np.ndarray], seeds: list[int], temperature: float, max_tokens: int
    ):
        """Return the next answers; an answer that is a function is given the length of the audio in samples."""
        self.asked += [
            (prompt, len(audio), seed, temperature) for prompt, audio, seed in zip(prompts, audios, seeds, strict=True)
        ]
        answers = [self.answers.pop(0) for _ in prompts]
        return [one(len(audio)) if callable(one) else one for one, audio in zip(answers, audios, strict=True)]
