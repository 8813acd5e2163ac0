"""VCTK 0.92: sentences read by 110 speakers, recorded by two microphones.

Speaker p315 has no texts, p280 no second microphone (the first is taken), and some recordings of p362 are missing. Many
sentences are read by several speakers: a text may be correct for several recordings. With `sentences=12`
twelve consecutive sentences of a speaker are one recording with one transcript, and each of them a section.
"""

import itertools
import re
from collections.abc import Iterator

from collap.data.records import NamedSet, Record
from collap.data.set_folder import SetFolder

TEXT = re.compile(r"(?:.*/)?txt/(?P<speaker>[ps]\d+)/(?P<id>(?P=speaker)_\d+)\.txt")
SPEAKER = re.compile(r"^(p?\d+|s5)\s+(\d+)\s+([MF])\s*(\S*)\s*(.*)$", re.MULTILINE)


def _tables(folder: SetFolder) -> list[str]:
    return [name for name in folder.called("*.txt") if TEXT.fullmatch(name)]


def _speakers(folder: SetFolder) -> dict[str, dict]:
    """Return what `speaker-info.txt` says of every speaker."""
    found = {}
    for name in folder.called("speaker-info.txt")[:1]:
        for speaker, age, gender, accent, rest in SPEAKER.findall(folder.file(name).read_text(encoding="utf-8")):
            region = re.sub(r"\(.*\)", "", rest).strip()
            found[speaker if speaker[0] in "ps" else f"p{speaker}"] = {
                "age": int(age),
                "gender": gender,
                "accent": accent or None,
                "region": region or None,
            }
    return found


def _sentences(folder: SetFolder, settings: dict) -> Iterator[Record]:
    """Yield one record for each sentence."""
    speakers = _speakers(folder)
    microphones = (settings["microphone"], 3 - settings["microphone"])
    for table in _tables(folder):
        match = TEXT.fullmatch(table)
        text = folder.file(table).read_text(encoding="utf-8").partition("\n")[0].strip()
        names = [f"{match['id']}_mic{number}" for number in microphones]
        audio = folder.first_audio(*names, match["id"])
        yield Record(
            id=match["id"],
            texts=[text] if text else [],
            audio=audio,
            artist=match["speaker"],
            source=f"vctk:{match['id']}",
            licence="CC BY 4.0",
            meta=speakers.get(match["speaker"], {}),
        )


def join_sentences(records: list[Record], seconds: dict[str, float]) -> Record:
    """Join consecutive sentences of a speaker; those without audio or text have been left out.

    Args:
        seconds: length of every file.
    """
    ends = list(itertools.accumulate(seconds[record.audio] for record in records))
    sections = [
        {"label": record.id, "start": start, "end": end, "text": record.texts[0]}
        for record, start, end in zip(records, [0.0, *ends], ends, strict=False)
    ]
    first = records[0]
    return Record(
        id=f"{first.id}-{records[-1].id}",
        texts=[" ".join(record.texts[0] for record in records)],
        audio=tuple(record.audio for record in records),
        artist=first.artist,
        source=f"vctk:{first.id}-{records[-1].id}",
        licence=first.licence,
        sections=sections,
        meta=first.meta,
    )


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    count = settings["sentences"]
    if count < 1 or settings["microphone"] not in (1, 2):
        raise ValueError(f"sentences={count}, microphone={settings['microphone']}; expected 1 or more, and 1 or 2")
    records = _sentences(folder, settings)
    if count == 1:
        yield from records
        return
    records = list(records)
    seconds = folder.seconds(record.audio for record in records if record.audio)
    for _, own in itertools.groupby(records, lambda record: record.artist):
        own = list(own)
        yield from (record for record in own if not (record.audio and record.texts))  # missing
        own = [record for record in own if record.audio and record.texts and seconds[record.audio] > 0]
        for first in range(0, len(own) - count + 1, count):
            yield join_sentences(own[first : first + count], seconds)


SET = NamedSet(
    name="vctk",
    layout="txt/p225/p225_001.txt and wav48_silence_trimmed/p225/p225_001_mic2.flac, ...",
    tables=_tables,
    read=_read,
    get="VCTK-Corpus-0.92.zip (11 GB) of the University of Edinburgh's DataShare, 10283/3443, to be unpacked there",
    settings={"sentences": 1, "microphone": 2},
)
