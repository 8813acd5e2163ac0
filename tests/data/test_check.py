"""`collap data check`: what it says of data sets that are whole, and of those that are not."""

import gc
import json
import shutil

import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from collap.cli import run_command
from collap.data.catalogue import Request
from collap.data.catalogue.named_sets import open_split
from collap.data.check import check_named, split_names
from collap.data.records import NamedSet, Record
from collap.data.set_folder import Clip, SetFolder


def report(capsys, *arguments) -> dict:
    assert run_command("data check", [*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["splits"]


def test_a_whole_corpus(capsys, corpus):
    splits = report(capsys, corpus, "--text_column", "captions")
    assert {name: split["rows"] for name, split in splits.items()} == {"train": 8, "validation": 4, "test": 4}
    rows = [json.loads(line) for line in (corpus / "train" / "metadata.jsonl").read_text().splitlines()]
    train = splits["train"]
    assert set(train["columns"]) == {"audio", *rows[0]} - {"file_name"}
    assert (train["audio_found"], train["audio_missing"], train["pairs"], train["texts"]) == (8, 0, 24, 24)
    assert train["hours"] == pytest.approx(sum(row["seconds"] for row in rows) / 3600, abs=1e-4)
    words = [len(text.split()) for row in rows for text in row["captions"]]
    assert train["mean_words"] == pytest.approx(sum(words) / len(words), abs=0.01)
    assert train["problems"] == []


def test_what_cannot_be_used_is_named(capsys, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "songs")
    folder = tmp_path / "songs" / "test"
    (folder / "test-0001.flac").unlink()
    (folder / "test-0003.flac").write_bytes(b"no audio")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows[3]["captions"] = []
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = report(capsys, tmp_path / "songs", "--text_column", "captions")["test"]
    assert (split["audio_found"], split["audio_missing"], split["pairs"], split["texts"]) == (2, 2, 3, 9)
    missing, damaged, silent = split["problems"]
    assert "row 0 (test-0001.flac)" in missing and "row 2 (test-0003.flac)" in damaged and "row 3 has no text" in silent
    assert run_command("data check", [str(tmp_path / "songs"), "--text_column", "captions"]) == 0
    printed = capsys.readouterr().out
    assert "test: 4 rows; columns: audio, song_id" in printed and "2 found, 2 missing or unreadable" in printed
    assert "row 2 (test-0003.flac)" in printed


def test_nothing_usable_ends_with_1_and_a_wrong_column_is_named(capsys, corpus, tmp_path):
    assert run_command("data check", [str(corpus), "--text_column", "captons"]) == 1
    assert "did you mean 'captions'?" in capsys.readouterr().err
    (tmp_path / "metadata.csv").write_text("file_name,text\ngone.wav,a song\n")
    assert run_command("data check", [str(tmp_path)]) == 1
    assert "0 usable pairs" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert run_command("data check", [str(tmp_path / "empty")]) == 1
    assert "expected metadata.jsonl, parquet shards" in capsys.readouterr().err


def test_the_splits_of_every_layout(corpus, tmp_path):
    assert split_names(str(corpus)) == split_names(f"folder:{corpus}") == ["test", "train", "validation"]
    assert split_names(str(corpus / "train" / "metadata.jsonl")) == ["train"]
    assert split_names(str(corpus / "train")) == ["train"]
    rows = Dataset.from_dict({"audio": ["a.wav"], "text": ["a song"]})
    rows.save_to_disk(tmp_path / "one")
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    assert split_names(str(tmp_path / "one")) == ["train"] and split_names(str(tmp_path / "two")) == ["train", "test"]
    for name in ("a/train-00000-of-00001.parquet", "b/data/test-00000-of-00001.parquet", "c/validation/0.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        rows.to_parquet(tmp_path / name)
    assert [split_names(str(tmp_path / folder)) for folder in "abc"] == [["train"], ["test"], ["validation"]]


# --------------------------------------------------------------------------------------------------------------------
# Data sets by name

# pairs, recordings found and missing, mean seconds, mean words: counted by hand in tests/real_sets.py
EXPECTED = {
    "song_describer": (3, 2, 1, 11.0, 9 / 3),
    "musiccaps": (2, 2, 2, 10.0, 11 / 2),
    "audioset": (2, 2, 2, 10.0, 5 / 2),
    "harmonixset": (2, 2, 1, 10.0, 36 / 2),
    "futga": (5, 4, 1, None, None),  # one recording is in train and in test
    "vctk": (5, 5, 1, None, (3 * 3 + 8 * 2) / 5),
    "wiki": (2, 2, 1, 10.0, 9.0),
    "wikimute": (3, 2, 1, 10.0, 8 / 3),
    "audiocaps": (6, 2, 1, 10.0, (5 * 3 + 7) / 6),
    "lp_musiccaps": (6, 2, 1, 10.5, 4.0),
    "laion_audio": (3, 2, 1, 10.0, (1 + 5 + 3) / 3),
    "allmusiccaps": (5, 2, 1, 10.0, (3 + 2 + 8 + 1 + 11) / 5),
    "castella": (5, 3, 3, 10.0, (7 + 4 + 7 + 2 + 3) / 5),
    "mustbench": (4, 2, 1, 10.5, (3 + 2 + 3 + 3) / 4),
    "gtzan": (12, 12, 930 - 12, 10.0, 1.0),
    "folder": (2, 2, 0, 10.0, 4.0),
}


def named_report(capsys, *arguments) -> dict:
    assert run_command("data check", [*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore:.*audio files have no text")
@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_said_of_a_data_set_in_its_real_layout(capsys, real, name):
    pairs, found, missing, seconds, words = EXPECTED[name]
    report = named_report(capsys, name, real[name])
    assert (report["pairs"], report["audio_found"], report["audio_missing"]) == (pairs, found, missing)
    assert len(report["missing"]) == missing
    assert report["hours"] == pytest.approx(report["mean_seconds"] * found / 3600, abs=1e-4)
    if seconds is not None:
        assert report["mean_seconds"] == pytest.approx(seconds, abs=0.1)
    if words is not None:
        assert report["mean_words"] == pytest.approx(words, abs=0.01)
    assert sum(split["pairs"] for split in report["splits"].values()) == pairs


def test_missing_audio_is_listed_with_commands_that_are_not_run(capsys, real):
    report = named_report(capsys, "musiccaps", real["musiccaps"])
    assert report["missing"] == ["--dead_link", "empty__file"] and report["paper"]["mean_words"] == 48.9
    assert report["commands"][0] == (
        "yt-dlp -x --audio-format wav -f bestaudio --download-sections '*0-10' -o 'audio/%(id)s.%(ext)s' "
        "'https://www.youtube.com/watch?v=--dead_link'"  # an address: no id that begins with - is taken for an option
    )
    assert run_command("data check", ["musiccaps", str(real["musiccaps"])]) == 0
    printed = capsys.readouterr().out
    assert "missing: --dead_link" in printed and "not run" in printed
    assert "paper, MusicCaps  6k" in printed and "here" in printed


def test_what_is_there_and_damaged_is_named(capsys, real, tmp_path):
    shutil.copytree(real["song_describer"], tmp_path / "set")
    next((tmp_path / "set").rglob("214.2min.mp3")).write_text("<html>Not found</html>")
    report = named_report(capsys, "song_describer", tmp_path / "set")
    assert (report["pairs"], report["audio_found"], report["audio_missing"]) == (2, 1, 2)
    assert report["missing"] == ["214", "1100099"] and "214.2min.mp3" in report["splits"]["test"]["problems"][0]
    assert "before its clip at 420 s" in named_report(capsys, "audioset", real["audioset"])["problems"][0]


def test_leaks_by_flag_by_id_and_by_sound(capsys, real, tmp_path):
    leaks = named_report(capsys, "musiccaps", real["musiccaps"], "--against", f"audioset:{real['audioset']}")["leaks"]
    assert [(leak["by"], leak["ids"]) for leak in leaks] == [
        ("flag", ["rOOBAGxxjBk", "empty__file"]),  # the 2,663 of the real ones
        ("id", ["rOOBAGxxjBk"]),
    ]
    assert leaks[1]["between"] == ["musiccaps train", f"audioset:{real['audioset']} balanced/train"]
    (leak,) = named_report(capsys, "futga", real["futga"])["leaks"]  # within the data set itself
    assert leak["between"] == ["futga AudioSet/train", "futga MusicCaps/test"] and leak["ids"] == ["-0Gj8-vB1q4"]
    for name in ("musiccaps", "audioset"):  # in one folder they are compared unasked
        shutil.copytree(real[name], tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("audio", "full"))
    shutil.copytree(real["musiccaps"] / "audio", tmp_path / "audio")
    assert "id" in [leak["by"] for leak in named_report(capsys, "musiccaps", tmp_path)["leaks"]]
    similar = named_report(capsys, "laion_audio", real["laion_audio"], "--similar_to", f"wiki:{real['wiki']}")["leaks"]
    (leak,) = similar
    assert leak["by"] == "audio" and {one["other"] for one in leak["details"]} == {"audio/one.wav"}
    assert len(leak["ids"]) == 2 and all(one["error"] < 0.1 for one in leak["details"])


def test_tokens_of_tokenizers_that_are_at_hand(capsys, real, backbones):
    arguments = ("song_describer", real["song_describer"], "--tokenizer", backbones["gpt2"], "owner/not-here")
    tokens = named_report(capsys, *arguments)["tokens"]
    assert tokens["owner/not-here"] is None
    tokenizer = AutoTokenizer.from_pretrained(backbones["gpt2"])
    texts = ["electronic tune, calm", 'a "slow" one', "guitar and drums"]
    mean = sum(len(tokenizer(text)["input_ids"]) for text in texts) / 3
    assert tokens[str(backbones["gpt2"])] == pytest.approx(mean, abs=0.01)


def test_slips_of_the_command(capsys, real, tmp_path):
    for arguments, message in (
        (["musicaps", tmp_path], "no data set is called 'musicaps'; did you mean 'musiccaps'?"),
        (["vctk", real["wiki"]], "it looks like wiki:"),
        ([real["folder"], "--against", f"musiccaps:{real['musiccaps']}"], "has no ids to compare"),
        (["musiccaps", real["musiccaps"], "--against", real["folder"]], "expected NAME:FOLDER"),
    ):
        assert run_command("data check", [str(one) for one in arguments]) == 1
        assert message in capsys.readouterr().err


def test_records_pass_by_and_only_a_few_commands_are_kept(tmp_path):
    """AudioSet has two million segments, of which few are on a disk."""
    before, counts = live_records(), []

    def read(folder, settings):
        for index in range(200):
            yield Record(id=str(index), texts=["a text"], source=f"x:{index}")
        counts.append(live_records() - before)

    named = NamedSet("passing", "a table", lambda folder: ["table"], read, "it", fetch=lambda record: record.id)
    checked, _ = check_named(named, Request(str(tmp_path)), (), is_all=False)
    assert (len(checked.totals.missing), checked.num_commands, checked.commands) == (200, 200, ["0", "1", "2"])
    assert "  and 197 more; --json lists all" in list(checked.lines())
    assert len(check_named(named, Request(str(tmp_path)), (), is_all=True)[0].commands) == 200
    with pytest.raises(ValueError, match=r"none of the 200 recordings .* \(0, 1, 2, ...\)"):
        open_split(named, Request(str(tmp_path), "test"))
    assert len(counts) == 3 and max(counts) < 5


def live_records() -> int:
    return sum(type(one) is Record for one in gc.get_objects())


def test_segments_without_a_file_are_not_looked_for(real, monkeypatch):
    folder, asked = SetFolder(real["audioset"]), []
    monkeypatch.setattr(folder, "audio", lambda name: asked.append(name))
    assert folder.clips([("not_there_1", 0, 10), ("-0RWZT-miFs", 30, 40)]) == [Clip(), Clip()]
    assert asked and all("-0RWZT-miFs" in name for name in asked)
