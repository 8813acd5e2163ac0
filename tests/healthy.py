"""A tiny CoLLAP that tells the clips of the built-in set apart: what the doctor calls healthy."""

from pathlib import Path

import torch
from tiny import tiny_model, tiny_processor

from collap.evaluation.probes import SAMPLING_RATE, load_probes
from collap.hub.golden import write_golden
from collap.models import save_model_folder

STEPS = 60


def train_on_probes(model, processor) -> None:
    """Contrasts the eight clips with one of their texts at a time; the audio encoders stay as they are."""
    probes = load_probes()
    inputs = processor(audio=[probe.waveform for probe in probes], sampling_rate=SAMPLING_RATE)
    with torch.no_grad():
        fused = [
            model.audio_tower.fuse(music[real], speech[real], frames[real]).flatten(0, 1)
            for music, speech, frames, real in zip(
                inputs["music_features"],
                inputs["speech_features"],
                inputs["music_attention_mask"],
                inputs["segment_mask"],
                strict=True,
            )
        ]
    audio = {
        "fused_tokens": torch.nn.utils.rnn.pad_sequence(fused, batch_first=True),
        "audio_token_mask": inputs["audio_token_mask"],
    }
    texts = [processor(text=list(wording)) for wording in zip(*(probe.texts for probe in probes), strict=True)]
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    for step in range(STEPS):
        loss = model(**texts[step % len(texts)], **audio, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def healthy_folder(folder: str | Path, text: str = "gpt2") -> Path:
    """Writes a trained tiny model (`text`: gpt2 or roberta) with its processor and golden vectors, always the same."""
    model, processor = tiny_model(text, attention_temperature=0.1), tiny_processor(text)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        train_on_probes(model, processor)
    save_model_folder(model, processor, folder)
    write_golden(model, processor, folder)
    return Path(folder)
