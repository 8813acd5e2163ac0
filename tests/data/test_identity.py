"""What tells two data sets apart when a run is resumed: their content, not their place."""

import json
import shutil
from pathlib import Path

import pytest

from collap.data.identity import rows_digest
from collap.data.sources import open_dataset


def digest(folder: Path) -> str:
    return rows_digest(open_dataset(str(folder), "train", "audio", "captions"), "audio", ["captions", "song_id"])


@pytest.fixture
def songs(corpus, tmp_path) -> Path:
    """A copy of the corpus that may be changed."""
    return Path(shutil.copytree(corpus, tmp_path / "songs"))


def change_rows(folder: Path, change):
    """Rewrite the metadata of the training split."""
    table = folder / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    change(rows)
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))


def exchange_captions(rows: list[dict]):
    rows[0]["captions"], rows[1]["captions"] = rows[1]["captions"], rows[0]["captions"]


def test_a_data_set_that_moved_is_the_same_one(songs, corpus):
    assert digest(songs) == digest(corpus)


def test_exchanged_captions_are_another_data_set(songs, corpus):
    change_rows(songs, exchange_captions)
    assert digest(songs) != digest(corpus)


def test_rows_in_another_order_are_another_data_set(songs, corpus):
    change_rows(songs, lambda rows: rows.reverse())
    assert digest(songs) != digest(corpus)


def test_another_file_of_the_same_name_is_another_data_set(songs, corpus):
    first, second = sorted((songs / "train").glob("*.flac"))[:2]
    shutil.copyfile(second, first)
    assert digest(songs) != digest(corpus)
