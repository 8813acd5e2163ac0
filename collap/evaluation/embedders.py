"""Embed texts and songs, and score them, as a model must do to be measured: CoLLAP and its controls.

Dimensions: `B` texts, `Q` sentences of a text, `M` samples, `T` tokens or windows of a song (1 for a single vector),
`D` shared width.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import cached_file

from collap.data.guarded_reading import Source, stream_audio
from collap.files import nearest
from collap.models import load_model, weights_digest
from modeling_collap import mean_pooled_scores
from modeling_collap.alignment_collap import pool_sentences
from modeling_collap.configuration_collap import AUDIO_ENCODERS
from modeling_collap.structure_collap import token_start_seconds
from modeling_collap.weighting_collap import score_embeddings
from processing.embed_audio import check_samples, embed_segments, feature_blocks

from .embedding import embed_texts
from .probes import probe_texts
from .spread import Spread, spread_of

RANDOM = "random"
PAPER_ROWS = {"gpt2": "CoLLAP (GPT-2)", "roberta": "CoLLAP (RoBERTa)"}  # by the text tower
RANDOM_WIDTH = 512
REDUCTIONS = ("mean", "printed")  # of the attention score over time

Read = Callable[..., Iterator[np.ndarray]]  # `stream_audio`, or what does the same elsewhere


class Embedder:
    """Embed texts and songs, and score them: subclass it for other towers, as docs/evaluation.md shows.

    Attributes:
        name: what its row is called.
        weights: digest of its weights; embeddings are kept under it.
        sampling_rate: of the samples that [`embed_audio`] takes; models of one rate share what is decoded.
        settings: what else changes its embeddings, and `score`, what changes only its scores; both are in the manifest
            of every figure.
        token_seconds: that each of the T lasts, if they follow one another in time.
    """

    name: str
    weights: str
    sampling_rate: int
    settings: dict
    token_seconds: float
    score_settings: dict = {"score": "cosine"}
    paper_row: str | None = None  # of the paper's tables, that it stands beside

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Embed texts: (B, D), or (B, Q, D) with zeros where a text has fewer sentences; float32."""
        raise NotImplementedError

    def embed_audio(self, samples: np.ndarray) -> torch.Tensor:
        """Embed a song, mono float32 samples (M,) at `sampling_rate`: (T, D), or (1, D) for one vector; float32."""
        raise NotImplementedError

    def embed_file(self, source: Source, stride: int = 1, read: Read = stream_audio) -> torch.Tensor:
        """Embed a file as [`embed_audio`] does its samples, (T, D); here with all of them in memory, while CoLLAP and
        the models of windows hold a few segments at a time, whatever the length.

        Args:
            source: path or bytes.
            stride: every so many segments, or windows, are embedded and the others passed over.
            read: decodes the file; `stream_audio` does so in another process.

        Raises:
            AudioFileError: the file cannot be read, or is too short or too loud to be a recording; names it.
        """
        if stride != 1:
            raise ValueError(f"{self.name}: stride is {stride}, but songs are embedded whole; expected 1")
        samples = np.concatenate(list(read(source, self.sampling_rate)))
        check_samples(samples, source, self.sampling_rate)
        return self.embed_audio(samples)

    def token_starts(self, num_tokens: int, stride: int = 1) -> torch.Tensor:
        """Return when the vectors of a song begin, in seconds, (T,) float32.

        Args:
            num_tokens: T, of a song that was embedded with this `stride`.
        """
        raise NotImplementedError(f"{self.name}: when its vectors begin is not known")

    def score(self, text_embeds: torch.Tensor, audio_embeds: torch.Tensor) -> torch.Tensor:
        """Score a song (T, D) with texts (B, D): (B,), higher is better; here the cosine with the mean of the T."""
        return F.normalize(text_embeds, dim=-1) @ F.normalize(audio_embeds.mean(0), dim=-1)

    def forms(self, of: str) -> dict[str, "Embedder"]:
        """Return this model in forms that differ in one thing, the usual one first, by what people call them.

        Args:
            of: `"encoders"`: which of them hear; `"reduction"`: how the score adds up over time.

        Returns:
            Nothing if it has no such forms. They share its weights.
        """
        return {}

    def count_tokens(self, texts: list[str]) -> list[int] | None:
        """Count the tokens of texts (B,), before any are cut off; None if it has none to count."""
        tokenizer = getattr(getattr(self, "processor", None), "tokenizer", None)
        return None if tokenizer is None else [len(ids) for ids in tokenizer(texts)["input_ids"]]

    @torch.no_grad()
    def text_spread(self) -> Spread:
        """Say whether its text tower tells the texts of the built-in set apart, by the doctor's test."""
        return spread_of(pool_sentences_of(self.embed_texts(probe_texts())))


