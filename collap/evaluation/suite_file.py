"""Read a suite: a YAML file that says which data sets, texts and pools are measured, and by which figures."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from collap.data.catalogue.named import SETS
from collap.data.check_report import TABLE_ONE
from collap.files import nearest

from .results import DIRECTIONS

SUITES = Path(__file__).with_name("suites")
FOLDER = "folder"  # any audio folder, instead of a named data set


@dataclass(frozen=True)
class Captions:
    """Name the data set whose texts are used, those of the same recordings."""

    dataset: str
    folder: str | None = None
    config: str | None = None
    split: str = "all"
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """Name one gallery.

    Attributes:
        title: what people call it.
        dataset: a name of the catalogue, or `folder`.
        folder: below the root of the data; None for the data set's name.
        split, config, settings: as `collap evaluate` takes them.
        captions: whose texts are used; None for its own.
        text_column, song_column: of a `folder`.
        window_seconds: of each recording so many from its beginning are heard; None for all.
        expected: size of the gallery it is to be compared with.
        paper: direction -> column of the table that is quoted.
        statistics: of `data_sets`: the row of the paper's Table I that it stands beside.
    """

    title: str
    dataset: str
    folder: str | None = None
    split: str = "test"
    config: str | None = None
    settings: dict = field(default_factory=dict)
    captions: Captions | None = None
    text_column: str = "text"
    song_column: str | None = None
    window_seconds: int | float | None = None
    expected: int | None = None
    paper: dict = field(default_factory=dict)
    statistics: str | None = None


@dataclass(frozen=True)
class Table:
    """Name the pools and the figures of one table, and the quoted table that stands beside it."""

    name: str
    title: str
    pools: tuple[Pool, ...]
    metrics: tuple[str, ...] = ("R@1", "R@5", "R@10")
    quoted: str | None = None


@dataclass(frozen=True)
class Suite:
    """Hold a suite.

    Attributes:
        tables: of figures.
        data_sets: that are not measured, but counted beside the paper's Table I.
        quoted: what its file of quoted tables holds.
    """

    name: str
    title: str
    tables: tuple[Table, ...]
    data_sets: tuple[Pool, ...] = ()
    quoted: dict = field(default_factory=dict)


def suite_path(name: str) -> Path:
    """Return the file of a suite: one of ours by its name, or the user's own.

    Raises:
        FileNotFoundError: there is none.
    """
    ours = {path.stem: path for path in sorted(SUITES.glob("*.yaml"))}
    if name in ours or Path(name).is_file():
        return ours.get(name, Path(name))
    raise FileNotFoundError(f"--suite {name}: no such file, and no suite of ours; {nearest(name, ours)}")


def read_yaml(path: Path):
    """Read what a YAML file holds; a ValueError if it is none."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error


def read_suite(name: str) -> Suite:
    """Read a suite.

    Raises:
        FileNotFoundError: there is no such file, or not the one of quoted tables that it names.
        ValueError: it is no suite; says where and what is known.
    """
    path = suite_path(name)
    content = _typed(read_yaml(path), Suite, path, ("name",), quoted=str | None)  # there the name of a file
    quoted = _quoted(path.parent / content["quoted"]) if content.get("quoted") else {}
    tables = tuple(_table(table, quoted, f"{path}: tables[{i}]") for i, table in enumerate(content["tables"]))
    if not tables or len({table.name for table in tables}) < len(tables):
        raise ValueError(f"{path}: expected tables with names of their own")
    data_sets = tuple(_data_set(one, f"{path}: data_sets[{i}]") for i, one in enumerate(content.get("data_sets", ())))
    return Suite(path.stem, content["title"], tables, data_sets, quoted)


