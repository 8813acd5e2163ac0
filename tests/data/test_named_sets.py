"""Data sets by name: folders in their real layouts, with the traps of each, opened as users open them."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from real_sets import BARE, PERCENT, WRITERS, Sounds, write_csv
from tiny import tiny_processor

from collap.cli import run_command
from collap.data import guarded_reading
from collap.data.catalogue import NAMES, Request
from collap.data.catalogue.named import SETS
from collap.data.catalogue.named.futga import percent_sections
from collap.data.catalogue.named.mustbench import query_of
from collap.data.catalogue.named_sets import read_records
from collap.data.rows import audio_source
from collap.data.samples import AudioTextDataset
from collap.data.sources import open_dataset, open_stream
from processing import load_audio

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*recordings of .* have no audio")


def records(name: str, folder, **request) -> dict:
    """Every record of a data set by its id."""
    return {record.id: record for record in read_records(SETS[name], Request(str(folder), **request))[1]}


def opened(name: str, folder, split: str = "all", config: str | None = None) -> dict[str, dict]:
    """Every row of a data set by its id."""
    return {row["id"]: row for row in open_dataset(f"{name}:{folder}", split, config_name=config)}


def heard(row: dict) -> np.ndarray:
    return guarded_reading.load_audio(audio_source(row["audio"]))


def test_every_name_is_in_the_fixtures():
    assert {*WRITERS} == {*SETS, "folder"} and {*SETS} < {*NAMES}


# --------------------------------------------------------------------------------------------------------------------
# Each data set


def test_song_describer(real, sounds):
    rows = opened("song_describer", real["song_describer"], "test")
    assert {*rows} == {"1004034", "214"}  # the third has no audio
    row = rows["1004034"]
    assert row["text"] == ["electronic tune, calm", 'a "slow" one'] and row["source"] == "jamendo:1004034"
    assert row["audio"]["path"].endswith("audio/audio/34/1004034.2min.mp3")
    assert "BY-NC-ND" in row["licence"] and json.loads(row["meta"])["valid"] == [True, False]
    np.testing.assert_array_equal(heard(row), load_audio(sounds.folder / "song.mp3"))
    valid = opened("song_describer", f"{real['song_describer']}?valid_only=true")
    assert {name: row["text"] for name, row in valid.items()} == {"1004034": ["electronic tune, calm"]}


def test_musiccaps_reads_the_span_of_a_whole_track_and_a_cut_clip_whole(real, sounds):
    rows = opened("musiccaps", real["musiccaps"])
    assert {*rows} == {"-0Gj8-vB1q4", "rOOBAGxxjBk"}
    clip, part = rows["-0Gj8-vB1q4"], rows["rOOBAGxxjBk"]
    assert (clip["split"], part["split"]) == ("test", "train") and clip["text"] == ["A slow song, with piano."]
    assert json.loads(clip["meta"])["aspects"] == ["low quality", "singer's voice"]
    np.testing.assert_array_equal(heard(clip), load_audio(sounds.folder / "clip1.wav"))
    track = load_audio(sounds.folder / "track.flac")
    np.testing.assert_array_equal(heard(part), track[30 * 16000 : 40 * 16000])
    assert guarded_reading.header_seconds(audio_source(part["audio"])) == 10.0
    full = opened("musiccaps", f"{real['musiccaps']}?full_tracks=true")["rOOBAGxxjBk"]
    np.testing.assert_array_equal(heard(full), track)
    assert full["start"] is None and (part["start"], part["end"]) == (30.0, 40.0)


def test_audioset(real):
    found = records("audioset", real["audioset"])
    assert found["-0RWZT-miFs"].texts == ["Keys jangling, Car, automobile"] and found["rOOBAGxxjBk"].texts == ["Music"]
    assert found["-0RWZT-miFs"].audio == "full/-0RWZT-miFs.flac#t=30,40"
    assert found["rOOBAGxxjBk"].audio == "full/YrOOBAGxxjBk.wav" and found["_too_short_"].audio is None
    assert {record.part for record in found.values()} == {"eval/test", "balanced/train", "unbalanced/train"}
    assert [*opened("audioset", real["audioset"], "train", "balanced")] == ["rOOBAGxxjBk"]


def test_harmonixset(real, tmp_path):
    found = records("harmonixset", real["harmonixset"])
    first, other = found["0001_12step"], found["0539_youandi"]
    assert [(one["label"], one["start"], one["end"]) for one in first.sections] == [
        *(("intro", 0.0, 2.5), ("verse", 2.5, 5.0), ("chorus", 5.0, 7.5), ("outro", 8.0, 9.5)),
    ]
    assert [(one["label"], one["end"]) for one in other.sections] == [("intro", 4.0), ("verse", 10.0)]  # its Duration
    assert first.source == "youtube:03lWKQtl9BU" and first.meta["video_note"] == "backwards"
    assert first.meta["beats"][0] == [0.530973, 2.0, 1.0]
    assert first.texts == [
        "1, 2 Step by Ciara. R&B at 113 beats per minute, 4/4 time. It goes: intro, verse, chorus, outro."
    ]
    assert (first.audio, other.audio) == ("audio/0001_12step.mp3", "audio/-aaaaaaaaa-.wav")  # by File, by its video
    shutil.copytree(real["harmonixset"], tmp_path / "harmonix")
    write_csv(tmp_path / "harmonix" / "Harmonixset.csv", [["index", "caption"], ["0001_12step", BARE]])
    captioned = records("harmonixset", tmp_path / "harmonix")
    assert captioned["0001_12step"].texts == [BARE.strip()] and captioned["0539_youandi"].texts == other.texts


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (PERCENT, [("Intro/Verse", 0.0, 36.0), ("Chorus", 36.0, 180.0)]),
        (BARE, [("Intro and Verse 1", 0.0, 90.0), ("Outro", 90.0, 180.0)]),
        ("**0 - 18 %: Intro**\nx\n**18-9:** backwards\n**90-120%:** beyond", [("Intro", 0.0, 32.4)]),
    ],
)
def test_both_dialects_of_percent(caption, expected):
    found = percent_sections(caption, 180.0)
    assert [(one["label"], one["start"], one["end"]) for one in found] == expected
    assert percent_sections("Just words. **Tempo:** 120 bpm\n**Summary:**", 180.0) is None


def test_futga_and_its_window(real):
    rows = opened("futga", real["futga"])
    assert {*rows} == {"oGZoVPACLvc", "-0Gj8-vB1q4", "1004034", "0001_12step"}
    seconds = guarded_reading.header_seconds(audio_source(rows["oGZoVPACLvc"]["audio"]))
    assert rows["oGZoVPACLvc"]["sections"][0]["end"] == pytest.approx(seconds / 2)  # shorter than 180 s
    windowed = opened("futga", f"{real['futga']}?window_seconds=40", "train")["oGZoVPACLvc"]
    assert [one["end"] for one in windowed["sections"]] == [20.0, 40.0]
    assert json.loads(windowed["meta"])["window_seconds"] == 40.0
    chorus = rows["1004034"]["sections"][1]
    assert chorus["label"] == "Chorus" and chorus["text"] == "Chorus: Drums come in. Voices too."
    assert {*opened("futga", real["futga"], "test", "SongDescriber")} == {"1004034"}
    assert records("futga", real["futga"])["-0Gj8-vB1q4"].sections  # MusicCaps.csv comes last; train has no headers


def test_vctk_and_its_joined_sentences(real, sounds):
    found = records("vctk", real["vctk"])
    assert {record.artist for record in found.values()} == {"p225", "p280", "p362"}  # p315 has no texts
    assert found["p280_001"].audio.endswith("p280_001_mic1.flac") and found["p225_001"].audio.endswith("_mic2.flac")
    assert found["p362_002"].audio is None
    assert found["p225_001"].meta == {"age": 23, "gender": "F", "accent": "English", "region": "Southern  England"}
    assert found["p280_001"].meta["region"] == "France"
    rows = opened("vctk", f"{real['vctk']}?sentences=2")
    assert {*rows} == {"p225_001-p225_002", "p280_001-p280_002"}
    row = rows["p225_001-p225_002"]
    assert row["text"] == ["Please call Stella. Ask her to bring these things with her."]
    spoken = np.concatenate([load_audio(sounds.folder / f"speech{index}.flac") for index in (0, 1)])
    np.testing.assert_allclose(heard(row), spoken, atol=2**-15)
    assert [one["text"] for one in row["sections"]] == [
        "Please call Stella.",
        "Ask her to bring these things with her.",
    ]
    assert row["sections"][1]["end"] == pytest.approx(len(spoken) / 16000)


def test_wiki_and_wikimute(real, tmp_path, sounds):
    rows = opened("wiki", real["wiki"])
    assert {*rows} == {"audio/one.wav", "audio/two songs.wav"}
    assert len({row["text"][0] for row in rows.values()}) == 1  # one article for two recordings
    sounds.put("clip0.wav", tmp_path / "music" / "song.wav")
    (tmp_path / "articles").mkdir()
    (tmp_path / "articles" / "song.txt").write_text("An article.\nOf two lines.")
    assert opened("wiki", tmp_path)["song"]["text"] == ["An article. Of two lines."]
    found = records("wikimute", real["wikimute"])
    assert found["A-ha-Take on Me.ogg"].texts == ["It is fast.", "A synth plays."]  # of both articles, each once
    assert found["A-ha-Take on Me.ogg"].meta["aspects"] == ["synth pop", "80's", "hit"]
    assert found["A-ha-Take on Me.ogg"].audio == "audio/A-ha-Take_on_Me.ogg"
    assert found["Only aspects.ogg"].texts == ["slow, sad"] and found["Ging\u0113.ogg"].audio is None
    assert [*records("wikimute", real["wikimute"], config_name="filtered_sf")] == ["A-ha-Take on Me.ogg"]


def test_audiocaps(real):
    rows = opened("audiocaps", real["audiocaps"])
    assert rows["-0RWZT-miFs_30"]["text"] == [f"Caption number {index}" for index in range(1, 6)]
    assert rows["-0RWZT-miFs_30"]["audio"]["path"].endswith("#t=30,40")
    assert rows["r1nicOVtvkQ_130"]["text"] == ["A woman talks nearby as water pours"]
    assert rows["r1nicOVtvkQ_130"]["split"] == "train"
    assert len(opened("audiocaps", real["audiocaps"], "test", "2.0")["-0RWZT-miFs_30"]["text"]) == 2


def test_lp_musiccaps(real):
    found = {record.config: record for record in records("lp_musiccaps", real["lp_musiccaps"]).values()}
    assert {config: record.split for config, record in found.items()} == {
        "MC": "train",
        "MSD": "test",
        "MTT": "validation",
    }
    assert found["MSD"].texts == ["A writing of it.", "A summary of it.", "A paraphrase of it."]
    assert found["MSD"].audio.endswith("8/1/8134074.clip.mp3") and found["MTT"].audio is None
    assert found["MC"].audio == "MC/[-0Gj8-vB1q4]-[30-40].wav" and found["MC"].meta["human"] == "True."


def test_laion_audio_is_read_inside_its_archives(real, sounds):
    rows = opened("laion_audio", real["laion_audio"], "train")
    place = "freesound_no_overlap/train_1/0"
    assert {name: row["text"] for name, row in rows.items()} == {
        f"{place}/0": ["rain", "it rains on a roof"],
        f"{place}/1": ["a bare text"],
    }
    assert (rows[f"{place}/0"]["licence"], rows[f"{place}/0"]["source"]) == ("CC0", "freesound:1234")
    np.testing.assert_array_equal(heard(rows[f"{place}/1"]), load_audio(sounds.folder / "clip0.wav"))


def test_allmusiccaps_of_either_version(real):
    found = records("allmusiccaps", real["allmusiccaps"])
    assert found["-0Gj8-vB1q4"].texts == ["A warm record.", "It swings.", "warm. slow.", "Again."]
    assert found["-0Gj8-vB1q4"].meta["discogs_releases"] == ["1", "2"]
    assert found["_gone_away_"].texts == ["cold. fast."] and found["_gone_away_"].audio is None


def test_castella_and_the_sets_of_its_layout(real):
    folder, found = read_records(SETS["castella"], Request(str(real["castella"])))
    found = {record.id: record for record in found}
    assert {record.part for record in found.values()} == {
        *("castella/test", "castella/validation", "clotho_moment/validation")
    }
    train = found["0yETgW44MZU"]
    assert train.texts == ["A train rumbles while a horn blows", "A bell"]  # each once
    assert [(one["start"], one["end"]) for one in train.sections] == [(0, 4), (6, 7), (80, 83)]
    assert [one["start"] for one in found["-AheI8Epim4"].sections if "metallic" in one["text"]] == [1, 6, 9]
    assert train.source == "youtube:0yETgW44MZU" and train.audio == "download/audio/0yETgW44MZU.wav"
    assert found["Singapore_0.0_60.0"].source == "clotho_moment:Singapore_0.0_60.0"
    assert found["Singapore_0.0_60.0"].audio and found["Singapore_1.0_61.0"].sections is None
    (problem,) = folder.problems
    assert "[5, 5] is no window; expected [start, end]" in problem


@pytest.mark.parametrize(
    ("question", "query"),
    [
        ("When does the electric guitar first start to play?", "the electric guitar"),
        ("When is the highest arousal duration in this track?", "the highest arousal"),
        ("At what time do the vocals enter?", "the vocals"),
        ("When can the violin be heard for the last time?", "the violin"),
        ("When is the last time that the drum set plays?", "the drum set"),
        ("Where is the first saxophone?", "the first saxophone"),
        ("Name the time at which it ends", "Name the time at which it ends"),
    ],
)
def test_questions_become_queries(question, query):
    assert query_of(question) == query


def test_mustbench(real):
    folder, found = read_records(SETS["mustbench"], Request(str(real["mustbench"])))
    found = {record.id: record for record in found}
    assert [(one["label"], one["start"], one["end"], one["text"]) for one in found["12"].sections] == [
        ("first heard", 4, 4, "the electric guitar"),
        ("last heard", 9, 9, "the singer"),
        ("interval", 1, 3, "the highest arousal"),
    ]
    assert [(one["start"], one["end"]) for one in found["214"].sections] == [(1, 2), (6, 8)]  # LTR has no time
    assert found["12"].audio == "audio/12.mp3" and found["999"].audio is None
    (problem,) = folder.problems
    assert "t3: 'Which instrument is this?' asks for neither a first nor a last time" in problem
    asked = records("mustbench", f"{real['mustbench']}?questions=true")
    assert asked["214"].texts == ["When is the lowest valence interval?"]


def test_gtzan_and_its_fault_filtered_split(real, tmp_path, sounds):
    found = records("gtzan", real["gtzan"])  # the first config alone
    sizes = [sum(one.split == split for one in found.values()) for split in ("train", "validation", "test")]
    assert sizes == [443, 197, 290] and {one.config for one in found.values()} == {"filtered"}
    assert found["pop.00053"].split == "validation" and found["pop.00053"].audio and "pop.00015" not in found
    assert {tuple(one.texts) for one in found.values() if one.meta["genre"] == "hiphop"} == {("hip hop",)}
    rows = opened("gtzan", real["gtzan"], "test")
    assert {*rows} == {"blues.00012", "blues.00013", "pop.00000", "pop.00001"}
    assert len(opened("gtzan", real["gtzan"], "test", "all")) == 13  # with the fault
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}_filtered.txt").write_text(f"blues/blues.0000{len(name) - 4}.wav\n\n")
    sounds.put("clip0.wav", tmp_path / "blues" / "blues.00001.wav")
    own = records("gtzan", tmp_path)  # by the lists that lie there
    assert {name: one.split for name, one in own.items()} == {"blues.00000": "test", "blues.00001": "validation"}
    (tmp_path / "test_filtered.txt").write_text("nonsense\n")
    with pytest.raises(ValueError, match="line 1 is 'nonsense'; expected a clip's file"):
        records("gtzan", tmp_path)
    (tmp_path / "test_filtered.txt").unlink()
    with pytest.raises(ValueError, match=r"lacks test_filtered.txt; expected all three lists"):
        records("gtzan", tmp_path)


def test_any_folder_with_texts_beside_the_audio(real):
    with pytest.warns(UserWarning, match="1 of 3 audio files have no text beside them"):
        rows = open_dataset(f"folder:{real['folder']}", "train")
    assert rows["text"][:] == ["The song called one.", "The song called two."]


# --------------------------------------------------------------------------------------------------------------------
# What uses them


def test_the_pool_follows_what_is_there_and_that_is_said(real):
    with pytest.warns(UserWarning, match=r"1 of 3 recordings of 'test' have no audio .*\(1100099\); the pool is 2"):
        assert len(open_dataset(f"song_describer:{real['song_describer']}", "test")) == 2
    with pytest.warns(UserWarning):
        assert len(open_dataset(f"song_describer:{real['song_describer']}", "test[:1]")) == 1


def test_a_stream_and_samples_of_clips(real):
    rows = open_stream(f"musiccaps:{real['musiccaps']}", "train")
    assert [table["text"].to_pylist() for table in rows.tables(0, 0)] == [[["This music is a lively instrumental."]]]
    dataset = open_dataset(f"musiccaps:{real['musiccaps']}", "all")
    extractor = tiny_processor().feature_extractor
    names = {sample.name: sample.seconds for sample in AudioTextDataset(dataset, extractor, "audio", "text")}
    assert names == {"row 0 (-0Gj8-vB1q4.wav)": 10.0, "row 1 (rOOBAGxxjBk.flac#t=30,40)": 10.0}
    crops = AudioTextDataset(dataset, extractor, "audio", "text", crop_seconds=3.0)
    assert [round(crops[row].seconds, 2) for row in (0, 1)] == [3.0, 3.0]


def test_evaluate_and_precompute_take_them(real, model_folder, tmp_path, capsys):
    source = ["--dataset", f"musiccaps:{real['musiccaps']}", "--model", str(model_folder)]
    assert run_command("evaluate", [*source, "--split", "all", "--output_dir", str(tmp_path / "results")]) == 0
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert (results["num_audios"], results["num_texts"]) == (2, 2)
    assert run_command("precompute", [*source, "--splits", "train", "--output_dir", str(tmp_path / "tokens")]) == 0
    (row,) = json.loads((tmp_path / "tokens" / "train" / "index.json").read_text())["rows"]
    assert row["name"] == "audio/rOOBAGxxjBk.flac#t=30,40" and row["seconds"] == pytest.approx(10, abs=0.1)


# --------------------------------------------------------------------------------------------------------------------
# What cannot be opened


def test_slips_are_one_line_that_says_what_to_do(real, tmp_path, sounds):
    for source, message in {
        f"song_descriebr:{tmp_path}": r"no data set is called 'song_descriebr'; did you mean 'song_describer'\?",
        f"song_describer:{real['musiccaps']}": r"holds no song_describer; .* it looks like musiccaps:",
        f"musiccaps:{tmp_path}": "holds no musiccaps; expected musiccaps-public.csv .* get hf download",
        f"musiccaps:{tmp_path / 'nowhere'}": "nowhere: no such folder; expected one with musiccaps-public.csv",
        "musiccaps:": "musiccaps:: no such folder",
        f"musiccaps:{real['musiccaps']}?full_track=true": "no setting 'full_track'; did you mean 'full_tracks'",
        f"musiccaps:{real['musiccaps']}?full_tracks=perhaps": "full_tracks=perhaps: expected true or false",
        f"vctk:{real['vctk']}?sentences=-2": "sentences=-2: expected a number",
        "C:\\songs\\set": "no such file or folder; a Hub id has the form owner/name",
        "https://x.org/set": "no such file or folder; a Hub id has the form owner/name",
    }.items():
        with pytest.raises((FileNotFoundError, ValueError), match=message) as error:
            open_dataset(source, "test")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"no split 'dev'; the splits are \['test', 'train', 'all'\]"):
        open_dataset(f"musiccaps:{real['musiccaps']}", "dev")
    with pytest.raises(ValueError, match="no config 'MusicCap'; did you mean 'MusicCaps'"):
        open_dataset(f"futga:{real['futga']}", "test", config_name="MusicCap")


def test_captions_without_audio_audio_without_captions_and_two_files_of_one_id(real, tmp_path, sounds):
    shutil.copy(real["musiccaps"] / "musiccaps-public.csv", tmp_path)
    with pytest.raises(ValueError, match="none of the 2 recordings of 'test' has audio in the folder .*ID.wav"):
        open_dataset(f"musiccaps:{tmp_path}", "test")
    sounds.put("clip0.wav", tmp_path / "a" / "rOOBAGxxjBk.wav")
    sounds.put("clip0.wav", tmp_path / "b" / "rOOBAGxxjBk.flac")
    with pytest.raises(ValueError, match=r"two files for 'rOOBAGxxjBk': a/.*wav and b/.*flac; keep one"):
        open_dataset(f"musiccaps:{tmp_path}", "train")
    (tmp_path / "musiccaps-public.csv").unlink()
    with pytest.raises(ValueError, match=r"no metadata.jsonl.* or song.txt beside song.mp3"):
        open_dataset(str(tmp_path), "train")


def test_a_name_in_a_table_leads_to_no_other_place(tmp_path, sounds):
    sounds.put("clip0.wav", tmp_path / "secret.wav")
    write_csv(tmp_path / "set" / "pairs.csv", [["file_name", "article"], ["../secret.wav", "x"], [str(tmp_path), "y"]])
    assert all(record.audio is None for record in records("wiki", tmp_path / "set").values())


def test_a_damaged_table_is_named(real, tmp_path):
    shutil.copytree(real["audioset"], tmp_path / "set")
    with open(tmp_path / "set" / "eval_segments.csv", "a") as table:
        table.write("half a line\n")
    with pytest.raises(ValueError, match=r"eval_segments.csv: line 6 is 'half a line'; expected YTID"):
        open_dataset(f"audioset:{tmp_path / 'set'}", "test")


def test_the_example_of_the_documentation_is_a_data_set(tmp_path, sounds, monkeypatch):
    """The page's file and its line in the registry, used."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "datasets.md").read_text(), re.DOTALL)
    module = {}
    exec(compile(example, "docs/datasets.md", "exec"), module)
    monkeypatch.setitem(SETS, module["SET"].name, module["SET"])
    rows = [["track", "title", "review"], ["one", "A", "A slow song."], ["gone", "B", "Gone."]]
    write_csv(tmp_path / "reviews.csv", rows)
    sounds.put("clip0.wav", tmp_path / "mp3" / "one.wav")
    assert {name: record.audio for name, record in records("radio", tmp_path).items()} == {
        "one": "mp3/one.wav",
        "gone": None,
    }


def test_sounds_are_the_same_each_time(tmp_path, sounds):
    again = Sounds(tmp_path)
    for name in ("clip0.wav", "track.flac", "speech1.flac"):
        np.testing.assert_array_equal(*(soundfile.read(one.folder / name)[0] for one in (again, sounds)))


def test_nothing_is_said_of_a_whole_data_set(real):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(f"audioset:{real['audioset']}", "train", config_name="balanced")
