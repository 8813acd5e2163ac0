"""Say what a data set holds: splits, hours, texts, what of it cannot be used, and what it shares with others.

`pairs` counts texts with the audio that they describe; a recording with five captions gives five. Recordings are
counted once, however many rows name them.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import datasets
from tqdm.auto import tqdm

from collap.data.catalogue import NAMES, Request, all_splits, find_entry
from collap.data.catalogue.named import SETS
from collap.data.catalogue.named_sets import read_records
from collap.data.check_report import COMMANDS_SHOWN, Checked, SplitReport, mean_tokens
from collap.data.guarded_reading import Source, header_seconds
from collap.data.leaks import (
    is_flagged,
    leaks_by_audio,
    leaks_by_flag,
    leaks_by_id,
    named_sources,
    neighbours,
    note_source,
)
from collap.data.records import SCHEMA, NamedSet, Record
from collap.data.rows import audio_source, check_column, row_name, row_songs, row_texts
from collap.data.set_folder import SetFolder
from collap.data.sources import open_dataset
from collap.files import nearest
from processing.decode_audio import AudioFileError

Audio = dict[str, tuple[str, tuple[Source, ...]]]  # recording -> its name, and its files
COLUMNS = {name: str(kind) for name, kind in datasets.Features.from_arrow_schema(SCHEMA).items()}  # of named sets


@dataclass(frozen=True)
class Item:
    """Hold a row of a table, or a record of a named data set, as it is looked at.

    Attributes:
        part: the split that it is of.
        recording: what its recording is told by.
        name: for messages, and for the list of what is missing.
        sources: its audio, one file after the other; none where it is missing.
        problems: what is known to be wrong with it.
    """

    part: str
    recording: str
    name: str
    sources: tuple[Source, ...]
    texts: list[str]
    problems: tuple[str, ...] = ()


def split_names(source: str, config_name: str | None = None, revision: str | None = None) -> list[str]:
    """Return the names of the splits of a data set, as `open_dataset` takes them.

    Raises:
        FileNotFoundError: there is no such file, folder or Hub data set.
        ValueError: a folder holds none.
    """
    found = all_splits(Request(source, config_name=config_name, revision=revision))
    if not found:
        raise ValueError(
            f"{source}: no data set; expected metadata.jsonl, parquet shards or a folder of save_to_disk, "
            "or song.txt beside song.mp3"
        )
    return found


def row_items(dataset: datasets.Dataset, split: str, audio_column: str, text_column: str) -> Iterator[Item]:
    """Yield every row of an opened split."""
    recordings = row_songs(dataset, audio_column)
    for row, example in enumerate(dataset.select_columns([audio_column, text_column])):
        texts, problems, sources = [], [], ()
        try:
            texts = row_texts(example[text_column], row)
        except ValueError as error:
            problems.append(str(error))
        name = row_name(row, example[audio_column])
        try:
            sources = (audio_source(example[audio_column]),)
        except AudioFileError as error:
            problems.append(f"{name}: {error}")
        yield Item(split, recordings[row], name, sources, texts, tuple(problems))


def record_items(records: Iterable[Record], folder: SetFolder) -> Iterator[Item]:
    """Yield every record of a named data set."""
    for record in records:
        sources = tuple(map(folder.whole_path, record.files))
        problems = () if record.texts else (f"{record.id}: has no text",)
        recording = f"{record.id} {record.audio}" if record.files else record.id
        yield Item(record.part, recording, record.id, sources, record.texts, problems)


def look_at(items: Iterable[Item], columns: dict[str, dict[str, str]]) -> tuple[Checked, Audio]:
    """Read the header of every recording once, and count: those of several splits once in each, and once over all.

    Args:
        columns: split -> name and type of each of its columns.

    Returns:
        What was found, and the name and audio of every recording that can be read.
    """
    checked = Checked({name: SplitReport(0, one) for name, one in columns.items()})
    seconds: dict[str, float | str] = {}  # of every recording that is there, or why it cannot be read
    seen: dict[str, set[str]] = {}  # split -> its recordings
    audio: Audio = {}
    for item in tqdm(items, desc="rows", disable=None):
        if item.part not in seen:
            seen[item.part] = set()
            checked.splits.setdefault(item.part, SplitReport(0, columns.get(item.part, COLUMNS)))
        report, own = checked.splits[item.part], seen[item.part]
        is_new = not any(item.recording in others for others in seen.values())
        is_new_here = item.recording not in own
        own.add(item.recording)
        if item.sources and is_new:
            seconds[item.recording] = _measure(item.sources)
        length = seconds.get(item.recording, "")
        is_found = isinstance(length, float)
        if is_found:
            audio.setdefault(item.recording, (item.name, item.sources))
        report.rows += 1
        report.problems += [*item.problems, *([f"{item.name}: {length}"] if not is_found and length else [])]
        report.totals.add(item.name, item.texts, length if is_found else None, is_new_here)
        checked.totals.add(item.name, item.texts, length if is_found else None, is_new)
    return checked, audio


def _measure(sources: tuple[Source, ...]) -> float | str:
    """Return the seconds of a recording; else why it cannot be read."""
    try:
        return float(sum(map(header_seconds, sources)))
    except AudioFileError as error:
        return str(error)


def check_rows(source: str, options) -> tuple[Checked, Audio]:
    """Look at a data set of any kind but a named one."""
    place = {"config_name": options.dataset_config, "revision": options.revision}
    opened = {
        name: open_dataset(source, name, options.audio_column, None, **place) for name in split_names(source, **place)
    }
    columns = {}
    for name, dataset in opened.items():
        check_column(dataset, options.text_column, source)
        columns[name] = {column: str(feature) for column, feature in dataset.features.items()}
    items = (row_items(dataset, name, options.audio_column, options.text_column) for name, dataset in opened.items())
    return look_at(itertools.chain.from_iterable(items), columns)


def check_named(named: NamedSet, request: Request, against: Sequence[str], is_all: bool) -> tuple[Checked, Audio]:
    """Look at a named data set: also at what is missing, and at what it shares.

    Its records pass by, as AudioSet has two million; ids and sources are kept of them.

    Args:
        against: `NAME:FOLDER` whose ids are compared.
        is_all: keep all commands that fetch audio, and not only the few that the terminal shows.
    """
    folder, records = read_records(named, request)
    parts, flagged, commands, count = {}, [], [], 0

    def passing() -> Iterator[Record]:
        nonlocal count
        for record in records:
            note_source(parts, record)
            if is_flagged(record):
                flagged.append(record.id)
            if not record.files and (command := named.fetch(record)):
                count += 1
                if is_all or count <= COMMANDS_SHOWN:
                    commands.append(command)
            yield record

    checked, audio = look_at(record_items(passing(), folder), {})
    checked.problems, checked.get, checked.paper = folder.problems, named.get, named.paper
    checked.commands, checked.num_commands = commands, count
    others = neighbours(named.name, folder) | named_sources(against)
    checked.leaks = [*leaks_by_flag(named.name, flagged), *leaks_by_id(named.name, parts, others)]
    return checked, audio


def check_source(source: str, options, against: Sequence[str] = ()) -> tuple[Checked, Audio]:
    """Look at a data set, as `NAME:FOLDER` or without a name; `against` are named ones whose ids are compared."""
    entry, request = find_entry(Request(source, config_name=options.dataset_config, revision=options.revision))
    if entry.name in SETS:
        return check_named(SETS[entry.name], request, against, options.json)
    if against:
        raise ValueError(f"--against: {source} has no ids to compare; use --similar_to, or name it as NAME:FOLDER")
    return check_rows(source, options)


def whole_source(options) -> str:
    """Return the data set of `NAME FOLDER`, or of the one argument that was given.

    Raises:
        ValueError: there is no data set of that name.
    """
    if options.folder is None:
        return options.dataset
    if options.dataset not in NAMES:
        raise ValueError(f"no data set is called {options.dataset!r}; {nearest(options.dataset, NAMES)}")
    return f"{options.dataset}:{options.folder}"


def run(options) -> int:
    """Do `collap data check`; return its exit code, 1 if no pair of text and audio can be used."""
    source = whole_source(options)
    checked, audio = check_source(source, options, options.against)
    for other in options.similar_to:
        _, theirs = check_source(other, options)
        checked.leaks += leaks_by_audio(source, audio.values(), other, theirs.values())
    checked.tokens = {name: mean_tokens(name, checked.totals.usable) for name in options.tokenizer}
    print(json.dumps({"dataset": source, **checked.as_dict()}) if options.json else "\n".join(checked.lines()))
    return 0 if checked.totals.usable else 1
