"""Say what a data set holds: splits, rows, columns, hours, texts, and what of it cannot be used."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import datasets

from collap.data.catalogue import Request, all_splits
from collap.data.guarded_reading import header_seconds
from collap.data.rows import audio_source, check_column, naming_row, row_texts
from collap.data.sources import open_dataset
from processing.decode_audio import AudioFileError

NAMES_SHOWN = 5  # of what cannot be used


@dataclass
class SplitReport:
    """Say what a split holds.

    Attributes:
        columns: name and type of each.
        audio_found, audio_missing: rows whose audio says how long it is, and the others.
        hours, mean_seconds: of the audio that was found.
        pairs: usable pairs of a text and an audio.
        texts, mean_words: of rows with a text, whether their audio was found or not.
        problems: what cannot be used, by row.
    """

    rows: int
    columns: dict[str, str]
    audio_found: int = 0
    audio_missing: int = 0
    hours: float = 0.0
    mean_seconds: float = 0.0
    pairs: int = 0
    texts: int = 0
    mean_words: float = 0.0
    problems: list[str] = field(default_factory=list)

    def lines(self, name: str) -> Iterator[str]:
        """Yield what the terminal shows of the split `name`."""
        yield f"{name}: {self.rows} rows; columns: {', '.join(self.columns)}"
        yield (
            f"  audio: {self.audio_found} found, {self.audio_missing} missing or unreadable; {self.hours:.2f} hours, "
            f"{self.mean_seconds:.1f} s each"
        )
        yield f"  texts: {self.texts}, {self.mean_words:.1f} words each; {self.pairs} usable pairs of text and audio"
        yield from (f"  {problem}" for problem in self.problems[:NAMES_SHOWN])
        if len(self.problems) > NAMES_SHOWN:
            yield f"  and {len(self.problems) - NAMES_SHOWN} more; --json lists all"


def split_names(source: str, config_name: str | None = None, revision: str | None = None) -> list[str]:
    """Return the names of the splits of a data set, as `open_dataset` takes them.

    Raises:
        FileNotFoundError: there is no such file, folder or Hub data set.
        ValueError: a folder holds none.
    """
    found = all_splits(Request(source, config_name=config_name, revision=revision))
    if not found:
        raise ValueError(f"{source}: no data set; expected metadata.jsonl, parquet shards or a folder of save_to_disk")
    return found


def check_split(dataset: datasets.Dataset, audio_column: str, text_column: str) -> SplitReport:
    """Look at every row of an opened split: at its texts, and at the header of its audio."""
    report = SplitReport(len(dataset), {name: str(feature) for name, feature in dataset.features.items()})
    seconds, words = [], []
    for row, example in enumerate(dataset.select_columns([audio_column, text_column])):
        texts = []
        try:
            texts = row_texts(example[text_column], row)
        except ValueError as error:
            report.problems.append(str(error))
        words += [len(text.split()) for text in texts]
        try:
            with naming_row(row, example[audio_column]):
                seconds.append(header_seconds(audio_source(example[audio_column])))
        except AudioFileError as error:
            report.problems.append(str(error))
        else:
            report.pairs += len(texts)
    report.audio_found, report.audio_missing = len(seconds), len(dataset) - len(seconds)
    report.hours, report.texts = round(sum(seconds) / 3600, 4), len(words)
    report.mean_seconds = round(sum(seconds) / max(len(seconds), 1), 2)
    report.mean_words = round(sum(words) / max(len(words), 1), 2)
    return report


def run(options) -> int:
    """Do `collap data check`; return its exit code, 1 if no pair of text and audio can be used."""
    place = {"config_name": options.dataset_config, "revision": options.revision}
    reports = {}
    for name in split_names(options.dataset, **place):
        dataset = open_dataset(options.dataset, name, options.audio_column, None, **place)
        check_column(dataset, options.text_column, options.dataset)
        reports[name] = check_split(dataset, options.audio_column, options.text_column)
    if options.json:
        print(json.dumps({"dataset": options.dataset, "splits": {name: asdict(one) for name, one in reports.items()}}))
    else:
        print("\n".join(line for name, report in reports.items() for line in report.lines(name)))
    return 0 if any(report.pairs for report in reports.values()) else 1
