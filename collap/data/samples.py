"""Turn rows of audio and text into samples to train on: an audio, or what was stored of it, and one of its texts.

A row has an audio column (bytes or a path) and a text column (one text or a list of texts that all describe the audio).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np
import torch

from processing.audio_collap import HOP_LENGTH, SAMPLING_RATE, num_kaldi_frames
from processing.decode_audio import AudioFileError
from processing.embed_audio import check_samples
from processing.feature_extraction_collap import MIN_SECONDS

from .feature_cache import CACHED_COLUMN, load_cached_features
from .guarded_reading import load_audio, load_crop
from .places import name_within
from .rows import audio_paths, audio_source, content_digest, naming_row, row_name, row_songs, row_texts
from .sections import SectionSettings, cut_stored, draw_order, draw_passage, join_pieces, section_times
from .token_cache import TokenCache

# Files that are tried in place of one that cannot be read: more than this many in a row is a broken data set.
MAX_REPLACEMENTS = 20
WITHOUT_SECTIONS = SectionSettings()


@dataclass
class AudioTextSample:
    """Hold one audio and one of its texts.

    Attributes:
        text: the text, or a list of its sentences.
        audio: as in `AudioTextBatch.audios`.
        name: row and file, for messages.
        seconds: of audio.
        skipped: the files that it stands in for, with the reasons.
        song: what its song is told by; None where that is not known.
        spans: start and end of every sentence in seconds of this audio, NaN where that is not known; None unless asked
            for.
        order: which sentence stands at every place of a text in another order, -1 where there is none; None unless
            asked for.
    """

    text: str | list[str]
    audio: dict[str, torch.Tensor]
    name: str
    seconds: float
    skipped: list[tuple[str, str]] = field(default_factory=list)
    song: str | None = None
    spans: list[tuple[float, float]] | None = None
    order: list[int] | None = None


def sample_generator(seed: int, epoch: int, audio: dict | None) -> np.random.Generator:
    """Make the generator of a sample's random choices in an epoch.

    The sample is known by the name that its data set has for it, or else by its bytes (or their `digest`, where they
    are not at hand), so that it is the same one in a table and in a stream, in any place, and for any number of workers
    and processes.
    """
    audio = audio or {}
    if audio.get("path"):
        digest = content_digest(name_within(audio["path"]).encode())
    else:
        digest = audio.get("digest") or content_digest(audio.get("bytes") or b"")
    return np.random.default_rng((seed, epoch, int.from_bytes(bytes.fromhex(digest), "little")))


@dataclass
class SampleReader:
    """Decode one row of audio and text; see [`AudioTextDataset`] for the arguments."""

    feature_extractor: object
    audio_column: str
    text_column: str
    crop_seconds: float | None = None
    seed: int = 0
    features_in_worker: bool = True
    sections: SectionSettings = WITHOUT_SECTIONS

    def __post_init__(self):
        if self.crop_seconds is not None and not self.crop_seconds >= MIN_SECONDS:
            raise ValueError(f"crop_seconds must be at least {MIN_SECONDS}, found {self.crop_seconds}")

    def read(
        self, example: dict, row: int | str, epoch: int, stored: dict[str, torch.Tensor] | None = None
    ) -> AudioTextSample:
        """Read the sample of a row in an epoch; `stored` are its inputs if its audio need not be read.

        Raises:
            AudioFileError: the audio cannot be read; does not name the row.
            ValueError: the row has no text, or a section without times; names the row.
        """
        audio = example[self.audio_column]
        texts = row_texts(example[self.text_column], row)
        generator = sample_generator(self.seed, epoch, audio)
        text = texts[int(generator.integers(len(texts)))]
        sections = example.get(self.sections.column) or ()
        section_times(sections, f"{row_name(row, audio)}: {self.sections.column}")  # says here if there is one without
        passage = draw_passage(text, sections, self.sections, epoch, generator)
        order = draw_order(passage.sentences, generator) if self.sections.order_negatives else None
        shifts = [0.0]
        if stored is not None:
            if passage.pieces is not None:
                stored, shifts = cut_stored(stored, passage.pieces, *self._token_grid())
            inputs, seconds = stored, self._stored_seconds(stored)
        else:
            samples, shifts = self._samples(audio_source(audio), passage.pieces, generator)
            inputs, seconds = {"waveform": torch.from_numpy(samples)}, len(samples) / SAMPLING_RATE
            if self.features_in_worker:
                inputs = self.feature_extractor.segment_features(inputs["waveform"])
        sample = AudioTextSample(passage.text, inputs, row_name(row, audio), seconds, order=order)
        if self.sections.tell_spans:
            sample.spans = passage.heard_spans(shifts)
        return sample

    def _samples(
        self, source: bytes | str, pieces: list[tuple[float, float]] | None, generator: np.random.Generator
    ) -> tuple[np.ndarray, list[float]]:
        """Read a song, pieces of it or a crop: samples, and of every piece by how many seconds it is heard earlier."""
        shifts = [0.0]
        if pieces is None and self.crop_seconds is not None:
            samples = load_crop(source, self.crop_seconds, generator.uniform())
        elif pieces is not None and len(pieces) == 1:
            (start, stop), shifts = pieces[0], [pieces[0][0]]
            samples = load_audio(source, start=start, stop=stop)
        else:
            samples = load_audio(source)
        check_samples(samples, source, SAMPLING_RATE)  # a crop is short only if the audio is
        if pieces is not None and len(pieces) > 1:
            samples, shifts = join_pieces(samples, pieces, SAMPLING_RATE)
        return samples, shifts

    def _stored_seconds(self, stored: dict[str, torch.Tensor]) -> float:
        """Return seconds of audio by its tokens, to 0.16 s; a segment is a little longer than its whole tokens."""
        per_segment, segment_seconds, token_seconds = self._token_grid()
        mask = stored.get("audio_token_mask")
        tokens = int(mask.sum()) if mask is not None else len(stored["fused_tokens"])
        segments, rest = divmod(tokens, per_segment)
        return segments * segment_seconds + rest * token_seconds

    def _token_grid(self) -> tuple[int, float, float]:
        """Return the tokens of a segment, its seconds, and those of a token."""
        patch_size, segment_seconds = self.feature_extractor.patch_size, self.feature_extractor.segment_seconds
        per_segment = num_kaldi_frames(segment_seconds) // patch_size
        return per_segment, segment_seconds, patch_size * HOP_LENGTH / SAMPLING_RATE


class AudioTextDataset(torch.utils.data.Dataset):
    """Give rows as [`AudioTextSample`]s; audio that was stored in another form is not read.

    The choice of text, and of the crop if there is one, depends on `seed`, the epoch and the audio's name alone, see
    [`sample_generator`].

    A `DataLoader` that asks for whole batches gets another row in place of one whose file cannot be read. Which one
    depends on `seed`, the epoch, the row and the other rows of the batch.

    Args:
        dataset: from [`open_dataset`], perhaps after [`cache_features`].
        feature_extractor: a [`CoLLAPFeatureExtractor`].
        audio_column, text_column: their names.
        crop_seconds: length of a random crop, at least 0.1; None for the whole audio.
        seed: of the random choices.
        features_in_worker: False for waveforms, whose features the training device computes.
        token_cache: the fused tokens (T, M) of every row, to be read in place of its audio: a `TokenCache`, or a list.
        song_column: names the song of every row; None where a song is told by its audio.
        sections: what is done by the sections of a song.

    Attributes:
        songs: what every row's song is told by, see `row_songs`.

    Raises:
        AudioFileError, ValueError: from a row; name it, and its file.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        feature_extractor,
        audio_column: str,
        text_column: str,
        crop_seconds: float | None = None,
        seed: int = 0,
        features_in_worker: bool = True,
        token_cache: Sequence[torch.Tensor] | Mapping[int, torch.Tensor] | None = None,
        song_column: str | None = None,
        sections: SectionSettings = WITHOUT_SECTIONS,
    ):
        if crop_seconds is not None and CACHED_COLUMN in dataset.column_names:
            raise ValueError("crop_seconds needs the audio, but the features of whole songs were cached; choose one")
        if crop_seconds is not None and token_cache is not None:
            raise ValueError("crop_seconds needs the audio, but the token cache holds whole songs; choose one")
        self.reader = SampleReader(
            feature_extractor, audio_column, text_column, crop_seconds, seed, features_in_worker, sections
        )
        self.dataset, self.token_cache = dataset, token_cache
        self.songs = row_songs(dataset, audio_column, song_column)
        self.paths = None
        if token_cache is not None or CACHED_COLUMN in dataset.column_names:
            needed = [text_column, *([CACHED_COLUMN] if token_cache is None else []), *filter(None, [sections.column])]
            self.paths, self.light = audio_paths(dataset, audio_column), dataset.select_columns(needed)
        # In shared memory, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int):
        """Set the epoch, before its first batch is asked for; workers that outlive an epoch see it too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> AudioTextSample:
        example = self._example(row)
        with naming_row(row, example[self.reader.audio_column]):
            return self._read(example, row)

    def __getitems__(self, rows: list[int]) -> list[AudioTextSample]:
        """Return the samples of a batch, other rows in place of those that cannot be read."""
        taken = set(rows)
        return [self._read_or_replace(row, taken) for row in rows]

    def _example(self, row: int) -> dict:
        """Return a row; if its audio is not needed, with a name in place of the bytes, or with their digest."""
        if self.paths is None:
            return self.dataset[row]
        audio = {"path": self.paths[row], "bytes": None}
        if audio["path"] is None and isinstance(self.token_cache, TokenCache):
            audio["digest"] = self.token_cache.rows[row]["digest"]
        elif audio["path"] is None:
            audio = self.dataset[row][self.reader.audio_column]
        return {**self.light[row], self.reader.audio_column: audio}

    def _read(self, example: dict, row: int) -> AudioTextSample:
        stored = None
        if self.token_cache is not None:
            stored = {"fused_tokens": self.token_cache[row]}
        elif CACHED_COLUMN in example:
            stored = load_cached_features(example)
        sample = self.reader.read(example, row, int(self._epoch), stored)
        sample.song = self.songs[row]
        return sample

    def _read_or_replace(self, first: int, taken: set[int]) -> AudioTextSample:
        """Read the first row that can be read, beginning with `first`; add those tried to `taken`."""
        skipped, row = [], first
        while True:
            example = self._example(row)
            try:
                sample = self._read(example, row)
            except AudioFileError as error:
                skipped.append((row_name(row, example[self.reader.audio_column]), str(error)))
            else:
                sample.skipped = skipped
                return sample
            if len(skipped) > MAX_REPLACEMENTS or len(taken) >= len(self):
                raise no_replacement(skipped)
            blocked = self._with_their_songs(taken)
            generator = np.random.default_rng((self.reader.seed, int(self._epoch), first, len(skipped)))
            row = int(generator.integers(len(self) - len(blocked)))
            for other in sorted(blocked):  # the row-th of those that are free
                row += other <= row
            taken.add(row)

    def _with_their_songs(self, rows: set[int]) -> set[int]:
        """Return some rows with all others of their songs; the rows alone if that were all there are."""
        songs = {self.songs[row] for row in rows}
        found = {row for row, song in enumerate(self.songs) if song in songs}
        return found if len(found) < len(self) else rows


def no_replacement(skipped: list[tuple[str, str]]) -> AudioFileError:
    """Return the error for files that cannot be read, and no others in their place."""
    named = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
    return AudioFileError(
        f"{named}; a batch met {len(skipped)} files that cannot be read and no row to stand in for the last one: "
        "repair or remove them"
    )
