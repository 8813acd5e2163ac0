"""HarmonixSet: 912 pop tracks with sections, beats and metadata (urinieto/harmonixset); no audio comes with it.

Its texts are FUTGA's captions where `Harmonixset.csv` lies in the folder, and else sentences made of its metadata.
Lines of sections are separated by a space. Nine addresses of videos have notes behind them, which say that the video is
not the track as it was annotated; no video is aligned with the annotations unless it is warped.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from collap.data.records import NamedSet, Record, youtube_command, youtube_source
from collap.data.segment_files import read_segments
from collap.data.set_folder import SetFolder

VIDEO = re.compile(r"v=([\w-]{11})(.*)", re.DOTALL)
COLUMNS = {"File", "Title", "Artist", "Duration", "BPM"}


def _tables(folder: SetFolder) -> list[str]:
    return [name for name in folder.called("metadata.csv") if folder.columns(name) >= COLUMNS][:1]


def _column(folder: SetFolder, table: str, key: str, value: str) -> dict[str, str]:
    """Return one column of a table, by another; empty if there is no such table."""
    return {row[key].strip(): row[value] for name in folder.called(table)[:1] for row in folder.rows(name)}


def _beats(path: Path | None) -> list[list[float]]:
    """Return time, beat in its bar, and bar of every beat."""
    lines = path.read_text(encoding="utf-8").splitlines() if path else ()
    return [[float(cell) for cell in line.split("\t")] for line in lines if line.strip()]


def _sections(folder: SetFolder, path: Path | None, seconds: float) -> list[dict] | None:
    if path is None:
        return None
    try:
        sections = read_segments(path, seconds)
    except ValueError as error:
        folder.problems.append(str(error))
        return None
    return [section | {"label": plain_label(section["label"])} for section in sections]


def plain_label(label: str) -> str:
    """Return `verse` of `verse2` and of `verse_slow`."""
    return re.sub(r"\d+$", "", label.lower().partition("_")[0]) or label


def described(row: dict, sections: list[dict] | None) -> str:
    """Make sentences of what the data set says of a track."""
    meter = f", {row['Time Signature'].replace('|', '/')} time" if row.get("Time Signature") else ""
    kind = row["Genre"] if row.get("Genre") else "Song"
    text = f"{row['Title']} by {row['Artist']}. {kind} at {float(row['BPM']):g} beats per minute{meter}."
    return text + (f" It goes: {', '.join(section['label'] for section in sections)}." if sections else "")


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    captions = _column(folder, "harmonixset.csv", "index", "caption")
    urls = _column(folder, "youtube_urls.csv", "File", "URL")
    scores = _column(folder, "youtube_alignment_scores.csv", "File", "score")
    places = {"segments": {}, "beats_and_downbeats": {}}
    for name in folder.called("*.txt"):
        path = folder.file(name)
        if path.parent.name in places:
            places[path.parent.name][path.stem] = path
    for row in folder.rows(_tables(folder)[0]):
        file, seconds = row["File"].strip(), float(row["Duration"])
        sections = _sections(folder, places["segments"].get(file), seconds)
        video = VIDEO.search(urls.get(file, ""))
        yield Record(
            id=file,
            texts=[captions[file].strip() if file in captions else described(row, sections)],
            audio=folder.first_audio(file, video and video[1]),
            artist=row["Artist"],
            source=youtube_source(video[1]) if video else f"harmonixset:{file}",
            licence="MIT (annotations)",
            sections=sections,
            meta={
                "title": row["Title"],
                "genre": row.get("Genre") or None,
                "bpm": float(row["BPM"]),
                "track_seconds": seconds,
                "beats": _beats(places["beats_and_downbeats"].get(file)),
                "video_note": (video and video[2].strip(" ()")) or None,
                "video_alignment": float(scores[file]) if file in scores else None,
            },
        )


def _fetch(record: Record) -> str | None:
    return youtube_command(record) if record.source.startswith("youtube:") else None


SET = NamedSet(
    name="harmonixset",
    layout="dataset/metadata.csv, dataset/segments/ and the audio, 0001_12step.mp3 or VIDEO.wav",
    tables=_tables,
    read=_read,
    get="git clone the repository urinieto/harmonixset into it; FUTGA's Harmonixset.csv beside it gives long captions",
    fetch=_fetch,
)