def pool_sentences_of(text_embeds: torch.Tensor) -> torch.Tensor:
    """Return one vector of each text: (B, D) of (B, D) or (B, Q, D)."""
    return pool_sentences(text_embeds) if text_embeds.ndim == 3 else text_embeds


def blocks_of(samples: np.ndarray):
    """Return what hands a song that is decoded already to `feature_blocks`, in the blocks in which a file is read."""

    def read(source, rate: int, block_seconds: float):
        size = round(block_seconds * rate)
        return (samples[start : start + size] for start in range(0, max(len(samples), 1), size))

    return read


def every_segment(read: Read, segment_seconds: float, stride: int) -> Read:
    """Return what reads a file as `read` does, and hands on the segments 0, stride, 2 stride, ... of it."""

    def reading(source: Source, rate: int, block_seconds: float) -> Iterator[np.ndarray]:
        held, most = [], round(block_seconds / segment_seconds)
        for index, segment in enumerate(read(source, rate, block_seconds=segment_seconds)):
            held += [segment] if index % stride == 0 else []
            if len(held) == most:
                yield np.concatenate(held)
                held = []
        if held:
            yield np.concatenate(held)

    return read if stride == 1 else reading


class CoLLAPEmbedder(Embedder):
    """Embed with a CoLLAP model, all tokens of a song.

    Args:
        reading: `"attention"`: the model's score; `"mean"`: the cosine with the mean token, a control; `"music"`,
            `"speech"`: the model's score with the inputs of the other encoder zeroed.
    """

    READINGS = ("attention", "mean", "music", "speech")

    def __init__(self, name: str, reading: str = "attention", device: str = "cpu", dtype: str = "float32"):
        shown(name, reading, self.READINGS)
        self.model, self.processor = load_model(name, device, dtype)
        self.folder, self.weights, self.dtype = name, weights_digest(name), dtype
        self.score_parameters = self.model.score_parameters
        self.sampling_rate = self.processor.feature_extractor.sampling_rate
        self.token_seconds = self.model.config.token_seconds
        self._read_as(reading)

    def _read_as(self, reading: str) -> "CoLLAPEmbedder":
        """Read songs so from now on."""
        config, parameters = self.score_parameters.config, self.score_parameters
        self.name, self.reading = shown(self.folder, reading, self.READINGS), reading
        self.paper_row = PAPER_ROWS.get(config.text_config.model_type) if reading == "attention" else None
        built = config.audio_encoders
        if reading in AUDIO_ENCODERS and built != "both":
            raise ValueError(f"{self.folder}@{reading}: this model has one audio encoder, {built}; name it without @")
        heard = reading if reading in AUDIO_ENCODERS else built
        self.settings = {
            "window": f"the whole song in segments of {config.segment_seconds:g} s",
            "encoders": heard,
            "text tokens": self.processor.max_text_tokens or self.processor.tokenizer.model_max_length,
            "precision": self.dtype,
        }
        self.score_settings = (
            {"score": "mean token"}
            if reading == "mean"
            else {
                "score": f"attention, {config.alignment}",
                "attention temperature": round(parameters.temperature().item(), 6),
                "reduction": config.score_reduction,
            }
        )
        return self

    def forms(self, of: str) -> dict[str, Embedder]:
        if self.reading != "attention":
            return {}
        if of == "encoders" and self.settings["encoders"] != "both":
            return {}
        if of == "encoders":
            labels = {"both encoders": "attention", "music alone": "music", "speech alone": "speech"}
            return {label: copy.copy(self)._read_as(reading) for label, reading in labels.items()}
        own = self.score_parameters.config.score_reduction
        return {reduction: self._reduced(reduction) for reduction in sorted(REDUCTIONS, key=lambda one: one != own)}

    def _reduced(self, reduction: str) -> "CoLLAPEmbedder":
        """Return this model with a score that adds up so."""
        other = copy.copy(self)
        other.score_parameters = copy.copy(self.score_parameters)  # the weights are shared
        other.score_parameters.config = copy.copy(self.score_parameters.config)
        other.score_parameters.config.score_reduction = reduction
        other._read_as(self.reading)
        other.name = self.name if reduction == self.score_settings["reduction"] else f"{self.name}, {reduction}"
        return other

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        return embed_texts(self.model, self.processor, texts)

    @torch.no_grad()
    def embed_audio(self, samples: np.ndarray) -> torch.Tensor:
        return self._embed(self.name, blocks_of(samples))

    @torch.no_grad()
    def embed_file(self, source: Source, stride: int = 1, read: Read = stream_audio) -> torch.Tensor:
        return self._embed(source, every_segment(read, self.processor.feature_extractor.segment_seconds, stride))

    def _embed(self, source: Source, read: Read) -> torch.Tensor:
        extractor, segments = self.processor.feature_extractor, self.model.audio_tower.segment_batch_size
        blocks = feature_blocks(extractor, source, segments, self.model.device, read)
        tokens, mask = embed_segments(self.model, map(self._silenced, blocks))
        return tokens[0, mask[0]]  # (T, D)

    def token_starts(self, num_tokens: int, stride: int = 1) -> torch.Tensor:
        config = self.model.config
        passed = torch.arange(num_tokens) // config.tokens_per_segment * (stride - 1)  # (T,) segments left out before
        return token_start_seconds(config, num_tokens) + passed * float(config.segment_seconds)

    def _silenced(self, block: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Zero the features of the encoder that is not to be heard."""
        other = {"music": "speech_features", "speech": "music_features"}.get(self.reading)
        return {name: torch.zeros_like(value) if name == other else value for name, value in block.items()}

    @torch.no_grad()
    def score(self, text_embeds: torch.Tensor, audio_embeds: torch.Tensor) -> torch.Tensor:
        tokens = audio_embeds.to(self.model.device).unsqueeze(0)  # (1, T, D)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)  # (1, T)
        texts = text_embeds.to(tokens.device)
        if self.reading == "mean":
            return mean_pooled_scores(pool_sentences_of(texts), tokens, mask)[0].cpu()
        return score_embeddings(self.score_parameters, texts, tokens, mask)[0].cpu()


class RandomVectors(Embedder):
    """Give every text and every song a random unit vector, the same for the same content: a control at chance."""

    def __init__(self, seed: int = 0):
        self.name, self.weights, self.sampling_rate = RANDOM, f"seed-{seed}", 16_000
        self.settings = {"window": "none", "precision": "float32", "seed of the vectors": seed}

    def _vector(self, content: bytes) -> torch.Tensor:
        digest = hashlib.blake2b(content, digest_size=8, key=self.weights.encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest))
        vector = generator.normal(size=RANDOM_WIDTH)
        return torch.from_numpy(vector / np.linalg.norm(vector)).float()  # (D,)

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([self._vector(text.encode()) for text in texts])  # (B, D)

    def embed_audio(self, samples: np.ndarray) -> torch.Tensor:
        return self._vector(np.ascontiguousarray(samples).tobytes()).unsqueeze(0)  # (1, D)


def shown(name: str, reading: str, readings: tuple[str, ...]) -> str:
    """Return what a model is called; a ValueError if it cannot read a song so."""
    if reading not in readings:
        raise ValueError(f"{name}@{reading}: {nearest(reading, readings)}")
    return name if reading == readings[0] else f"{name}@{reading}"


def files_digest(name: str) -> str:
    """Hash the weights of a folder or of a Hub id in the cache: tensors of safetensors files, else the bytes of .bin.

    Raises:
        OSError, ValueError: there are none, or they are damaged.
    """
    folder = Path(cached_file(name, "config.json", local_files_only=True)).parent
    if any(folder.glob("model*.safetensors")):
        return weights_digest(name)
    digest, files = hashlib.sha256(), sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise OSError(f"{name}: no weights, neither model*.safetensors nor pytorch_model*.bin")
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
