"""Count what a data set holds, and say it: in lines, as JSON, and as a row of the paper's Table I."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from .leaks import Leak

NAMES_SHOWN = 5  # of what cannot be used
COMMANDS_SHOWN = 3
# Pairs, hours, mean seconds and mean words of Table I (arXiv 2410.02271). For CoLLAP "256.94 words" may be tokens: the
# published captions have about 200 words.
TABLE_ONE = {
    "AudioCaps": ("51k", 144.9, 10.23, 9.0),
    "MusicCaps": ("6k", 15.3, 10.0, 48.9),
    "LAION-Audio": ("633.5k", 4325.39, 24.58, None),
    "LP-MusicCaps": ("514k", 4283.1, 30.0, 37.3),
    "CoLLAP": ("51.3k", 4109.5, 288.25, 256.94),
}
TABLE_COLUMNS = ("pairs", "hours", "mean_seconds", "mean_words")
BATCH = 1000  # texts tokenised at a time


@dataclass
class Totals:
    """Count recordings, their seconds, and texts.

    Attributes:
        seconds: of every recording that was found.
        missing: names of the recordings that were not.
        usable: texts whose audio was found.
        other_texts: number of the others, and of their words.
    """

    seconds: list[float] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    usable: list[str] = field(default_factory=list)
    other_texts: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, name: str, texts: list[str], seconds: float | None, is_new: bool) -> None:
        """Count a row: its texts, and its recording if that `is_new`; `seconds` is None where that is missing."""
        if is_new and seconds is not None:
            self.seconds.append(seconds)
        elif is_new:
            self.missing.append(name)
        if seconds is not None:
            self.usable += texts
        else:
            self.other_texts[0] += len(texts)
            self.other_texts[1] += sum(len(text.split()) for text in texts)

    def figures(self) -> dict:
        """Return what is said of them; words are those of usable pairs, or of all texts where there is no such pair."""
        words, count = sum(len(text.split()) for text in self.usable), len(self.usable)
        if not count:
            count, words = self.other_texts
        return {
            "pairs": len(self.usable),
            "audio_found": len(self.seconds),
            "audio_missing": len(self.missing),
            "hours": round(sum(self.seconds) / 3600, 4),
            "mean_seconds": round(sum(self.seconds) / max(len(self.seconds), 1), 2),
            "texts": len(self.usable) + self.other_texts[0],
            "mean_words": round(words / max(count, 1), 2),
        }


@dataclass
class SplitReport:
    """Say what a split holds.

    Attributes:
        columns: name and type of each.
        totals: its recordings and texts.
        problems: what cannot be used, by row.
    """

    rows: int
    columns: dict[str, str]
    totals: Totals = field(default_factory=Totals)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        """Return what JSON has of it."""
        facts = {"rows": self.rows, "columns": self.columns, **self.totals.figures()}
        return {**facts, "missing": self.totals.missing, "problems": self.problems}

    def lines(self, name: str) -> Iterator[str]:
        """Yield what the terminal shows of the split `name`."""
        found = self.totals.figures()
        yield f"{name}: {self.rows} rows; columns: {', '.join(self.columns)}"
        yield (
            f"  audio: {found['audio_found']} found, {found['audio_missing']} missing or unreadable; "
            f"{found['hours']:.2f} hours, {found['mean_seconds']:.1f} s each"
        )
        yield f"  texts: {found['texts']}, {found['mean_words']:.1f} words each; {found['pairs']} usable pairs of " + (
            "text and audio"
        )
        yield from _some("  ", self.problems)
        told = {problem.partition(": ")[0] for problem in self.problems}
        yield from _some("  missing: ", [name for name in self.totals.missing if name not in told])


@dataclass
class Checked:
    """Hold what was found in a data set.

    Attributes:
        splits: report of each.
        totals: over all of them.
        problems: of no single row.
        leaks: recordings that are also elsewhere.
        commands: that fetch missing audio, perhaps the first of `num_commands` alone.
        get: what brings the tables of a named data set; None for others.
        paper: its row of Table I.
        tokens: mean number of tokens of a text, by tokenizer; None of one that is not at hand.
    """

    splits: dict[str, SplitReport] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    problems: list[str] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    num_commands: int = 0
    get: str | None = None
    paper: str | None = None
    tokens: dict[str, float | None] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """Return what JSON has of it."""
        return {
            **self.totals.figures(),
            "tokens": self.tokens,
            "paper": dict(zip(TABLE_COLUMNS, TABLE_ONE[self.paper], strict=True)) if self.paper else None,
            "missing": self.totals.missing,
            "problems": self.problems,
            "leaks": [asdict(leak) for leak in self.leaks],
            "commands": self.commands,
            "get": self.get,
            "splits": {name: report.as_dict() for name, report in self.splits.items()},
        }

    def lines(self) -> Iterator[str]:
        """Yield what the terminal shows."""
        for name, report in self.splits.items():
            yield from report.lines(name)
        yield from _some("problem: ", self.problems)
        for leak in self.leaks:
            yield f"leak: {len(leak.ids)} recordings of {leak.between[0]} are also in {leak.between[1]} (by {leak.by})"
            yield from _some("  ", leak.ids)
        if self.commands:
            yield f"to fetch what is missing (not run; audio has its own terms; {self.num_commands} commands):"
            yield from (f"  {command}" for command in self.commands[:COMMANDS_SHOWN])
            yield from _more("  ", self.num_commands, COMMANDS_SHOWN)
        elif self.get and self.totals.missing:
            yield f"to fetch what is missing: {self.get}"
        yield from self.table_one()

    def table_one(self) -> Iterator[str]:
        """Yield the data set's row of the paper's Table I, and the paper's own."""
        found = self.totals.figures()
        names = [*TABLE_COLUMNS, *(f"tokens of {name}" for name in self.tokens)]
        rows = [("Table I", names), ("here", [*(found[name] for name in TABLE_COLUMNS), *self.tokens.values()])]
        if self.paper:
            rows.append((f"paper, {self.paper}", [*TABLE_ONE[self.paper], *(None for _ in self.tokens)]))
        cells = [[head, *("-" if value is None else str(value) for value in values)] for head, values in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        absent = [name for name, value in self.tokens.items() if value is None]
        if absent:
            yield f"not at hand: {', '.join(absent)} (--tokenizer names a folder, or a tokenizer in the Hub's cache)"


def _some(prefix: str, names: Sequence[str], shown: int = NAMES_SHOWN) -> Iterator[str]:
    yield from (f"{prefix}{name}" for name in names[:shown])
    yield from _more(prefix, len(names), shown)


def _more(prefix: str, count: int, shown: int) -> Iterator[str]:
    if count > shown:
        yield f"{prefix}and {count - shown} more; --json lists all"


def mean_tokens(tokenizer: str, texts: Sequence[str]) -> float | None:
    """Return the mean number of tokens of some texts, special ones too; None if the tokenizer is not on this machine.

    Nothing is downloaded.
    """
    from transformers import AutoTokenizer

    try:
        encode = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    except (OSError, ValueError):
        return None
    count = sum(map(len, _encoded(encode, texts)))
    return round(count / max(len(texts), 1), 2)


def _encoded(tokenizer, texts: Sequence[str]) -> Iterable[list[int]]:
    for first in range(0, len(texts), BATCH):
        yield from tokenizer(list(texts[first : first + BATCH]), verbose=False)["input_ids"]
