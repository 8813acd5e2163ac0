"""Golden vectors: what a model makes of the built-in set, stored with it, so that anyone can see that it still does.

A text is followed from its tokens to its embedding, a clip from its features to its embedding, and both to the scores;
what drifted first names the part that changed.

Dimensions: `A` audios (the clips, then all of them joined into one), `B` texts, `L` text tokens, `D` shared width.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
import transformers
from safetensors.torch import save_file

from collap.evaluation.probes import SAMPLING_RATE, load_probes, probe_digest
from collap.files import replace_file

GOLDEN_FILE = "golden.safetensors"
GOLDEN_VERSION = 1  # raised when the vectors change their meaning
METADATA = ("version", "probes", "dtype", "torch", "transformers")
PARTS = {
    "tokenizer": ("input_ids", "attention_mask"),
    "text tower": ("text_embeds",),
    "audio front end": ("music_features", "speech_features"),
    "audio tower": ("audio_embeds",),
    "score": ("scores",),
}
VECTORS = tuple(name for names in PARTS.values() for name in names)


@dataclass(frozen=True)
class Golden:
    """Hold vectors as `probe_vectors` returns them, and `METADATA`: dtype, torch and transformers then used."""

    vectors: dict[str, torch.Tensor]
    metadata: dict


@torch.no_grad()
def probe_vectors(model, processor) -> dict[str, torch.Tensor]:
    """Run the built-in set through a model, in evaluation mode, on the model's device.

    Returns:
        On the CPU: input_ids and attention_mask (B, L); text_embeds (B, D); music_features and speech_features
        (A, mel bins), the means over the audio's frames; audio_embeds (A, D), the means over its tokens; scores (A, B).
    """
    probes = load_probes()
    clips = [probe.waveform for probe in probes]
    texts = [text for probe in probes for text in probe.texts]
    # Features on the CPU, whatever the device: the front end is then the same everywhere.
    inputs = processor(text=texts, audio=[*clips, np.concatenate(clips)], sampling_rate=SAMPLING_RATE)
    training = model.training
    output = model.eval()(**inputs.to(model.device))
    model.train(training)
    frames = inputs["music_attention_mask"].unsqueeze(-1)  # (A, S, F, 1)
    segments = inputs["segment_mask"]  # (A, S)
    speech = inputs["speech_features"].mean(-1) * segments.unsqueeze(-1)  # (A, S, mel bins)
    vectors = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "text_embeds": output.text_embeds,
        "music_features": (inputs["music_features"] * frames).sum((1, 2)) / frames.sum((1, 2)),  # (A, mel bins)
        "speech_features": speech.sum(1) / segments.sum(1, keepdim=True),  # (A, mel bins)
        "audio_embeds": output.audio_embeds.sum(1) / output.audio_token_mask.sum(1, keepdim=True),  # (A, D)
        "scores": output.logits_per_audio,
    }
    return {name: vector.cpu().contiguous() for name, vector in vectors.items()}


def write_golden(model, processor, folder: str | Path) -> Path:
    """Write `folder/golden.safetensors`; the same model, processor and libraries give the same bytes."""
    metadata = {
        "version": GOLDEN_VERSION,
        "probes": probe_digest(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    path, vectors = Path(folder) / GOLDEN_FILE, probe_vectors(model, processor)
    header = {"golden": json.dumps(metadata, sort_keys=True)}  # one entry: safetensors writes several in any order
    replace_file(path, lambda temporary: save_file(vectors, temporary, metadata=header))
    return path


def read_golden(folder: str | Path) -> Golden | None:
    """Read the vectors stored with a model; None if there are none.

    Raises:
        ValueError: the file is damaged, of a newer version, or of another set of probes.
    """
    path = Path(folder) / GOLDEN_FILE
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # Copies: the file stays mapped otherwise, and may be written again.
            vectors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = json.loads((file.metadata() or {})["golden"])
        metadata = {name: metadata[name] for name in METADATA}
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as golden vectors ({error}); fetch or write it again") from error
    version, probes = metadata["version"], metadata["probes"]
    if version != GOLDEN_VERSION or probes != probe_digest():
        raise ValueError(
            f"{path} has version {version} and probes {str(probes)[:8]}; this package has version {GOLDEN_VERSION} and "
            f"probes {probe_digest()[:8]}: use the release of CoLLAP that wrote it, or write it again"
        )
    if missing := sorted(set(VECTORS) - set(vectors)):
        raise ValueError(f"{path} lacks {', '.join(missing)}; write it again")
    return Golden(vectors, metadata)


def relative_drift(found: torch.Tensor, golden: torch.Tensor) -> float:
    """Return the largest change of a row, relative to its length: `max_i |found_i - golden_i| / |golden_i|`; infinite
    for another shape and for numbers that are not finite."""
    if found.shape != golden.shape:
        return math.inf
    difference = (found.double() - golden.double()).norm(dim=-1)
    drift = (difference / golden.double().norm(dim=-1).clamp(min=1e-12)).max().item()
    return drift if math.isfinite(drift) else math.inf


def golden_drift(vectors: dict[str, torch.Tensor], golden: Golden) -> dict[str, float]:
    """Return [`relative_drift`] of every part, in the order in which the parts are computed."""
    return {
        part: max(relative_drift(vectors[name], golden.vectors[name]) for name in names)
        for part, names in PARTS.items()
    }
