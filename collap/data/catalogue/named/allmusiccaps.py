"""AllMusicCaps: captions made of album reviews, of YouTube tracks (mtg-upf/allmusiccaps); no audio comes with it.

A row is a track on a release: `generated_quotes_captions`, a list, and `generated_structured_captions`, one phrase for
mood, tempo and so on; either may be null. In v0 these fields are also texts that hold a list or an object, and ids
numbers; v1 is clean. A track on several releases is one recording.
"""

import json
from collections.abc import Iterator

from collap.data.records import NamedSet, Record, youtube_command, youtube_source
from collap.data.set_folder import SetFolder, cell_list

QUOTES, STRUCTURED = "generated_quotes_captions", "generated_structured_captions"


def _tables(folder: SetFolder) -> list[str]:
    tables = folder.called("*.jsonl", "*.json", "*.parquet")
    return [name for name in tables if {"youtube_id"} < folder.columns(name) & {"youtube_id", QUOTES, STRUCTURED}]


def structured_text(value: str | dict | list | None) -> list[str]:
    """Return one text of a structured caption, `{"mood": "calm", "tempo": "slow"}`; none of an empty one."""
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return cell_list(value)
    if not isinstance(value, dict):
        return cell_list(value)
    phrases = [", ".join(cell_list(phrase)).strip(" .") for phrase in value.values()]
    return [". ".join(phrase for phrase in phrases if phrase) + "."] if any(phrases) else []


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    tracks: dict[tuple[str, str], Record] = {}
    for table in _tables(folder):
        stem = table.rpartition("/")[2].partition(".")[0].partition("-")[0]
        split = {"validation": "validation", "test": "test"}.get(stem, "train")
        for row in folder.rows(table):
            video = str(row["youtube_id"]).strip()
            record = tracks.get((split, video))
            if record is None:
                record = tracks[split, video] = Record(
                    id=video,
                    texts=[],
                    audio=folder.first_audio(video, f"Y{video}"),
                    split=split,
                    source=youtube_source(video),
                    licence="CC BY-NC-SA 4.0 (captions)",
                    meta={"discogs_releases": []},
                )
            texts = cell_list(row.get(QUOTES)) + structured_text(row.get(STRUCTURED))
            record.texts += [text for text in texts if text not in record.texts]
            if row.get("discogs_release_id") is not None:
                record.meta["discogs_releases"].append(str(row["discogs_release_id"]))
    yield from tracks.values()


SET = NamedSet(
    name="allmusiccaps",
    layout="its .jsonl with youtube_id and generated_quotes_captions or generated_structured_captions, and ID.wav",
    tables=_tables,
    read=_read,
    get="hf download --repo-type dataset mtg-upf/allmusiccaps --local-dir FOLDER (its terms have to be accepted there)",
    fetch=youtube_command,
)
