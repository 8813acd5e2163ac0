"""Write a data set that `load_dataset(OUT)` and train.py read: parquet shards, with the audio in them or beside them.

    OUT/data/train-00000-of-00003.parquet     rows as `FEATURES`
    OUT/data/audio/ID.mp3                     links to the tracks, where the audio is not embedded

The same tracks give the same bytes.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from collap.card_text import without_local_paths
from collap.data.audio_column import AUDIO_TYPE
from collap.data.audio_parts import audio_part, file_of, part_size, with_span
from collap.data.records import SECTIONS
from collap.data.set_folder import AUDIO_SUFFIXES
from collap.files import write_folder

from .listening import is_part
from .selection import SPLITS, Selection, usable_captions
from .state import State
from .tracks import Caption, Track

SHARD_BYTES = 500 * 10**6
GROUP_BYTES = 100 * 10**6  # of a row group, which a reader holds as a whole
GROUP_ROWS = 1000
LINKS = "audio"
COLUMNS = {
    "audio": (AUDIO_TYPE, "the track: bytes of its file, or of 16 kHz FLAC where it is a part of one; or its path"),
    "song_id": (pa.string(), "its name"),
    "text": (
        pa.list_(pa.string()),
        "long captions: a line on the whole track, and one for each section with its times",
    ),
    "sections": (SECTIONS, "label, start and end in seconds, and text of every section"),
    "seconds": (pa.float64(), "length"),
    "start": (pa.float64(), "where it begins in the recording that it was cropped from; null if it is whole"),
    "end": (pa.float64(), "where it ends there"),
    "artist": (pa.string(), "who made it, as its list or its file says"),
    "source": (pa.string(), "where the recording is known, such as `youtube:ID`"),
    "licence": (pa.string(), "of the track, as its list or its file says"),
    "captioner": (pa.list_(pa.string()), "who wrote each text: `template`, `columns`, or a model with its version"),
    "captioner_licence": (pa.list_(pa.string()), "licence of each captioner"),
    "score": (
        pa.list_(pa.float64()),
        "how well a model finds that each text fits the track; null if none was asked",
    ),
    "boundaries": (pa.string(), "what found the sections: `annotation`, `caption` or `audio`"),
    "tags": (pa.string(), "what else its list or its file says, as JSON"),
    "measures": (pa.string(), "what was measured, as JSON: levels, tempo in BPM, key, loudness by section"),
}
AUDIO_FEATURE = datasets.Audio()


def schema() -> pa.Schema:
    """Return the types of the columns, with what tells `datasets` that one of them is audio."""
    plain = pa.schema({name: kind for name, (kind, _) in COLUMNS.items()})
    features = datasets.Features.from_arrow_schema(plain) | {"audio": AUDIO_FEATURE}
    return datasets.Features({name: features[name] for name in COLUMNS}).arrow_schema


def write_data(folder: Path, state: State, chosen: Selection, embed: bool) -> dict[str, int]:
    """Write the shards of all splits to a folder, in one go; return the number of shards of each.

    Args:
        embed: whether the audio goes into the shards; or else links to the tracks are made, and their paths go there.

    Raises:
        OSError: a track is not there any more, or the disk is full.
    """
    counts = {}

    def write(place: Path) -> None:
        if not embed:
            (place / LINKS).mkdir()
        for split in SPLITS:
            names = [name for name, one in chosen.splits.items() if one == split]
            if names:
                counts[split] = write_split(place, split, state, names, chosen.least_score, embed)

    write_folder(folder, write)
    return counts


def write_split(
    folder: Path, split: str, state: State, names: Sequence[str], least_score: float | None, embed: bool
) -> int:
    """Write the shards of a split; return how many there are. A row group is held at a time."""
    sizes = [audio_size(track, state) if embed else 0 for track in state.all(names)]
    shards = list(cut_by_size(sizes, SHARD_BYTES, len(names)))
    for number, shard in enumerate(shards):
        path = folder / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
        with pq.ParquetWriter(path, schema(), compression="zstd", write_page_index=True) as writer:
            for group in cut_by_size(sizes[shard.start : shard.stop], GROUP_BYTES, GROUP_ROWS):
                members = names[shard.start + group.start : shard.start + group.stop]
                rows = [row_of(track, state, least_score, embed, folder) for track in state.all(members)]
                writer.write_table(pa.Table.from_pylist(rows, schema()))
    return len(shards)


def cut_by_size(sizes: Sequence[int], most: int, most_items: int) -> Iterator[range]:
    """Cut items into consecutive ranges of at most `most` bytes, or one item, and `most_items` items."""
    start, total = 0, 0
    for place, size in enumerate(sizes):
        if place > start and (total + size > most or place - start >= most_items):
            yield range(start, place)
            start, total = place, 0
        total += size
    if start < len(sizes):
        yield range(start, len(sizes))


def audio_size(track: Track, state: State) -> int:
    """Return the bytes of a track's audio as it is embedded."""
    return (state.audio / f"{track.id}.flac").stat().st_size if is_part(track) else part_size(track.audio)


