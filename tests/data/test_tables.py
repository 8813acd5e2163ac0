"""Tables as they exist in the world: every cell as it was written, or one line that names the row."""

import json
import os
import re
import shutil
import warnings
from pathlib import Path

import pytest
from tiny import REFERENCE

from collap.data.rows import audio_source, row_texts
from collap.data.sources import open_dataset
from collap.evaluation.songs import collect_songs

CASES = REFERENCE / "cases"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with two songs, a.flac and b.flac."""
    place = tmp_path_factory.mktemp("tables")
    for name in ("a.flac", "b.flac"):
        shutil.copy(CASES / "csv" / name, place / name)
    return place


def read(folder: Path, name: str, content: str | bytes, columns=("audio", "text")) -> list[tuple]:
    """The rows of a table with this content: the base name of the audio, and the other columns."""
    table = folder / name
    table.write_bytes(content.encode() if isinstance(content, str) else content)
    dataset = open_dataset(str(table), "train", columns[0], columns[1])
    names = [os.path.basename(path["path"]) for path in dataset[columns[0]][:]]
    return list(zip(names, *(dataset[column][:] for column in columns[1:]), strict=True))


def refusal(folder: Path, name: str, content: str | bytes) -> str:
    """What is said of a table that cannot be read: one line that names it."""
    with pytest.raises(ValueError) as caught:
        read(folder, name, content)
    assert "\n" not in str(caught.value) and str(folder / name) in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------------------
# The cases


def test_an_unquoted_comma_in_every_row_is_named():
    """pandas took the first column for an index, and the text lost its beginning."""
    with pytest.raises(ValueError, match=r"metadata\.csv: row 0 \(line 2\): Expected 2 fields in line 2, saw 3"):
        open_dataset(str(CASES / "csv"), "train")


def test_ids_stay_what_they_are(folder):
    cases = open_dataset(str(CASES / "csv" / "ids.csv"), "train")
    assert cases["sid"][:] == ["007", "7"]
    ids = ["7", "07", "007", "8", "1e3", "1000.0", "True", "0x1F", "2024-01-01"]
    table = "audio,text,sid\n" + "".join(f"a.flac,text {index},{sid}\n" for index, sid in enumerate(ids))
    assert [sid for _, _, sid in read(folder, "ids.csv", table, ("audio", "text", "sid"))] == ids
    songs = collect_songs(open_dataset(str(folder / "ids.csv"), "train"), "text", "sid")
    assert songs.names == ids


def test_a_stray_quote_swallows_no_row():
    dataset = open_dataset(str(CASES / "csv" / "quotes.tsv"), "train")
    assert dataset["text"][:] == ['"Heroes" cover, slow', '"an open quote', 'third caption"', "fourth"]
    assert [os.path.basename(audio["path"])[0] for audio in dataset["audio"][:]] == list("abab")


def test_a_written_list_is_a_list_of_texts(folder):
    (row,) = open_dataset(str(CASES / "csv" / "list_string.csv"), "train")
    with pytest.warns(UserWarning, match="read as lists"):
        assert row_texts(row["text"], 0) == ["slow piano", "sad song"]
    for text, texts in {
        '["a", "b, c"]': ["a", "b, c"],
        "['a' 'b']": ["a", "b"],  # numpy's
        "['it''s']": ["it", "s"],
        "[\"it's\", 'b']": ["it's", "b"],
        " ['a']\n": ["a"],
        "['a',\n 'b']": ["a", "b"],
    }.items():
        with pytest.warns(UserWarning):
            assert row_texts(text, 0) == texts
    for text in ("[Verse] a [Chorus]", "[1, 2]", "['a', 1]", "[a]", "['a'", "[b'a']", "['a'] ['b']", "[['a']]"):
        assert row_texts(text, 0) == [text]
    with pytest.raises(ValueError, match="row 3 has no text"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row_texts("[]", 3)


# --------------------------------------------------------------------------------------------------------------------
# Delimited text


@pytest.mark.parametrize("word", ["NA", "null", "NaN", "None", "n/a", "", "true", "-", "007", "1.50", "#N/A", "inf"])
def test_no_word_means_anything(folder, word):
    assert read(folder, "words.csv", f"audio,text\na.flac,{word}\nb.flac,x\n") == [("a.flac", word), ("b.flac", "x")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "audio,text\na.flac,{}\n"),
        ("t.csv", "audio;text\na.flac;{}\n"),
        ("t.csv", "audio\ttext\na.flac\t{}\n"),
        ("t.csv", "audio|text\na.flac|{}\n"),
        ("t.tsv", "audio\ttext\na.flac\t{}\n"),
        ("t.tsv", "audio,text\na.flac,{}\n"),
        ("T.CSV", "audio,text\r\na.flac,{}\r\n"),
        ("t.csv", "audio,text\ra.flac,{}\r"),
        ("t.csv", "\ufeffaudio,text\na.flac,{}\n"),
        ("t.csv", "sep=;\naudio;text\na.flac;{}\n"),
        ("t.csv", '"audio","text"\n"a.flac","{}"\n'),
        ("t.csv", "audio, text\na.flac, {}\n"),
        ("t.csv", "audio,text\na.flac, {}\n"),
        ("t.csv", 'audio,text\na.flac, "{}"\n'),
        ("t.csv", "\n\naudio,text\n\na.flac,{}\n\n\n"),
        ("t.csv", ",audio,text\n0,a.flac,{}\n"),  # with the index that pandas writes
        ("t.csv", "audio,text,\na.flac,{},\n"),
        ("t.csv", "file_name,text\na.flac,{}\n"),
        ("t.csv", "audio,text\na.flac,{}"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_delimiters_ends_of_lines_and_encodings(folder, name, content, encoding):
    text = "langsam · träumerisch · ゆっくり"
    table = content.format(text)
    table = table.removeprefix("\ufeff") if encoding != "utf-8" else table
    assert read(folder, name, table.encode(encoding)) == [("a.flac", text)]


def test_texts_with_delimiters_quotes_and_lines(folder):
    texts = ["slow, sad", 'a "hit"', "two\nlines", "two\r\nlines, and a comma", "tab\there", " spaces ", "semi;colon"]
    for delimiter in ",\t;|":
        rows = [f"""a.flac{delimiter}"{text.replace('"', '""')}"\n""" for text in texts]
        found = read(folder, "quoted.csv", f"audio{delimiter}text\n" + "".join(rows))
        assert [text for _, text in found] == texts
    assert read(folder, "inch.csv", 'audio,text\na.flac,a 12" single\n') == [("a.flac", 'a 12" single')]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_quotes_that_quote_nothing_are_part_of_the_text(folder, delimiter):
    for texts in (['"Heroes" cover', "sad"], ['"an open quote', "sad"], ['"open', 'closed"', "x"], ['a "b"', '"c" d']):
        rows = [f"{'ab'[index % 2]}.flac{delimiter}{text}\n" for index, text in enumerate(texts)]
        found = read(folder, "stray.csv", f"audio{delimiter}text\n" + "".join(rows))
        assert [text for _, text in found] == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "audio,text\na.flac,b,c\n", r"row 0 \(line 2\): Expected 2 fields in line 2, saw 3; put quotes"),
        ("t.csv", "audio,text\na.flac,b\nb.flac\n", r"row 1 \(line 3\): Expected 2 fields in line 3, saw 1"),
        ("t.tsv", "audio\ttext\na.flac\tb\tc\n", r"row 0 .*a text that holds a tab"),
        (
            "t.csv",
            "audio:text\na.flac:b\n",
            "no delimiter in the header 'audio:text'; expected one of comma, tab",
        ),
        ("t.csv", "audio text\na.flac b\n", "no delimiter in the header 'audio text'"),
        ("t.csv", "audio,text,text\na.flac,b,c\n", "two columns are called 'text'"),
        ("t.csv", "audio,text, text\na.flac,b,c\n", "two columns are called 'text'"),
        ("t.csv", "audio,text\n", r"has no rows, only the header \['audio', 'text'\]"),
        ("t.csv", "\n \n", "is empty"),
        ("t.csv", "a.flac,slow\nb.flac,sad\n", "the first line, 'a.flac, slow', names a file and no columns"),
        ("t.csv", "path,caption\na.flac,b\n", r"no column 'audio'; the columns are \['path', 'caption'\]"),
        ("t.csv", "audio,text\na.flac,b\n,\n", "row 1 has no audio"),
        ("t.csv", "audio,text\na.flac,b\n  ,c\n", "row 1 has no audio"),
        ("t.csv", 'audio,text\na.flac,"x, y"\nb.flac,"Heroes" cover\n', r"row 1 \(line 3\): .*double the quotes"),
        ("t.csv", 'audio,text\na.flac,"x, y"\nb.flac,"open\n', r"row 1 \(line 3\): unexpected end of data; double"),
        ("t.tsv", 'audio\ttext\na.flac\t"q"\nb.flac\t"open\na.flac\tc"\n', r"row 1 \(line 3\): a quote is opened"),
        (
            "t.csv",
            "audio,text\na.flac,caf\xe9\n".encode("latin-1"),
            r"byte 0xe9 in line 2 \(row 0\) is not utf-8",
        ),
        ("t.csv", b"\xff\xfea\x00u\x00,", "is not utf-16"),
        ("t.csv", "audio,text\na.flac,b\n".encode("utf-16-le"), "a NUL character in line 1; expected text"),
        ("t.csv", b"audio,text\na.flac,\xed\xa0\xbd\n", r"byte 0xed in line 2 \(row 0\)"),  # half a character
        ("t.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS.*git lfs pull"),
        ("t.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("t.csv", "audio,text\n../../a.flac,b\n", "outside of the data set's folder"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(folder, name, content, message):
    found = refusal(folder, name, content)
    assert re.search(message, found), found


# --------------------------------------------------------------------------------------------------------------------
# JSON


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_in_its_forms(folder):
    rows = [{"audio": "a.flac", "text": "one\u2028line"}, {"audio": "b.flac", "text": "two"}]
    columns = {"audio": ["a.flac", "b.flac"], "text": ["one\u2028line", "two"]}
    forms = {
        "t.jsonl": [lines(*rows), "\ufeff" + lines(*rows).replace("\n", "\r\n\n"), json_lines_unescaped(rows)],
        "t.json": [lines(*rows), json.dumps(rows), json.dumps(rows, indent=2), json.dumps(columns)],
    }
    for name, contents in forms.items():
        for content in contents:
            assert read(folder, name, content) == [("a.flac", "one\u2028line"), ("b.flac", "two")]
    assert read(folder, "t.json", json.dumps(rows[0], indent=2)) == [("a.flac", "one\u2028line")]


def json_lines_unescaped(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_json_keeps_its_types_and_mixed_ones_become_text(folder):
    def column(*values):
        rows = [{"audio": "a.flac", "text": "x", "id": value} for value in values]
        return [value for *_, value in read(folder, "t.jsonl", lines(*rows), ("audio", "text", "id"))]

    assert column(7, 8) == [7, 8] and column("007", "7") == ["007", "7"]
    assert column(7, "007", None, True) == ["7", "007", None, "true"]
    assert column(10**30, 7) == [str(10**30), "7"]
    assert column("x", float("nan")) == ["x", None]  # as pandas writes nothing
    assert column("a", ["b", "c"]) == [["a"], ["b", "c"]]
    assert column(1, 2.5) == [1.0, 2.5]
    with pytest.raises(ValueError, match=r"t\.jsonl: the column 'id' holds values of different kinds"):
        column("a", {"b": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"audio": "a.flac", "text"\n', "JSON parse error in line 1: "),
        ('{"audio": "a.flac", "text": "x"}\n{\n', "JSON parse error in line 2: "),
        ('{"audio": "a.flac", "text": "x"} {"audio": "b.flac"}\n', "JSON parse error in line 1: Extra data"),
        ('{"audio": "a.flac", "text": "x", "text": "y"}\n', "line 1 or after it: two values for 'text'"),
        ('{"audio": ["a.flac", "b.flac"], "text": "x"}\n', r"the column 'audio' holds list<.*expected audio"),
        ('{"file_name": ["a.flac"], "text": "x"}\n', r"the column 'audio' holds list<.*expected audio"),
        ('{"file_name": {"name": "a.flac"}, "text": "x"}\n', r"the column 'audio' holds struct<.*expected audio"),
        ('{"audio": [0.1, 0.2], "text": "x"}\n', "holds list<.*: samples without a sampling rate"),
        ('{"audio": 1, "text": "x"}\n', "the column 'audio' holds int64"),
        ('{"audio": null, "text": "x"}\n', "the column 'audio' holds null|row 0 has no audio"),
        ('["a.flac", "x"]\n', "row 0 is a list; expected an object"),
        ("3\n", "row 0 is a int"),
        ("[" * 100_000, "JSON parse error"),
        ('{"audio": "a.flac", "n": ' + "9" * 5000 + "}\n", "JSON parse error"),
        ('{"audio": "a.flac"}\n', "no column 'text'"),
    ],
)
def test_json_that_cannot_be_read_is_said_in_one_line(folder, content, message):
    found = refusal(folder, "t.jsonl", content)
    assert re.search(message, found), found


def test_half_a_character_is_replaced_and_said(folder):
    with pytest.warns(UserWarning, match=r"2 rows have half a character .* in 'text', the first is row 1"):
        rows = read(folder, "t.jsonl", lines(*({"audio": "a.flac", "text": t} for t in ("x", "y\ud83d", "\udc00 z"))))
    assert [text for _, text in rows] == ["x", "y\ufffd", "\ufffd z"]


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\ufeff \u2060", "\u00a0", "\u0301", "\u00ad", "[]"])
def test_a_text_without_anything_to_read_is_none(text):
    with pytest.raises(ValueError, match="row 5 has no text"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row_texts(text, 5)
    assert row_texts([text, "a\u200b"], 5)[-1] == "a\u200b"


# --------------------------------------------------------------------------------------------------------------------
# What changes


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_replaced_at_the_same_time_and_size_is_read_anew(folder, tmp_path, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copy(folder / "a.flac", tmp_path / "a.flac")
    path, found, sizes = tmp_path / f"metadata.{suffix}", [], set()
    for text in ("fast", "slow", "fast"):
        if suffix == "parquet":
            pq.write_table(pa.table({"file_name": ["a.flac"], "text": [text]}), path)
        else:
            row = (
                f"file_name,text\na.flac,{text}\n" if suffix == "csv" else lines({"file_name": "a.flac", "text": text})
            )
            path.write_text(row)
        os.utime(path, ns=(10**18, 10**18))
        sizes.add(path.stat().st_size)
        found.append(open_dataset(str(tmp_path), "train")["text"][0])
    assert found == ["fast", "slow", "fast"] and len(sizes) == 1


def test_a_table_is_kept_once_for_all_processes(folder):
    first, second = (open_dataset(str(CASES / "csv" / "ids.csv"), "train") for _ in range(2))
    assert first.cache_files == second.cache_files and first._fingerprint == second._fingerprint
    assert audio_source(first[0]["audio"]).endswith("a.flac")
