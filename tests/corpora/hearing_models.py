"""Tiny models with random weights, of the architectures that captioners have, and a scripted stand-in for the tests."""

from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, WhisperFeatureExtractor

WINDOW_SECONDS = 4  # of what its feature extractor takes at a time
CHAT = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if \
part['type'] == 'audio' %}AUDIO{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
ENCODER = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_size": 32,
    "num_mel_bins": 16,
    "max_source_positions": 50 * WINDOW_SECONDS,
}
WHISPER_NAMES = {
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
    "hidden_size": "d_model",
}
QWEN2_ENCODER = {WHISPER_NAMES.get(name, name): value for name, value in ENCODER.items()}
OMNI_MARKS = {  # Qwen2.5-Omni's and Qwen3-Omni's processors ask their tokenizer for them
    f"{name}_token": f"<|{name}|>"
    for name in ("image", "audio", "video", "vision_bos", "vision_eos", "audio_bos", "audio_eos")
}


def byte_tokenizer(marks: list[str], names: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and marks; `names` are attributes of it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks]
    bpe.train_from_iterator([], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=marks))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=marks[2], pad_token=marks[0], extra_special_tokens=names or marks[1:]
    )


def text_settings(tokenizer: PreTrainedTokenizerFast, kind: str = "qwen2", **more) -> dict:
    """Settings of a language model of one layer."""
    return {
        "model_type": kind,
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
        **more,
    }


def save_random(model_class, config, folder: Path) -> Path:
    """Write a model with weights drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    return folder


def save_tiny_qwen2_audio(folder: Path) -> Path:
    """Write model and processor of Qwen2-Audio as `save_pretrained` does, with a card."""
    tokenizer = byte_tokenizer(["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"])
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_SECONDS)
    transformers.Qwen2AudioProcessor(extractor, tokenizer).save_pretrained(folder)
    config = transformers.Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **QWEN2_ENCODER},
        text_config=text_settings(tokenizer),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    save_random(transformers.Qwen2AudioForConditionalGeneration, config, folder)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: tiny-noncommercial\n---\nRandom weights.\n")
    return folder


def save_tiny_flamingo(folder: Path, kind: str) -> Path:
    """Write model and processor of `AudioFlamingo3` or `MusicFlamingo`."""
    tokenizer = byte_tokenizer(["<sound>", "<|sound_bos|>", "<|sound_eos|>"])
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_SECONDS)
    processor = getattr(transformers, f"{kind}Processor")
    processor(extractor, tokenizer, chat_template=CHAT.replace("AUDIO", "<sound>")).save_pretrained(folder)
    ids = {"audio_token_id": tokenizer.convert_tokens_to_ids("<sound>")}
    if kind == "MusicFlamingo":
        ids |= {f"audio_{end}_token_id": tokenizer.convert_tokens_to_ids(f"<|sound_{end}|>") for end in ("bos", "eos")}
    config = getattr(transformers, f"{kind}Config")(
        audio_config={"model_type": "audioflamingo3_encoder", **ENCODER}, text_config=text_settings(tokenizer), **ids
    )
    return save_random(getattr(transformers, f"{kind}ForConditionalGeneration"), config, folder)


def save_tiny_qwen3_omni(folder: Path) -> Path:
    """Write model and processor of Qwen3-Omni, both halves of it; needs torchvision."""
    tokenizer = byte_tokenizer(list(OMNI_MARKS.values()), OMNI_MARKS)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_SECONDS)
    transformers.Qwen3OmniMoeProcessor(
        transformers.Qwen2VLImageProcessor(),
        transformers.Qwen2VLVideoProcessor(),
        extractor,
        tokenizer,
        chat_template=CHAT.replace("AUDIO", "<|audio_bos|><|audio|><|audio_eos|>"),
    ).save_pretrained(folder)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True, "rope_theta": 1e4}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "head_dim": 16}
    audio = {**QWEN2_ENCODER, "output_dim": 32, "n_window": 50, "downsample_hidden_size": 16}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    ids = tokenizer.convert_tokens_to_ids
    thinker = {
        "audio_config": audio,
        "vision_config": {**vision, "deepstack_visual_indexes": [0]},
        "text_config": text_settings(tokenizer, "qwen3_omni_moe_text", rope_parameters=rope, **experts),
        "audio_start_token_id": ids("<|audio_bos|>"),
        "vision_start_token_id": ids("<|vision_bos|>"),
        **{f"{kind}_token_id": ids(f"<|{kind}|>") for kind in ("audio", "image", "video")},
    }
    config = transformers.Qwen3OmniMoeConfig(thinker_config=thinker, enable_audio_output=False)
    return save_random(transformers.Qwen3OmniMoeForConditionalGeneration, config, folder)


def save_tiny_chat_model(folder: Path, template: str | None = CHAT) -> Path:
    """Write a language model that does not hear, and its tokenizer with a chat template or without."""
    tokenizer = byte_tokenizer([])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    settings = text_settings(tokenizer)
    del settings["model_type"]
    return save_random(LlamaForCausalLM, LlamaConfig(**settings), folder)


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
            (prompt, 0 if audio is None else len(audio), seed, temperature)
            for prompt, audio, seed in zip(prompts, audios, seeds, strict=True)
        ]
        answers = [self.answers.pop(0) for _ in prompts]
        return [one(len(audio)) if callable(one) else one for one, audio in zip(answers, audios, strict=True)]
