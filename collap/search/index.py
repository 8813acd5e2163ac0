"""Search an index from Python.

    from collap.search.index import TrackIndex

    index = TrackIndex.open("music.index")
    for hit in index.search("a soft piano alone, later drums and strings", k=5, filters="year >= 1970"):
        print(hit.name, hit.score, hit.spans[0].start)

An index stays as it was opened, whatever is written to it meanwhile, and may be searched by many threads at a time. The
model is loaded when the first text is embedded; vectors and tracks are searched with without it.

Dimensions: `N` tracks, `B` texts, `Q` sentences of a text, `T` tokens of a track, `D` shared width.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from collap.evaluation.embedders import Embedder

from .calibration import Calibration
from .copies import Copies
from .engine import Engine
from .filters import matching
from .folding import fold_rankings
from .hits import TAGS, Hit, Results
from .moments import Curve, best_spans, curves_over_time, sentence_spans
from .quantize import quantized_cosines
from .queries import Query, like_query, text_queries, vector_query
from .ranking import MODES, Ranker, Ranking, Texts, texts_of
from .rescoring import Tokens
from .scan import Scan
from .score_function import ScoreFunction
from .space import fetched_space, load_searched
from .store import IndexStore

SAMPLE = 1000  # tracks by whose scores `Hit.deviations` says what is usual


class TrackIndex:
    """Hold an index that is searched; made by [`TrackIndex.open`].

    Attributes:
        store: its files.
        function: the score of its model.
        tracks: a table with a row for each track, see `store.py`.
    """

    def __init__(
        self,
        store: IndexStore,
        model: str | Path | Embedder | None = None,
        device: str = "cpu",
        engine: str | Path | None = None,
    ):
        self.store, self.model, self.device = store, model, device
        self.tracks = store.tracks
        self.function = ScoreFunction.from_dict(store.manifest["score"])
        places = store.places
        proposing = None if engine is None else Engine(engine, store.space.id, list(store.shards), places)
        self.scan = Scan([shard.vectors for shard in store.shards.values()], places, proposing)
        self.ranker = Ranker(self.function, self.scan, self.tokens)
        self.calibration = Calibration.of(store)
        self.copies = Copies(store)
        self._lock = threading.Lock()
        self._embedder: Embedder | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        model: str | Path | Embedder | None = None,
        device: str = "cpu",
        engine: str | Path | None = None,
    ) -> "TrackIndex":
        """Open an index.

        Args:
            folder: that `collap index` has made.
            model: of the same space, if it is no longer where the index says, or is loaded already.
            device: where the model runs.
            engine: database that proposes tracks, which `collap index --engine` has filled, see `engine.py`.

        Raises:
            FileNotFoundError: there is no index.
            ValueError: it is damaged, or of another version, or the database is not of this index; one line that says
                what.
            ModuleNotFoundError, OSError: the database cannot be opened.
        """
        return cls(IndexStore.open(folder), model, device, engine)

    def __len__(self) -> int:
        return len(self.tracks)

    @property
    def embedder(self) -> Embedder:
        """Return the model, loading it if that was not done.

        Raises:
            OSError: it is not there.
            ValueError: its vectors are of another space than those of the index; one line says in what they differ.
        """
        with self._lock:
            if self._embedder is None:
                self._embedder = self._load()
        return self._embedder

    def _load(self) -> Embedder:
        about, settings = self.store.space.about, self.store.settings
        if isinstance(self.model, Embedder):
            if self.model.weights != about["model"]["weights"]:
                raise ValueError(
                    f"{self.store.folder}: is of other weights than {self.model.name}; open it with its own"
                )
            return self.model
        spec = str(self.model or settings["model"])
        found = fetched_space(spec, self.device, about["dtype"], about["stride"])
        found.check(self.store.space, self.store.folder)
        return load_searched(spec, self.device, about["dtype"])

    def tokens(self, track: int) -> Tokens:
        """Return the tokens of a track: codes (T, D) and scales (T,), from memory that is mapped."""
        return self.store.tokens(track)

    @torch.no_grad()
    def search(
        self,
        text: str | Sequence[str] | None = None,
        k: int = 10,
        *,
        filters: str | None = None,
        not_text: str | None = None,
        like: str | None = None,
        vectors: Sequence | None = None,
        min_seconds: float | None = None,
        max_seconds: float | None = None,
        mode: str = "fixed",
        candidates: int | None = None,
        moments: bool = True,
        curve: bool = False,
        collapse: bool = True,
    ) -> Results | list[Results]:
        """Find the tracks that a description fits.

        Args:
            text: a description, or a list of them; or instead of it
            like: a track, or a moment of one, as [`like_query`] reads it; it is not among the hits, and neither are
                copies of it, if they are collapsed; or
            vectors: of texts, in the space of the model: a list with (D,) or (Q, D) for each.
            k: how many tracks.
            filters: which tracks may be found, as `filters.py` says; those are ranked as if there were no others.
            not_text: a description that must not fit. Ranked is by score(text) - score(not_text): this finds tracks
                that one fits much better than the other, and says nothing about whether the other can be heard.
            min_seconds, max_seconds: length of the tracks.
            mode: `"fixed"`, `"calibrated"` or `"exact"`, see `ranking.py`.
            candidates: tracks that are scored exactly in the mode `"fixed"`; 0 for estimates alone, the fastest;
                default: until the best are settled, see `ranking.py`.
            moments: whether to say which parts of a track match; without it a search is faster.
            curve: whether to return the score over time.
            collapse: whether tracks that are copies of a better hit are no hits of their own, but its `copies`.

        Returns:
            [`Results`], or a list of them for a list of texts, or of vectors.

        Raises:
            OSError, ValueError: of a query, a filter or a model that cannot be used; one line.
        """
        queries = self._queries(text, like, vectors)
        mode, notes = self._checked(k, mode, candidates)
        tracks = matching(self.tracks, filters, min_seconds, max_seconds)
        tracks = tracks[~np.isin(tracks, [query.left_out for query in queries if query.left_out is not None])]
        if self.scan.engine is not None and mode != "exact" and 0 < len(tracks) < len(self):
            notes.append("the engine knows of no filter: this was searched without it")
        against = text_queries(self.embedder, self.function, [not_text]) if not_text is not None else []
        is_plain = not against and like is None
        if not len(tracks):
            found = [Results(notes=[*notes, "no track is what the filter asks for"]) for _ in queries]
        else:
            texts = texts_of(queries, against)
            is_calibrated = is_plain and len(tracks) == len(self)
            if mode == "calibrated" and not is_calibrated:
                notes.append("calibrated on whole libraries and single texts: here nothing is certified")
            left_out = [query.left_out for query in queries] if collapse else None
            rankings = self._ranked(texts, tracks, k, mode, candidates, is_calibrated, left_out)
            asked = (moments, curve, is_plain, notes, len(tracks))
            found = [self._results(*one, *asked) for one in zip(queries, rankings, self.usual(texts), strict=True)]
        return found[0] if isinstance(text, str) or like is not None else found

    def _ranked(
        self, texts: Texts, tracks: np.ndarray, k: int, mode: str, candidates: int | None, is_calibrated: bool, left_out
    ) -> list[Ranking]:
        """Rank tracks for each query; copies are folded, those of the tracks `left_out` too, unless that is None."""
        delta = self.calibration.delta if self.calibration else None

        def rank(texts: Texts, most: int) -> list[Ranking]:
            found = self.ranker.rank(texts, tracks, most, mode, candidates, delta)
            if mode != "calibrated" or (is_calibrated and not self.calibration.problem(most, len(self))):
                return found
            return [replace(one, is_certified=one.num_rescored == len(tracks)) for one in found]

        if left_out is None:
            return [ranking.first(k) for ranking in rank(texts, k)]
        return fold_rankings(self.copies, rank, texts, k, len(tracks), left_out)

    @torch.no_grad()
    def moments(self, track: int, text: str | None = None, *, like: str | None = None, curve: bool = False) -> dict:
        """Say where in a track a query is heard: `spans`, `sentences` and, if asked for, `curve` of a [`Hit`].

        Args:
            track: its number in the index.
            text, like: as in [`search`].

        Raises:
            OSError, ValueError: of a query that cannot be used; one line.
        """
        (query,) = self._queries(text, like, None)
        return self._moments(query, track, self.tracks["seconds"][track].as_py(), curve)

    def _queries(self, text, like, vectors) -> list[Query]:
        """Return the queries of a search; a ValueError unless there is one kind of them."""
        if sum(one is not None for one in (text, like, vectors)) != 1:
            raise ValueError("expected one of: a text, a track that the hits are to be like, vectors")
        if like is not None:
            return [like_query(self.store, self.function, like)]
        if vectors is not None:
            width = next(iter(self.store.shards.values())).vectors["means"].shape[1]
            return [vector_query(one, width) for one in vectors]
        return text_queries(self.embedder, self.function, [text] if isinstance(text, str) else text)

    def _checked(self, k: int, mode: str, candidates: int | None) -> tuple[str, list[str]]:
        """Return the mode that is possible, and what is to be said about it."""
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
        if k < 1 or (candidates is not None and candidates < 0):
            raise ValueError(f"k is {k} and candidates {candidates}; expected k of 1 or more, candidates of 0 or more")
        if mode != "calibrated":
            return mode, []
        if self.scan.engine is not None:
            return "fixed", ["what an engine leaves out is not calibrated; searched in the mode fixed"]
        problem = self.calibration.problem(k, len(self)) if self.calibration else "the index is not calibrated"
        return ("fixed", [f"{problem}; searched in the mode fixed"]) if problem else (mode, [])

    @cached_property
    def _sample(self) -> np.ndarray:
        """Return the numbers of some tracks, evenly spread."""
        return np.unique(np.linspace(0, len(self) - 1, min(SAMPLE, len(self))).astype(np.int64))

    def usual(self, texts: Texts) -> list[tuple[float, float]]:
        """Return mean and standard deviation of the library's scores for every query."""
        scores = self.scan.segment_estimates(self.function, texts.embeds, self._sample) @ texts.signs
        return list(zip(scores.mean(0).tolist(), scores.std(0, correction=0).tolist(), strict=True))

    def _results(self, query: Query, ranking: Ranking, usual, moments, curve, is_plain, notes, num_searched) -> Results:
        """Say all that is known of the tracks that one query has found."""
        hits = []
        known = self.calibration if is_plain and ranking.is_rescored else None
        for rank, (track, score) in enumerate(zip(ranking.tracks.tolist(), ranking.scores.tolist(), strict=True), 1):
            about = {name: self.tracks[name][track].as_py() for name in ("id", *TAGS)}
            path = self.store.path(track)
            deviations = (score - usual[0]) / usual[1] if usual[1] > 0 else 0.0
            match = known.match(score) if known else None
            where = self._moments(query, track, about["seconds"], curve) if moments or curve else {}
            flags = {"rescored": ranking.is_rescored, "certified": ranking.is_certified}
            place = {"path": path, "file": os.path.join(self.store.library, path)}
            if ranking.copies:
                place["copies"] = tuple(map(self.store.path, ranking.copies[rank - 1]))
            hits.append(
                Hit(rank, track, **about, **place, score=score, **flags, deviations=deviations, match=match, **where)
            )
        matches_well = known.is_usual(hits[0].score) if known and hits else None
        if ranking.num_passed:
            notes = [*notes, f"copies of the track that is searched with are not shown: {ranking.num_passed}"]
        notes = [*notes, *(["nothing here matches well"] if matches_well is False else [])]
        return Results(hits, notes, matches_well, ranking.num_rescored, num_searched)

    def _moments(self, query: Query, track: int, seconds: float, curve: bool) -> dict:
        """Return `spans`, `sentences` and `curve` of a hit."""
        rows = self.function.rows(query.embeds.unsqueeze(0))[:1]  # (1, D) the query as one vector
        rows = rows if query.sentence_embeds is None else torch.cat([rows, query.sentence_embeds])  # (1 + sentences, D)
        cosines = quantized_cosines(rows, *self.tokens(track)).T  # (T, 1 + sentences)
        curves, times = curves_over_time(self.function, cosines, seconds)  # (1 + sentences, W), (W, 2)
        found = {"spans": tuple(best_spans(curves[0], times))}
        if curve:
            found["curve"] = Curve(times[:, 0].tolist(), times[:, 1].tolist(), curves[0].tolist())
        if query.sentences:
            found["sentences"] = sentence_spans(self.function, query.sentences, cosines[:, 1:], curves[1:], times)
        return found
