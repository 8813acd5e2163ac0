"""Measure on an index what its searches may say: how far the exact score may lie above its estimate, and how well
ordinary descriptions of music are found in it.

The queries are the texts of the built-in set (`collap/evaluation/probes.py`), alone and two and three at a time. With n
of them, delta is their k-th largest need, k = floor(alpha (n + 1)): for a further query like these, the chance that a
track of the true best is missed is alpha at most (split conformal prediction).

Dimensions: `n` queries.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from collap.evaluation.probes import probe_texts
from collap.files import replace_text

from .queries import text_queries
from .ranking import sort_order, texts_of
from .store import MANIFEST, IndexStore, manifest_digest, read_manifest
from .writing import writing_to

ALPHA = 0.05
CALIBRATED_K = 10
SCORED = 500  # tracks of which the true best are taken to be, by their estimates
MARGIN = 0.9  # share of them beyond which none of the best may be
MIN_MATCH = 0.05  # share of ordinary descriptions whose best score that of a query must surpass to match well
MAX_GROWTH = 0.1  # of an index since it was calibrated
DIGITS = 4


@dataclass(frozen=True)
class Calibration:
    """Hold what was measured on an index.

    Attributes:
        k: hits that delta is for, or fewer.
        alpha: chance to miss one of them.
        delta: that a score may lie above its estimate; None if some of the best were not among the candidates.
        tracks: that the index held.
        best: (n,) best score of every query.
    """

    k: int
    alpha: float
    delta: float | None
    tracks: int
    best: list[float]

    @classmethod
    def of(cls, store: IndexStore) -> "Calibration | None":
        """Read what an index holds; None if it is not calibrated, or was by another version."""
        content = store.manifest.get("calibration") or {}
        is_known = set(content) == {field.name for field in fields(cls)}
        return cls(**content) if is_known else None

    def match(self, score: float) -> float:
        """Return the share of ordinary descriptions whose best score in this library is lower."""
        return float(np.mean(np.array(self.best) < score))

    def is_usual(self, score: float) -> bool:
        """Tell whether the score of a best hit is not below those of nearly all ordinary descriptions.

        How far it stands out from the library says nothing: hits of texts that are not about music stand out as far
        (docs/search.md).
        """
        return self.match(score) >= MIN_MATCH

    def problem(self, k: int, num_tracks: int) -> str | None:
        """Say why the mode `calibrated` cannot be used; None if it can."""
        if self.delta is None:
            return "when this index was calibrated, no bound was found"
        if k > self.k:
            return f"the index is calibrated for {self.k} hits"
        if abs(num_tracks - self.tracks) > MAX_GROWTH * self.tracks:
            return f"the index was calibrated when it held {self.tracks} tracks, and holds {num_tracks}"
        return None


def calibration_texts() -> list[str]:
    """Return ordinary descriptions of music: those of the built-in set, and two and three that follow each other."""
    texts = probe_texts()
    return [" ".join(texts[start : start + count]) for count in (1, 2, 3) for start in range(len(texts) - count + 1)]


def conformal_quantile(needs: np.ndarray, alpha: float) -> float:
    """Return what a further need exceeds with a probability of alpha at most, given n exchangeable ones.

    Raises:
        ValueError: there are too few for this alpha.
    """
    rank = math.floor(alpha * (len(needs) + 1))
    if rank < 1:
        raise ValueError(f"{len(needs)} queries for alpha {alpha}; expected {math.ceil(1 / alpha) - 1} or more")
    return float(np.sort(needs)[-rank])


def calibrate(index, k: int = CALIBRATED_K, alpha: float = ALPHA) -> Calibration:
    """Search an index for ordinary descriptions and measure.

    Args:
        index: a [`TrackIndex`]; its model is loaded.
        k: hits that delta is for.
        alpha: chance to miss one.
    """
    queries = text_queries(index.embedder, index.function, calibration_texts())
    tracks = np.arange(len(index))
    needs, best = [], []
    for query in queries:
        texts = texts_of([query])
        asked = index.function, texts.embeds, texts.signs, tracks
        ((found, estimates),) = index.scan.estimate(*asked, at_least=len(tracks))
        ((seen, _),) = index.scan.estimate(*asked)  # by a search
        chosen = sort_order(estimates, found)[:SCORED]
        scores = index.ranker.exact(texts, found[chosen])[:, 0]
        top = sort_order(scores, found[chosen])[:k]
        # One of the best that is hardly a candidate, there may be others that are none; or that a search leaves out.
        is_cut = len(chosen) < len(tracks) and top.max() >= MARGIN * len(chosen)
        is_cut |= not np.isin(found[chosen[top]], seen).all()
        needs.append(np.inf if is_cut else (scores - estimates[chosen])[top].max())
        best.append(scores[top[0]])
    delta = conformal_quantile(np.array(needs), alpha)
    delta = round(delta, DIGITS) if np.isfinite(delta) else None
    return Calibration(k, alpha, delta, len(index), [round(float(one), DIGITS) for one in sorted(best)])


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Keep it in the manifest of an index.

    Raises:
        OSError, ValueError: the index cannot be written to, is damaged, or another process writes to it.
    """
    with writing_to(folder):
        manifest = {**read_manifest(folder), "calibration": asdict(calibration)}
        manifest["checksum"] = manifest_digest(manifest)
        replace_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
