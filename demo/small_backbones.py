"""Small random-weight backbones in the real layout, standing in for gpt2, roberta-base, BEATs and whisper-small.

    python -m demo.small_backbones data/demo_backbones --captions data/demo_songs/train/metadata.jsonl

Nothing pretrained can be downloaded in a first run, so these start from nothing; `train.py` reads them through the same
`CoLLAPModel.from_backbones` as the real ones. The tokenizers are trained on the captions.
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2Model,
    GPT2Tokenizer,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    WhisperConfig,
    WhisperModel,
)

from modeling_collap import BeatsConfig, BeatsModel

VOCABULARY = 1000
TEXT_POSITIONS = 768
SEGMENT_SECONDS = 2.5
WIDTH = 64  # dropout is off throughout: masking noise costs a tenth of a step on a CPU
SPEECH_WIDTH = 16
# 0.02 suits a width of 768; at 64 every text, and every song, would look alike for the first hundred steps.
INITIALIZER_RANGE = 0.1


def train_tokenizer(captions: list[str], special_tokens: list[str]) -> dict:
    """Byte-level BPE on the captions; returns vocabulary and merges as transformers' slow constructors take them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return {"vocab": state["vocab"], "merges": [tuple(merge) for merge in state["merges"]]}


def write_gpt2(folder: Path, captions: list[str]):
    tokenizer = GPT2Tokenizer(**train_tokenizer(captions, ["<|endoftext|>"]), model_max_length=TEXT_POSITIONS)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=TEXT_POSITIONS,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # the same function as "gelu_new", in one pass
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2Model(config)
    with torch.no_grad():  # else the last token's vector tells little more than how long the text is
        model.wpe.weight.mul_(0.03)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_roberta(folder: Path, captions: list[str]):
    special_tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = RobertaTokenizer(**train_tokenizer(captions, special_tokens), model_max_length=TEXT_POSITIONS)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=TEXT_POSITIONS + 2,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = RobertaModel(config, add_pooling_layer=False)
    with torch.no_grad():  # as of GPT-2
        model.embeddings.position_embeddings.weight.mul_(0.03)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_beats(folder: Path):
    config = BeatsConfig(
        num_mel_bins=32,
        embed_dim=WIDTH,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        initializer_range=INITIALIZER_RANGE,
        conv_pos_kernel=8,
        conv_pos_groups=4,
        num_buckets=64,
        max_distance=200,
    )
    BeatsModel(config).save_pretrained(folder)


def write_whisper(folder: Path):
    config = WhisperConfig(
        num_mel_bins=40,
        d_model=SPEECH_WIDTH,
        encoder_layers=1,
        init_std=INITIALIZER_RANGE,
        encoder_attention_heads=1,
        encoder_ffn_dim=4 * SPEECH_WIDTH,
        max_source_positions=round(50 * SEGMENT_SECONDS),
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=SPEECH_WIDTH,
        vocab_size=8,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    WhisperModel(config).save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--captions", type=Path, required=True, help="metadata.jsonl whose captions train the tokenizers"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.captions.read_text().splitlines()]
    captions = [caption for row in rows for caption in row["captions"] + row["short_captions"]]
    torch.manual_seed(options.seed)
    write_gpt2(options.folder / "gpt2", captions)
    write_roberta(options.folder / "roberta", captions)
    write_beats(options.folder / "beats")
    write_whisper(options.folder / "whisper")
    print(f"{options.folder}: random gpt2, roberta, beats and whisper of width {WIDTH}")


if __name__ == "__main__":
    main()
