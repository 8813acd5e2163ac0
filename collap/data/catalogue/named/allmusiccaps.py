"""AllMusicCaps: captions made of album reviews, of YouTube tracks (mtg-upf/allmusiccaps, MTG/allmusiccaps); no audio.

A row is a track on a release. `generated_quotes_captions` is a list of texts, or null. `generated_structured_captions`
is an object, or null: a sentence each for music_style, mood, tempo, energy, instrumentation and production_style. A
track on several releases is one recording.

The repository holds two versions of the same rows: `allmusiccaps_v1.jsonl`, which is read where it is there, and
`allmusiccaps_v0.jsonl`, `--dataset_config v0`, in which 4,123 rows have their quotes in what a language model wrapped
them in: lists of lists, objects by attribute, numbers. They are unwrapped as the authors' own script does.
"""

import re
from collections.abc import Iterator

from collap.data.records import NamedSet, Record, youtube_command, youtube_source
from collap.data.set_folder import SetFolder, cell_list

QUOTES, STRUCTURED = "generated_quotes_captions", "generated_structured_captions"
NOTHING = {"", "none", "null", "n/a", "na", "not specified", "unspecified", "unknown"}  # written instead of nothing
PROSE = 25  # characters; a key that is longer and has a space is half of a sentence, of which the value is the rest


def _tables(folder: SetFolder) -> list[str]:
    tables = folder.called("*.jsonl", "*.json", "*.parquet")
    found = [name for name in tables if {"youtube_id"} < folder.columns(name) & {"youtube_id", QUOTES, STRUCTURED}]
    return sorted(found, key=lambda name: (_version(name) != "v1", name))


def _version(table: str) -> str | None:
    """Return `v1` of `allmusiccaps_v1.jsonl`."""
    match = re.search(r"v\d+", table.rpartition("/")[2])
    return match[0] if match else None


def quotes(value) -> list[str]:
    """Return the texts of quotes, whatever they are wrapped in; numbers are none."""
    if isinstance(value, dict):
        parts = [f'{key}": {one}' if _is_prose(key) and isinstance(one, str) else one for key, one in value.items()]
        return [text for part in parts for text in quotes(part)]
    if isinstance(value, (list, tuple)):
        return [text for one in value for text in quotes(one)]
    texts = cell_list(value) if isinstance(value, str) else []
    return [text for text in texts if text.lower().strip(".") not in NOTHING]


def _is_prose(key: str) -> bool:
    return len(key) > PROSE and " " in key


def structured_text(value: dict | None) -> list[str]:
    """Return the sentences of `{"mood": "It is calm.", "tempo": "Slow."}` as one text; none of null."""
    phrases = [text.strip(" .") for text in quotes(value)]
    return [". ".join(phrases) + "."] if phrases else []


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    tracks: dict[tuple[str | None, str], Record] = {}
    for table in _tables(folder):
        version = _version(table)
        for row in folder.rows(table):
            video = str(row["youtube_id"]).strip()
            record = tracks.get((version, video))
            if record is None:
                record = tracks[version, video] = Record(
                    id=video,
                    texts=[],
                    audio=folder.first_audio(video, f"Y{video}"),
                    split="train",
                    config=version,
                    source=youtube_source(video),
                    licence="CC BY-NC-SA 4.0 (captions)",
                    meta={"discogs_releases": []},
                )
            texts = quotes(row.get(QUOTES)) + structured_text(row.get(STRUCTURED))
            record.texts += [text for text in texts if text not in record.texts]
            if row.get("discogs_release_id") is not None:
                record.meta["discogs_releases"].append(str(row["discogs_release_id"]))
    yield from tracks.values()


SET = NamedSet(
    name="allmusiccaps",
    layout="allmusiccaps_v1.jsonl, or a table with youtube_id and generated_quotes_captions, and the audio, ID.wav",
    tables=_tables,
    read=_read,
    get="hf download --repo-type dataset mtg-upf/allmusiccaps --local-dir FOLDER (its terms have to be accepted there)",
    fetch=youtube_command,
    overlapping=True,
)
