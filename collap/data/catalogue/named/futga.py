"""FUTGA: long captions of whole songs, those that the paper trains and evaluates on (JoshuaW1997/FUTGA); no audio.

Five tables with the columns `index` and `caption`. The captions have headers of sections such as `**0-18% - Intro:**`
or `**0-16:** Intro`: percent of what the captioner heard. It probably heard the first 180 s, which the authors do not
say: `window_seconds` sets it, 0 for the whole file. A caption without headers has no sections.
"""

import re
from collections.abc import Iterator

from collap.data.records import NamedSet, Record, youtube_command, youtube_source
from collap.data.set_folder import SetFolder

# Table -> config and split of its card; where the card has no split, "test", because the paper evaluates there.
TABLES = {
    "audioset-train.csv": ("AudioSet", "train"),
    "audioset-eval.csv": ("AudioSet", "test"),
    "musiccaps.csv": ("MusicCaps", "test"),
    "songdescriber.csv": ("SongDescriber", "test"),
    "harmonixset.csv": ("HarmonixSet", "test"),
}
SOURCES = {"SongDescriber": "jamendo:{}", "HarmonixSet": "harmonixset:{}"}  # of the others a YouTube video
HEADER = re.compile(
    r"^\s*(?:[-*#]+\s+)?\*\*\s*(\d{1,3})\s*%?\s*[-\u2013\u2014]\s*(\d{1,3})\s*%?\s*(?:[-\u2013\u2014:]\s*([^*\n]*?))?\s*:?\s*\*\*"
    r"[ \t]*:?[ \t]*([^\n]*)$",
    re.MULTILINE,
)


def percent_sections(caption: str, seconds: float) -> list[dict] | None:
    """Return the sections of a caption, in the order of its headers.

    Args:
        seconds: what 100 percent are.

    Returns:
        Dicts with label, start and end in seconds, and text, which is the header's label and what follows up to the
        next header; None if no header has a span above 0 within 100 percent.
    """
    headers, sections = list(HEADER.finditer(caption)), []
    for place, header in enumerate(headers):
        first, last = int(header[1]), int(header[2])
        if not first < last <= 100:
            continue
        stop = headers[place + 1].start() if place + 1 < len(headers) else len(caption)
        label = (header[3] or header[4] or "").strip(" :*")
        text = " ".join(re.sub(r"[*#]+|^\s*[-•]\s*", " ", caption[header.end() : stop], flags=re.MULTILINE).split())
        sections.append(
            {
                "label": label or f"{first}-{last} %",
                "start": seconds * first / 100,
                "end": seconds * last / 100,
                "text": f"{label}: {text}" if label and text else label or text or None,
            }
        )
    return sections or None


def _tables(folder: SetFolder) -> list[str]:
    return [name for name in folder.called_once(*TABLES) if folder.columns(name) >= {"index", "caption"}]


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    rows = []
    for table in _tables(folder):
        config, split = TABLES[table.rpartition("/")[2].lower()]
        for row in folder.rows(table):
            name = re.sub(r"^(\d+)\.0$", r"\1", str(row["index"]).strip())  # a column of numbers with a gap
            rows.append((config, split, name, folder.first_audio(name, f"Y{name}"), row["caption"]))
    seconds = folder.seconds(audio for *_, audio, _ in rows if audio)
    window = settings["window_seconds"]
    for config, split, name, audio, caption in rows:
        heard = seconds.get(audio, 0.0)
        heard = min(heard, window) if window else heard
        source = SOURCES.get(config, youtube_source("{}")).format(name.removesuffix(".wav"))
        yield Record(
            id=name,
            texts=[caption.strip()] if caption and caption.strip() else [],
            audio=audio,
            split=split,
            config=config,
            source=source,
            licence="Apache-2.0 (captions)",
            sections=percent_sections(caption, heard) if heard and caption else None,
            meta={"window_seconds": heard or None},
        )


def _fetch(record: Record) -> str | None:
    return youtube_command(record) if record.source.startswith("youtube:") else None


SET = NamedSet(
    name="futga",
    layout="AudioSet-Train.csv, AudioSet-Eval.csv, MusicCaps.csv, SongDescriber.csv or Harmonixset.csv "
    "and the audio of whole tracks, called by its id",
    tables=_tables,
    read=_read,
    get="hf download --repo-type dataset JoshuaW1997/FUTGA --local-dir FOLDER",
    fetch=_fetch,
    settings={"window_seconds": 180.0},
    paper="CoLLAP",
)
