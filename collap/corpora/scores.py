"""Score captions by how well a CoLLAP model finds that they fit their track.

Dimensions: `N` samples at `tracks.RATE`, `B` texts, `Q` sentences of a text, `T` fused tokens, `D` shared width.
"""

import numpy as np
import torch

from collap.models import load_model
from processing.embed_audio import embed_segments

from .tracks import RATE


class Scorer:
    """Hold a model that scores.

    Args:
        name: folder or Hub id of a CoLLAP model.
        device: as torch names it.

    Raises:
        OSError, ValueError: as `load_model`.
    """

    def __init__(self, name: str, device: str):
        self.model, self.processor = load_model(name, device)

    @torch.no_grad()
    def scores(self, samples: np.ndarray, texts: dict[str, str]) -> dict[str, float]:
        """Return the model's score of each text with samples (N,), by the same names."""
        if not texts:
            return {}
        audio, mask = embed_segments(self.model, self._blocks(samples))  # (1, T, D), (1, T)
        found = {}
        for name, text in texts.items():
            inputs = self.processor(text=[text], device=self.model.device)
            told = self.model.get_sentence_features(inputs["input_ids"], inputs["attention_mask"])  # (1, Q, D)
            found[name] = round(float(self.model.score(told, audio, mask)[0, 0]), 6)
        return found

    def _blocks(self, samples: np.ndarray):
        """Yield the features of whole segments, as many as the model encodes at a time."""
        extractor = self.processor.feature_extractor
        size = round(self.model.audio_tower.segment_batch_size * extractor.segment_seconds * RATE)
        for first in range(0, len(samples), size):
            yield extractor.segment_features(torch.from_numpy(samples[first : first + size]).to(self.model.device))
