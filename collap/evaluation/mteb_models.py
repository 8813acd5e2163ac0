"""Hand a model to mteb, unchanged: as an encoder of one vector for a text or song, or with the model's own score.

    import mteb
    from collap.evaluation.load_embedders import load_embedder
    from collap.evaluation.mteb_models import PooledModel, ScoringModel

    mteb.evaluate(ScoringModel(load_embedder("runs/demo/collap-gpt2/best")), tasks)

Both are mteb's protocols (`mteb.models.EncoderProtocol`, `mteb.models.SearchProtocol`), written against mteb 2.26, for
whatever `load_embedder` loads. mteb is imported when a model is made; nothing else of CoLLAP needs it.

Dimensions: `A` songs, `B` texts, `N` inputs of one kind, `D` shared width.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from torch.nn import functional as F

from collap.data.guarded_reading import load_audio
from processing.embed_audio import check_samples
from processing.songs_collap import file_source, is_file, read_song

from .embedders import Embedder, pool_sentences_of


def song_samples(song: Any, rate: int, name: str) -> np.ndarray:
    """Return a song of a data set as mono float32 samples (M,) at `rate`.

    Args:
        song: what a column of audio holds: a decoder, an array with its sampling rate, or the path or bytes of a file
            that is not decoded.
        name: of the song in messages.

    Raises:
        AudioFileError, ValueError: it cannot be read; one line.
    """
    if is_file(song):
        source = file_source(song)
        samples = load_audio(source, rate)
        check_samples(samples, source, rate)
        return samples
    waveform, found_rate = read_song(song, None, name)
    return torchaudio.functional.resample(waveform, found_rate, rate).numpy()


def row_text(row: Mapping) -> str:
    """Return the text of a query or document as mteb's models read it: title and text, or text and instruction."""
    if not isinstance(row["text"], str):
        raise ValueError(f"a text is a {type(row['text']).__name__}; expected a string, not a conversation")
    parts = row.get("title"), row["text"], row.get("instruction")
    return " ".join(part.strip() for part in parts if part)


def kind_of(columns: Iterable[str], name: str) -> str:
    """Tell whether inputs are "text" or "audio".

    Raises:
        ValueError: they are both, or neither.
    """
    found = [kind for kind in ("text", "audio") if kind in columns]
    if len(found) != 1:
        raise ValueError(f"{name} has the columns {', '.join(columns)}; expected one of 'text' and 'audio', not both")
    return found[0]


def mteb_name(name: str) -> str:
    """Return what mteb calls a model, `owner/name`: a Hub id as it is, a folder by its name."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", name) and not Path(name.partition("@")[0]).exists():
        return name
    return f"local/{Path(name).name}"


class PooledModel:
    """Encode every text and song as one unit vector (D,), compared by the cosine: mteb's `EncoderProtocol`.

    The vector of a text is the mean of its sentences, that of a song the mean of its tokens or windows; so the figures
    are those of `MODEL@mean`, and of `random` those of chance. Songs are read whole, whatever their length.

    Args:
        embedder: a model, by `collap.evaluation.load_embedders.load_embedder`.
    """

    score_settings = {"score": "cosine of pooled vectors"}
    scoring_function = "cosine"  # of mteb's ScoringFunction

    def __init__(self, embedder: Embedder):
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        self.embedder = embedder
        known = {"name": mteb_name(embedder.name), "revision": embedder.weights, "modalities": ["audio", "text"]}
        known |= {
            "similarity_fn_name": ScoringFunction(self.scoring_function),
            "framework": ["PyTorch", "Transformers"],
        }
        known |= {"experiment_kwargs": {**embedder.settings, **self.score_settings}}
        self.mteb_model_meta = ModelMeta.create_empty(known)

    def encode(self, inputs: Iterable[Mapping], *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        """Encode batches of mteb, dicts of lists under "text" or "audio": (N, D) float32.

        Args:
            inputs: the batches.
            task_metadata: names the task in messages.
            hf_split, hf_subset, prompt_type, **kwargs: mteb's; nothing depends on them.
        """
        found = []
        for batch in inputs:
            kind = kind_of(batch, task_metadata.name)
            found += [self.embed_texts(list(batch["text"]))] if kind == "text" else self.embed_songs(batch["audio"])
        return torch.cat(found).numpy()  # (N, D)

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Embed texts: (B, D) unit vectors."""
        return F.normalize(pool_sentences_of(self.embedder.embed_texts(texts)).float().cpu(), dim=-1)

    def embed_songs(self, songs: Iterable) -> list[torch.Tensor]:
        """Embed songs one at a time: unit vectors (1, D)."""
        return [F.normalize(self.song_tokens(song).float().mean(0, keepdim=True).cpu(), dim=-1) for song in songs]

    def song_tokens(self, song: Any, name: str = "audio") -> torch.Tensor:
        """Embed a song: all its tokens or windows (T, D)."""
        return self.embedder.embed_audio(song_samples(song, self.embedder.sampling_rate, name))

    def similarity(self, embeddings1, embeddings2) -> torch.Tensor:
        """Return the cosines of all with all: (N1, D) and (N2, D) -> (N1, N2)."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1, embeddings2) -> torch.Tensor:
        """Return the cosine of each with its own: (N, D) and (N, D) -> (N,)."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)