def _quoted(path: Path) -> dict:
    """Read a file of quoted tables: name of a table -> `columns`, and row -> figure -> its value in each column."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # among them those of JSON and Unicode
        raise ValueError(f"{path}: not JSON ({error})") from error


def _checked(content, kind: type, place: str | Path, given: tuple[str, ...] = ()) -> dict:
    """Return a mapping of YAML; a ValueError that begins with `place` unless it has the fields of a dataclass."""
    fields = {one.name: one for one in dataclasses.fields(kind) if one.name not in given}
    if not isinstance(content, dict):
        raise ValueError(f"{place}: expected a mapping of {', '.join(fields)}; found {content!r}")
    for name in content:
        if name not in fields:
            raise ValueError(f"{place}: unknown key {name!r}; {nearest(str(name), fields)}")
    empty = dataclasses.MISSING
    needed = [name for name, one in fields.items() if one.default is empty and one.default_factory is empty]
    if missing := [name for name in needed if name not in content]:
        raise ValueError(f"{place}: lacks {', '.join(missing)}")
    return content


def _typed(content, kind: type, place: str | Path, given: tuple[str, ...] = (), **kinds) -> dict:
    """Return a mapping as [`_checked`] does, with values of the kinds of its fields, or of those in `kinds`."""
    kinds = {one.name: one.type for one in dataclasses.fields(kind)} | kinds
    for name, value in _checked(content, kind, place, given).items():
        if not _fits(value, kinds[name]):
            raise ValueError(f"{place}: {name}: {value!r}; expected {_kind(kinds[name])}")
    return content


def _fits(value, kind) -> bool:
    """Tell whether a value of YAML can be that of a field; a dataclass is a mapping there, a tuple a list."""
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list)
    return isinstance(value, kind) or (isinstance(value, dict) and any(map(dataclasses.is_dataclass, _kinds_of(kind))))


def _kind(kind) -> str:
    """Return what a field is to be, as one says it of YAML."""
    names = {str: "a text", int: "a number", float: "a number", dict: "a mapping", type(None): "nothing"}
    found = (names.get(one, "a list" if kind is one else "a mapping") for one in _kinds_of(kind))
    return " or ".join(dict.fromkeys(found))


def _kinds_of(kind) -> tuple:
    """Return the kinds of a union, or the one that it is."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _table(content, quoted: dict, place: str) -> Table:
    content = dict(_typed(content, Table, place))
    pools = tuple(_pool(pool, f"{place}.pools[{i}]") for i, pool in enumerate(content["pools"]))
    metrics = tuple(content.get("metrics", Table.metrics))
    bad = [name for name in metrics if name not in ("median_rank", "mAP", "MRR", "nDCG@10") and not _is_recall(name)]
    if bad:
        raise ValueError(f"{place}.metrics: unknown figure {bad[0]!r}; expected R@k, median_rank, mAP, MRR or nDCG@10")
    if content.get("quoted") is not None and content["quoted"] not in quoted:
        raise ValueError(f"{place}.quoted: no table {content['quoted']!r}; {nearest(content['quoted'], quoted)}")
    if not pools or len({pool.title for pool in pools}) < len(pools):
        raise ValueError(f"{place}: expected pools with titles of their own")
    columns = quoted[content["quoted"]]["columns"] if content.get("quoted") else []
    for pool in pools:
        for direction, column in pool.paper.items():
            if direction not in DIRECTIONS or column not in columns:
                raise ValueError(
                    f"{place}: paper {direction}: {column!r}; {nearest(str(column), columns or DIRECTIONS)}"
                )
    return Table(**{**content, "pools": pools, "metrics": metrics})


def _is_recall(name: str) -> bool:
    return isinstance(name, str) and name.startswith("R@") and name[2:].isdigit() and int(name[2:]) > 0


def _data_set(content, place: str) -> Pool:
    """Return a data set that is counted; a ValueError unless it names a row of Table I."""
    pool = _pool(content, place)
    if pool.statistics not in TABLE_ONE:
        raise ValueError(f"{place}: statistics: {pool.statistics!r}; {nearest(str(pool.statistics), TABLE_ONE)}")
    return pool


def _pool(content, place: str) -> Pool:
    content = dict(_typed(content, Pool, place))
    names = [*SETS, FOLDER]
    if content["dataset"] not in names:
        raise ValueError(f"{place}: no data set is called {content['dataset']!r}; {nearest(content['dataset'], names)}")
    if content.get("captions") is not None:
        captions = _typed(content["captions"], Captions, f"{place}.captions")
        if captions["dataset"] not in SETS:
            nearest_name = nearest(captions["dataset"], SETS)
            raise ValueError(f"{place}.captions: no data set is called {captions['dataset']!r}; {nearest_name}")
        content["captions"] = Captions(**captions)
    window = content.get("window_seconds")
    if window is not None and not window >= 1:
        raise ValueError(f"{place}: window_seconds: {window!r}; expected 1 or more, or to leave it out")
    return Pool(**content)


def read_pools(content, place: str) -> tuple[Pool, ...]:
    """Read a list of pools; a ValueError that begins with `place` unless it is one, with titles of their own."""
    pools = tuple(_pool(pool, f"{place}[{i}]") for i, pool in enumerate(content)) if isinstance(content, list) else ()
    if not pools or len({pool.title for pool in pools}) < len(pools):
        raise ValueError(f"{place}: expected a list of pools with titles of their own")
    return pools


def read_fields(content, kind: type, place: str | Path, given: tuple[str, ...] = ()) -> dict:
    """Return a mapping of YAML; a ValueError that begins with `place` unless its keys are fields of a dataclass."""
    return dict(_checked(content, kind, place, given))
