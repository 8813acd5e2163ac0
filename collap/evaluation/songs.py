"""The songs of a data set and the texts that describe them, and which texts a model can tell apart.

Dimensions: `A` audios, `B` texts.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from collap.data.rows import row_texts, song_name

from .metrics import ranks_of_correct

TEXTS_AT_A_TIME = 256  # tokenised


@dataclass
class RetrievalSet:
    """Hold songs and the texts that describe them.

    Attributes:
        rows: (A,) data set row of every song.
        names: (A,) label of every song.
        texts: (B,) all texts.
        song_of_text: (B,) index of the song that each text was written for.
    """

    rows: list[int]
    names: list[str]
    texts: list[str]
    song_of_text: list[int]

    def songs_of_texts(self) -> list[list[int]]:
        """Return for every text the songs that it describes: those that have a text in the same words."""
        songs = defaultdict(set)
        for text, song in zip(self.texts, self.song_of_text, strict=True):
            songs[_words(text)].add(song)
        return [sorted(songs[_words(text)]) for text in self.texts]

    def subset(self, songs: Sequence[int]) -> "RetrievalSet":
        """Return only these songs, in this order, with their texts."""
        place = {song: index for index, song in enumerate(songs)}
        kept = [text for text, song in enumerate(self.song_of_text) if song in place]
        return RetrievalSet(
            [self.rows[song] for song in songs],
            [self.names[song] for song in songs],
            [self.texts[text] for text in kept],
            [place[self.song_of_text[text]] for text in kept],
        )


def _words(text: str) -> str:
    return " ".join(text.split())


def collect_songs(dataset: Dataset, text_column: str, song_column: str | None) -> RetrievalSet:
    """Collect songs and texts; no other column, and so no audio, is read.

    Rows with the same `song_column` are one song (the audio of the first is used); without it each row is one.

    Raises:
        ValueError: names a row without a song or without a text.
    """
    songs = RetrievalSet([], [], [], [])
    index_of: dict[str, int] = {}
    columns = [text_column] if song_column is None else list({text_column: None, song_column: None})
    for row, example in enumerate(dataset.select_columns(columns)):
        name = f"row {row}"
        if song_column:
            name = song_name(example[song_column], row, song_column)
        if name not in index_of:
            index_of[name] = len(songs.rows)
            songs.rows.append(row)
            songs.names.append(name)
        texts = row_texts(example[text_column], row)
        songs.texts.extend(texts)
        songs.song_of_text.extend([index_of[name]] * len(texts))
    return songs


def first_read_alike(processor, texts: Sequence[str]) -> list[int]:
    """Return for every text (B,) the index of the first one of the same tokens, as the text tower reads them."""
    first: dict[tuple, int] = {}
    found = []
    for start in range(0, len(texts), TEXTS_AT_A_TIME):
        inputs = processor(text=list(texts[start : start + TEXTS_AT_A_TIME]))
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
            lengths = mask.sum(-1).flatten()  # of one text, or of its sentences
            key = *ids[mask].tolist(), *lengths[lengths > 0].neg().tolist()
            found.append(first.setdefault(key, len(found)))
    return found


def count_shared_texts(songs: RetrievalSet, processor) -> dict[str, int]:
    """Count the texts that do not name one song, as `collap.evaluation.results.Results` holds the counts.

    Returns:
        texts_of_several_songs: texts in the same words as a text of another song.
        texts_read_alike: texts in other words, but of the same tokens, as a text of another song.
    """
    described = songs.songs_of_texts()
    alike = defaultdict(set)
    first = first_read_alike(processor, songs.texts)
    for text, song in zip(first, songs.song_of_text, strict=True):
        alike[text].add(song)
    return {
        "texts_of_several_songs": sum(len(own) > 1 for own in described),
        "texts_read_alike": sum(not alike[text] <= {*own} for text, own in zip(first, described, strict=True)),
    }


def ranks_by_direction(scores: np.ndarray, songs: RetrievalSet) -> dict[str, tuple[list[np.ndarray], int, list[str]]]:
    """Return for both directions the ranks of each query's correct items, the size of the pool, and the query's song.

    A text that describes several songs in the same words is correct for all of them.

    Args:
        scores: (A, B).
    """
    songs_of_texts = songs.songs_of_texts()
    texts_of_songs = [[] for _ in songs.names]
    for text, described in enumerate(songs_of_texts):
        for song in described:
            texts_of_songs[song].append(text)
    text_names = [songs.names[song] for song in songs.song_of_text]
    return {
        "text_to_audio": (ranks_of_correct(scores.T, songs_of_texts), len(scores), text_names),
        "audio_to_text": (ranks_of_correct(scores, texts_of_songs), scores.shape[1], songs.names),
    }