def _unit(embeddings) -> torch.Tensor:
    return F.normalize(torch.as_tensor(embeddings, dtype=torch.float32), dim=-1)


class ScoringModel(PooledModel):
    """Search by the model's own score, exactly, in either direction: mteb's `SearchProtocol`.

    Of CoLLAP that is the attention over all tokens of a song, weighed by the text. Every song is scored with every
    text, one song in memory at a time, beside the scores (A, B). Tasks that do not search (classification, clustering)
    get the pooled vectors of [`PooledModel`].
    """

    scoring_function = "custom"

    def __init__(self, embedder: Embedder):
        self.score_settings = embedder.score_settings
        super().__init__(embedder)
        self.corpus = None

    def index(self, corpus, *, task_metadata, hf_split, hf_subset, encode_kwargs, num_proc=None, **kwargs) -> None:
        """Keep the documents, rows of `id` and "text" or "audio", until they are searched.

        Raises:
            ValueError: they are neither texts nor songs.
        """
        kind_of(self._columns(corpus, task_metadata, "document"), f"the corpus of {task_metadata.name}")
        self.corpus = corpus

    def search(
        self,
        queries,
        *,
        task_metadata,
        hf_split,
        hf_subset,
        top_k: int,
        encode_kwargs,
        top_ranked: Mapping[str, list[str]] | None = None,
        num_proc=None,
        **kwargs,
    ) -> dict[str, dict[str, float]]:
        """Score queries with the documents, of which one are texts and the other songs.

        Args:
            queries: rows of `id` and "text" or "audio".
            top_k: how many documents of each query are returned.
            top_ranked: of each query the ids that are scored, where a task is one of ranking again; else all.
            task_metadata, hf_split, hf_subset, encode_kwargs, num_proc: mteb's.

        Returns:
            query id -> document id -> score, of the best `top_k`.

        Raises:
            ValueError: nothing was indexed, or both are texts, or both songs.
        """
        if self.corpus is None:
            raise ValueError(f"{task_metadata.name}: nothing to search in; call index first")
        sides = [("query", queries), ("document", self.corpus)]
        kinds = [kind_of(self._columns(rows, task_metadata, side), task_metadata.name) for side, rows in sides]
        if kinds[0] == kinds[1]:
            raise ValueError(
                f"{task_metadata.name} compares {kinds[0]} with {kinds[0]}, for which the score of a song and a text "
                "says nothing; use PooledModel"
            )
        texts, songs = (queries, self.corpus) if kinds[0] == "text" else (self.corpus, queries)
        scores = self.score_all(songs, texts)  # (A, B)
        found = _best(scores.T if kinds[0] == "text" else scores, queries["id"], self.corpus["id"], top_k, top_ranked)
        self.corpus = None
        return found

    def score_all(self, songs: Iterable[Mapping], texts: Iterable[Mapping]) -> np.ndarray:
        """Score rows of songs with rows of texts: (A, B) float32. Equal texts get equal scores."""
        embeds = self.embedder.embed_texts([row_text(row) for row in texts])
        distinct, place = torch.unique(embeds, dim=0, return_inverse=True)  # (at most B, [Q,] D), (B,)
        rows = []
        for row in songs:
            tokens = self.song_tokens(row["audio"], f"audio {row['id']}")
            rows.append(self.embedder.score(distinct, tokens).float().cpu()[place.cpu()].numpy())  # (B,)
        return np.stack(rows)

    @staticmethod
    def _columns(rows, task_metadata, side: str) -> list[str]:
        """Return the columns of queries or documents that are of a kind which the task has on this side."""
        wanted = task_metadata.get_modalities(side)
        return [name for name in rows.column_names if name in wanted]


def _best(scores: np.ndarray, queries, documents, top_k: int, top_ranked) -> dict[str, dict[str, float]]:
    """Return the best documents of every row of scores (queries, documents), by their ids."""
    documents = [str(one) for one in documents]
    place = {name: index for index, name in enumerate(documents)}
    found = {}
    for name, row in zip(map(str, queries), scores, strict=True):
        allowed = np.arange(len(row)) if top_ranked is None else np.array([place[one] for one in top_ranked[name]])
        order = allowed[np.argsort(-row[allowed], kind="stable")][:top_k]
        found[name] = {documents[index]: float(row[index]) for index in order}
    return found
