"""Score captions by how well a model finds that they fit their track: a CoLLAP model, or a CLAP one.

Dimensions: `N` samples at `tracks.RATE`, `M` at the rate of a CLAP model, `B` texts, `Q` sentences or `L` lines of a
text, `T` fused tokens, `W` windows, `D` shared width.
"""

from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoProcessor, ClapModel

from collap import clap
from collap.files import flat
from collap.models import load_model, naming_device
from processing.embed_audio import embed_segments
from processing.resample_audio import resample

from .tracks import RATE


class Scorer(Protocol):
    """Score texts about a track."""

    def scores(self, samples: np.ndarray, texts: list[str]) -> list[float]:
        """Return the score of each of B texts with samples (N,), mono at `RATE`."""


def load_scorer(name: str, device: str) -> Scorer:
    """Load a model that scores.

    Args:
        name: folder or Hub id of a CoLLAP model, or of a CLAP model of transformers.
        device: as torch names it.

    Raises:
        OSError, ValueError: there is no such model, or it is of another kind; one line.
    """
    try:
        kind = AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError) as error:
        raise OSError(f"--score_model {name}: cannot be read ({flat(error, 300)})") from error
    if kind == "clap":
        return ClapScorer(name, device)
    if kind != "collap":
        raise ValueError(f"--score_model {name}: a {kind!r} model; expected a CoLLAP or a CLAP model")
    return CollapScorer(name, device)


class CollapScorer:
    """Hold a CoLLAP model, whose score is that of the text with the whole track."""

    def __init__(self, name: str, device: str):
        self.model, self.processor = load_model(name, device)

    @torch.no_grad()
    def scores(self, samples: np.ndarray, texts: list[str]) -> list[float]:
        """Return the score of each of B texts with samples (N,)."""
        if not texts:
            return []
        audio, mask = embed_segments(self.model, self._blocks(samples))  # (1, T, D), (1, T)
        found = []
        for text in texts:
            inputs = self.processor(text=[text], device=self.model.device)
            told = self.model.get_sentence_features(inputs["input_ids"], inputs["attention_mask"])  # (1, Q, D)
            found.append(round(float(self.model.score(told, audio, mask)[0, 0]), 6))
        return found

    def _blocks(self, samples: np.ndarray):
        """Yield the features of whole segments, as many as the model encodes at a time."""
        extractor = self.processor.feature_extractor
        size = round(self.model.audio_tower.segment_batch_size * extractor.segment_seconds * RATE)
        for first in range(0, len(samples), size):
            yield extractor.segment_features(torch.from_numpy(samples[first : first + size]).to(self.model.device))


class ClapScorer:
    """Hold a CLAP model, which hears 10 s and reads 512 tokens.

    Its score is the mean cosine of the lines of a text with the mean of all windows of the track: a long caption is not
    cut off, but a line on one section is compared with the whole track too.
    """

    def __init__(self, name: str, device: str):
        model = ClapModel.from_pretrained(name)
        with naming_device(device):
            self.model = model.to(device).eval()
        self.processor = AutoProcessor.from_pretrained(name)

    @torch.no_grad()
    def scores(self, samples: np.ndarray, texts: list[str]) -> list[float]:
        """Return the score of each of B texts with samples (N,)."""
        if not texts:
            return []
        extractor = self.processor.feature_extractor
        rate = extractor.sampling_rate
        heard = np.concatenate(list(resample(iter([(0, samples)]), RATE, rate, 0)))  # (M,)
        size, smallest = round(clap.WINDOW_SECONDS * rate), round(clap.MIN_SECONDS * rate)
        windows = clap.real_windows((heard[start : start + size] for start in range(0, len(heard), size)), smallest)
        embedded = clap.embed_windows(windows, lambda some: clap.encode_clap_windows(self.model, extractor, some))
        song = F.normalize(clap.mean_window(*embedded), dim=-1)  # (D,)
        return [round(float((F.normalize(self._lines(text), dim=-1) @ song).mean()), 6) for text in texts]

    def _lines(self, text: str) -> torch.Tensor:
        """Return the embeddings (L, D) of the lines of a text."""
        tokenizer = self.processor.tokenizer
        limit = clap.max_clap_tokens(self.model, tokenizer)
        inputs = tokenizer(text.splitlines(), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return clap.encode_clap_texts(self.model, inputs.to(self.model.device)).float().cpu()  # (L, D)