def audio_suffix(path: str) -> str:
    """Return `.mp3` and the like; none where a file is called otherwise."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if suffix in AUDIO_SUFFIXES else ""


def embedded_audio(track: Track, state: State) -> dict:
    """Return the audio of a track as bytes: those of its file, or of what is kept of it."""
    if is_part(track):
        return {"bytes": (state.audio / f"{track.id}.flac").read_bytes(), "path": f"{track.id}.flac"}
    content = audio_part(track.audio).source
    if not isinstance(content, bytes):
        content = Path(content).read_bytes()
    return {"bytes": content, "path": f"{track.id}{audio_suffix(track.audio)}"}


def linked_audio(track: Track, folder: Path) -> dict:
    """Return the audio of a track as a path within the data set, and make the link that it leads to."""
    file = file_of(track.audio)
    inside = "" if file == track.audio else track.audio.removeprefix(file.removesuffix(".tar")).removeprefix(".tar")
    part = audio_part(track.audio)
    name = f"{track.id}{os.path.splitext(file)[1]}"
    os.symlink(os.path.abspath(file), folder / LINKS / name)
    path = f"{LINKS}/{name}{inside.partition('#t=')[0]}"
    if track.crop is not None or part.stop is not None:
        start, stop = track.crop or (0.0, track.seconds)
        path = with_span(path, part.start + start, part.start + stop)
    return {"bytes": None, "path": path}


def row_of(track: Track, state: State, least_score: float | None, embed: bool, folder: Path) -> dict:
    """Return the row of a track."""
    kept = usable_captions(track, least_score)
    start, end = track.crop or (None, None)
    return {
        "audio": embedded_audio(track, state) if embed else linked_audio(track, folder),
        "song_id": track.id,
        "text": [text for _, text, _ in kept],
        "sections": row_sections(track, [caption for caption, _, _ in kept]),
        "seconds": track.seconds,
        "start": start,
        "end": end,
        "artist": track.artist,
        "source": track.source,
        "licence": track.licence,
        "captioner": [without_local_paths(caption.captioner) for caption, _, _ in kept],
        "captioner_licence": [caption.licence for caption, _, _ in kept],
        "score": [caption.score for caption, _, _ in kept],
        "boundaries": track.boundaries,
        "tags": json.dumps(track.tags, ensure_ascii=False, sort_keys=True),
        "measures": json.dumps(track.measures, sort_keys=True),
    }


def row_sections(track: Track, captions: Iterable[Caption]) -> list[dict]:
    """Return the sections of a row: those that the first caption with sections names, else those of the track."""
    named = next((one.sections for one in captions if one.sections), track.sections or [])
    return [{"label": one.label, "start": one.start, "end": one.end, "text": one.text} for one in named]
