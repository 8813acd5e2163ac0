"""300 tables with seeded damage: each is read, or refused in one line; nothing else, and nothing hangs."""

import json
import warnings

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import REFERENCE

from collap.data.rows import check_row_texts
from collap.data.sources import open_dataset, open_stream

FLAC = (REFERENCE / "cases" / "csv" / "a.flac").read_bytes()[:2000]
ROWS = [
    ("a.flac", "slow piano", 7),
    ("b.flac", 'a "hit", loud', 8),
    ("sub/c.flac", "träumerisch\nゆっくり", 9),
    ("a.flac", "['x', 'y']", 10),
]


def originals() -> dict[str, bytes]:
    """A table of every kind, none of them wrong."""
    columns = {"audio": [row[0] for row in ROWS], "text": [row[1] for row in ROWS], "id": [row[2] for row in ROWS]}
    found = {}
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t"), ("semicolon.csv", ";")):
        rows = [delimiter.join(columns)]
        for audio, text, number in ROWS:
            quoted = '"' + text.replace('"', '""') + '"'
            rows.append(delimiter.join([audio, quoted, f"{number:03d}"]))
        found[name] = "\r\n".join(rows).encode()
    found["wide.csv"] = found["t.csv"].decode().encode("utf-16")
    lines = [dict(zip(columns, row, strict=True)) for row in ROWS]
    found["t.jsonl"] = "\n".join(map(json.dumps, lines)).encode()
    found["t.json"] = json.dumps(lines, ensure_ascii=False).encode()
    for name, audio in (
        ("paths.parquet", columns["audio"]),
        ("bytes.parquet", [{"bytes": FLAC, "path": "x.flac"}] * 4),
        ("arrays.parquet", [{"array": [0.1] * 50, "sampling_rate": 16000}] * 4),
    ):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({**columns, "audio": audio}), sink, row_group_size=2)
        found[name] = sink.getvalue().to_pybytes()
    return found


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    """The content after one or two changes."""
    content = bytearray(content)
    snippets = b'" \' , \t ; \n \r \0 [ { } "" null NaN 1e999 ../ /etc/passwd \\ud800'.split(b" ")
    snippets += [b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"\xe2\x80\xa8"]
    for _ in range(generator.integers(1, 3)):
        place = int(generator.integers(len(content) + 1))
        kind = generator.integers(7)
        if kind == 0 and place < len(content):
            content[place] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            del content[place:]
        elif kind == 2:
            del content[place : place + int(generator.integers(1, 30))]
        elif kind == 3:
            content[place:place] = content[place : place + int(generator.integers(1, 200))]
        elif kind == 4:
            content[place:place] = generator.bytes(int(generator.integers(1, 8)))
        else:
            content[place:place] = snippets[generator.integers(len(snippets))]
    return bytes(content)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.flac", "b.flac", "sub/c.flac"):
        (tmp_path / name).write_bytes(FLAC)
    datasets.disable_progress_bars()
    yield tmp_path
    datasets.enable_progress_bars()


def outcome(read) -> str:
    """ "rows", or the one line that is said instead."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert message and len(message.splitlines()) == 1 and len(message) < 1000, message
        return message
    return "rows"


def test_whole_tables_are_read(folder):
    for name, content in originals().items():
        (folder / name).write_bytes(content)
        texts = open_dataset(str(folder / name), "train")["text"][:]
        assert texts == [row[1] for row in ROWS], name


def test_300_damaged_tables_are_rows_or_one_line(folder):
    tables, outcomes = list(originals().items()), []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        name, content = tables[seed % len(tables)]
        path = folder / f"{seed}-{name}"
        path.write_bytes(damaged(content, generator))

        def as_table(path=path):
            dataset = open_dataset(str(path), "train")
            check_row_texts(dataset, "text")
            for audio in dataset["audio"][:]:
                inside = audio is None or audio["bytes"] is not None or audio["path"] is None
                assert inside or audio["path"].startswith(f"{folder}/./"), audio

        def as_stream(path=path):
            rows = open_stream(str(path), "train")
            for shard in range(rows.num_shards):
                for table in rows.tables(shard, 0):
                    table.to_pylist()

        outcomes.append(outcome(as_table))
        if path.suffix == ".parquet":
            outcome(as_stream)
    read = outcomes.count("rows")
    assert 30 < read < 270  # both happen


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow", "dataset_dict.json"])
def test_damaged_saved_folders_are_rows_or_one_line(folder, name):
    rows = datasets.Dataset.from_dict({"audio": ["a.flac"] * 20, "text": ["x"] * 20})
    datasets.DatasetDict({"train": rows}).save_to_disk(folder / "disk")
    (path,) = (folder / "disk").rglob(name)
    whole = path.read_bytes()
    for seed in range(12):
        path.write_bytes(damaged(whole, np.random.default_rng(seed)))
        assert outcome(lambda: open_dataset(str(folder / "disk"), "train")["text"][:])
