"""Make folders laid out exactly as real data sets are, with the traps of each, that hold audio made here.

Songs are rendered by `collap.corpora.synthetic`, sentences spoken by a voice of two formants; both are copied to the
names that the data sets have for them. Every writer takes a folder and the [`Sounds`], and returns the folder.
"""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from collap.corpora.synthetic.composition import compose_song
from collap.corpora.synthetic.songs import render_song

RATE = 16000
VOWELS = {"a": (700, 1200), "e": (500, 1900), "i": (300, 2300), "o": (500, 900), "u": (320, 800)}
SEGMENTS = "0.0 intro\n2.5 verse2\n5.0 chorus\n7.5 silence\n8.0 outro\n9.5 end\n"


class Sounds:
    """Render songs and sentences once, and copy them to where they are asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        songs = [render_song(compose_song(f"song-{index}", index, 12.0, 16.0)) for index in range(3)]
        for index, song in enumerate(songs):
            soundfile.write(folder / f"clip{index}.wav", song[: 10 * RATE], RATE)
        quiet = np.random.default_rng(0).normal(size=30 * RATE) * 0.01
        soundfile.write(folder / "track.flac", np.concatenate([quiet, songs[1][: 10 * RATE], songs[2]]), RATE)
        soundfile.write(folder / "song.mp3", songs[0][: 11 * RATE], RATE)
        for index, sentence in enumerate(("please call stella", "ask her to bring these things with her")):
            soundfile.write(folder / f"speech{index}.flac", speak(sentence), RATE)

    def put(self, sound: str, place: Path) -> None:
        """Copy one of the sounds, such as `clip0.wav`; a file of another kind is converted."""
        place.parent.mkdir(parents=True, exist_ok=True)
        source = self.folder / sound
        if source.suffix == place.suffix:
            shutil.copyfile(source, place)
        else:
            soundfile.write(place, *soundfile.read(source))


def speak(sentence: str) -> np.ndarray:
    """Speak the vowels of a sentence: a pulse train through two resonances each, 0.12 s a vowel, samples (N,)."""
    pieces = []
    for vowel in filter(VOWELS.get, sentence):
        time = np.arange(round(0.12 * RATE)) / RATE
        pulses = (np.diff(np.floor(110 * time), prepend=0) > 0).astype(float)
        rings = sum(np.exp(-60 * time) * np.sin(2 * np.pi * formant * time) for formant in VOWELS[vowel])
        pieces.append(np.convolve(pulses, rings)[: len(time)])
    return 0.2 * np.concatenate(pieces)


def write_csv(path: Path, rows: list[list], end: str = "\n", delimiter: str = ",") -> None:
    """Write rows, the header first, quoted where they must be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator=end, delimiter=delimiter).writerows(rows)


def song_describer(folder: Path, sounds: Sounds) -> Path:
    """Two captions for a track, a flag of three states, `audio/audio`, `.2min.mp3`, and a track without audio."""
    header = ["caption_id", "track_id", "caption", "is_valid_subset", "familiarity", "artist_id", "album_id", "path"]
    header.append("duration")
    rows = [
        [859, 1004034, "electronic tune, calm", "True", 0, 368880, 118196, "34/1004034.mp3", 202.5],
        [860, 1004034, 'a "slow" one', "", 1, 368880, 118196, "34/1004034.mp3", 202.5],
        [861, 214, "guitar and drums", "False", 5, 7, 8, "14/214.mp3", 181.0],
        [862, 1100099, "a choir sings", "True", 2, 9, 10, "99/1100099.mp3", 90.0],
    ]
    write_csv(folder / "song_describer.csv", [header, *rows])
    record = (
        "34/1004034.mp3\nTune by Somebody from the album One\nLicense: CC BY-NC-ND 3.0 http://x.org/by-nc-nd/3.0/\n--\n"
    )
    (folder / "audio_licenses.txt").write_text(record)
    sounds.put("song.mp3", folder / "audio" / "audio" / "34" / "1004034.2min.mp3")
    sounds.put("song.mp3", folder / "audio" / "audio" / "14" / "214.2min.mp3")
    return folder


def musiccaps(folder: Path, sounds: Sounds) -> Path:
    """Ids that begin with `-`, list columns as texts, a cut clip, a clip in a whole track, and two dead links."""
    header = (
        "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval"
    )
    labels, aspects = "/m/01kcd,/m/04fq5q", "['low quality', \"singer's voice\"]"
    rows = [
        ["-0Gj8-vB1q4", 30, 40, labels, aspects, "A slow song,\nwith piano.", 4, "False", "True"],
        ["rOOBAGxxjBk", 30, 40, labels, aspects, "This music is a lively instrumental.", 7, "False", "False"],
        ["--dead_link", 0, 10, labels, "[]", "Nobody hears this.", 1, "True", "True"],
        ["empty__file", 0, 10, labels, "[]", "Nor this.", 1, "True", "False"],
    ]
    write_csv(folder / "musiccaps-public.csv", [header.split(","), *rows])
    sounds.put("clip1.wav", folder / "audio" / "-0Gj8-vB1q4.wav")
    sounds.put("track.flac", folder / "audio" / "rOOBAGxxjBk.flac")
    (folder / "audio" / "empty__file.wav").touch()
    return folder


def audioset(folder: Path, sounds: Sounds) -> Path:
    """Three lines of comment, a comma and a space, ids with `-`; a whole track and a clip with the span in its name."""
    for name, rows in {
        "eval_segments.csv": [
            '-0RWZT-miFs, 30.000, 40.000, "/m/03v3yw,/m/0k4j"',
            'gone_gone_g, 0.000, 10.000, "/m/04rlf"',
        ],
        "balanced_train_segments.csv": ['rOOBAGxxjBk, 30.000, 40.000, "/m/04rlf"'],
        "unbalanced_train_segments.csv": ['_too_short_, 420.000, 430.000, "/m/04rlf"'],
    }.items():
        head = f"# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids={len(rows)}, num_segs={len(rows)}\n"
        (folder / name).write_text(
            f"{head}# YTID, start_seconds, end_seconds, positive_labels\n" + "\n".join(rows) + "\n"
        )
    names = [["index", "mid", "display_name"], [0, "/m/03v3yw", "Keys jangling"], [1, "/m/0k4j", "Car, automobile"]]
    write_csv(folder / "class_labels_indices.csv", names)
    (folder / "ontology.json").write_text(json.dumps([{"id": "/m/04rlf", "name": "Music", "child_ids": []}]))
    sounds.put("track.flac", folder / "full" / "-0RWZT-miFs.flac")
    sounds.put("clip0.wav", folder / "full" / "YrOOBAGxxjBk.wav")
    sounds.put("track.flac", folder / "full" / "_too_short_.flac")
    return folder


def harmonixset(folder: Path, sounds: Sounds) -> Path:
    """Segments separated by a space, one file without `end`, an annotated address, and a track without either."""
    dataset = folder / "dataset"
    header = ["File", "Title", "Artist", "Release", "Duration", "BPM", "Ratio Bars in 4", "Time Signature", "Genre"]
    header += ["MusicBrainz Id", "Acoustid Id"]
    rows = [
        ["0001_12step", "1, 2 Step", "Ciara", "Goodies", 10.0, 113, 100.0, "4|4", "R&B", "0408655f", "4708e4ae"],
        ["0539_youandi", "You and I", "Gaga", "Born", 10.0, 126, 100.0, "4|4", "", "x", ""],
        ["1001_gone", "Gone", "Nobody", "None", 200.0, 90, 100.0, "4|4", "Pop", "y", ""],
    ]
    write_csv(dataset / "metadata.csv", [header, *rows])
    segments, beats = dataset / "segments", dataset / "beats_and_downbeats"
    segments.mkdir()
    beats.mkdir()
    (segments / "0001_12step.txt").write_text(SEGMENTS)
    (segments / "0539_youandi.txt").write_text("0.7 intro\n4.0 verse_slow\n")
    (beats / "0001_12step.txt").write_text("0.530973\t2\t1\n1.061946\t3\t1\n")
    urls = [
        ["File", "URL"],
        ["0001_12step", "http://www.youtube.com/watch?v=03lWKQtl9BU (backwards)"],
        ["0539_youandi", "https://www.youtube.com/watch?v=-aaaaaaaaa-"],
    ]
    write_csv(dataset / "youtube_urls.csv", urls)
    write_csv(dataset / "youtube_alignment_scores.csv", [["File", "score"], ["0001_12step", 0.97]])
    sounds.put("clip0.wav", folder / "audio" / "0001_12step.mp3")
    sounds.put("clip1.wav", folder / "audio" / "-aaaaaaaaa-.wav")
    return folder


PERCENT = """A cheerful song with a **steady** beat.
**Tempo:** 120 bpm
**Functional Segments:**
**0-20% - Intro/Verse:**
* Soft piano opens.
**20\u2013100% \u2013 Chorus:**
- Drums come in.
- Voices too.
"""
BARE = """The mood is uplifting.
**0-50:** Intro and Verse 1
Guitar alone.
**50-100:** Outro
It fades."""


def futga(folder: Path, sounds: Sounds) -> Path:
    """Both dialects of headers, none at all, an integer index, and a recording that is in train and in test."""
    header = ["index", "caption"]
    write_csv(folder / "AudioSet-Train.csv", [header, ["oGZoVPACLvc", BARE], ["-0Gj8-vB1q4", "No headers here."]])
    write_csv(folder / "AudioSet-Eval.csv", [header, ["_gone_away_", BARE]])
    write_csv(folder / "MusicCaps.csv", [header, ["-0Gj8-vB1q4", PERCENT]])
    write_csv(folder / "SongDescriber.csv", [header, [1004034, PERCENT]])
    write_csv(folder / "Harmonixset.csv", [header, ["0001_12step", BARE]])
    sounds.put("track.flac", folder / "audio" / "oGZoVPACLvc.flac")
    sounds.put("clip1.wav", folder / "audio" / "-0Gj8-vB1q4.wav")
    sounds.put("song.mp3", folder / "audio" / "34" / "1004034.2min.mp3")
    sounds.put("clip0.wav", folder / "audio" / "0001_12step.wav")
    return folder


def vctk(folder: Path, sounds: Sounds) -> Path:
    """p315 without texts, p280 without a second microphone, p362 without one recording, sentences of three speakers."""
    root = folder / "VCTK-Corpus-0.92"
    info = "ID  AGE  GENDER  ACCENTS  REGION COMMENTS\np225  23  F    English    Southern  England\n"
    info += "p280  25  F    Unknown    France (mic2 files unavailable)\np315  18  M    American   New York\n"
    sentences = {"001": "Please call Stella.", "002": "Ask her to bring these things with her."}
    for speaker, microphones in {"p225": (1, 2), "p280": (1,), "p315": (1, 2), "p362": (1, 2)}.items():
        for index, (number, text) in enumerate(sentences.items()):
            name = f"{speaker}_{number}"
            if speaker != "p315":
                path = root / "txt" / speaker / f"{name}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{text}\n")
            for microphone in microphones if name != "p362_002" else ():
                place = root / "wav48_silence_trimmed" / speaker / f"{name}_mic{microphone}.flac"
                sounds.put(f"speech{index}.flac", place)
    (root / "speaker-info.txt").write_text(info)
    return folder


def wiki(folder: Path, sounds: Sounds) -> Path:
    """One article for two recordings, a name with a space, and an article whose recording is missing."""
    rows = [
        ["file_name", "article", "title"],
        ["audio/one.wav", "Article about the band, in two sentences. They play.", "Band"],
        ["audio/two songs.wav", "Article about the band, in two sentences. They play.", "Band"],
        ["audio/three.wav", "Somebody else.", "Else"],
    ]
    write_csv(folder / "pairs.tsv", rows, delimiter="\t")
    sounds.put("clip0.wav", folder / "audio" / "one.wav")
    sounds.put("clip1.wav", folder / "audio" / "two songs.wav")
    return folder


def wikimute(folder: Path, sounds: Sounds) -> Path:
    """Lists written as texts, one recording in two articles, underscores for spaces, and three tables that overlap."""
    header = ["file", "pageid", "aspects", "sentences", "audio_url", "url"]
    url, song = "https://upload.wikimedia.org/x/", "A-ha-Take on Me.ogg"
    rows = [
        [song, 1, "['synth pop', \"80's\"]", "['It is fast.', 'A synth plays.']", f"{url}A-ha-Take_on_Me.ogg", "w/1"],
        [song, 2, "['hit']", "['It is fast.']", f"{url}A-ha-Take_on_Me.ogg", "w/2"],
        ["Only aspects.ogg", 3, "['slow', 'sad']", "[]", f"{url}Only_aspects.ogg", "w/3"],
        ["Ging\u0113.ogg", 4, "[]", "['Gone.']", f"{url}Ging%C4%93.ogg", "w/4"],
    ]
    write_csv(folder / "data" / "all.csv", [header, *rows])
    write_csv(folder / "data" / "filtered_sf.csv", [header, rows[0]])
    sounds.put("clip0.wav", folder / "audio" / "A-ha-Take_on_Me.ogg")
    sounds.put("clip1.wav", folder / "audio" / "Only aspects.ogg")
    return folder


def audiocaps(folder: Path, sounds: Sounds) -> Path:
    """CRLF, five captions for a clip of test, one for a clip of train, and the second release beside the first."""
    header = ["audiocap_id", "youtube_id", "start_time", "caption"]
    captions = [[index, "-0RWZT-miFs", 30, f"Caption number {index}"] for index in range(1, 6)]
    train = [[91139, "r1nicOVtvkQ", 130, "A woman talks nearby as water pours"]]
    write_csv(folder / "dataset" / "train.csv", [header, *train], end="\r\n")
    write_csv(folder / "dataset" / "val.csv", [header, [7, "gone_gone_g", 0, "Nothing"]], end="\r\n")
    write_csv(folder / "dataset" / "test.csv", [header, *captions], end="\r\n")
    write_csv(folder / "dataset2.0" / "test.csv", [header, *captions[:2]], end="\r\n")
    sounds.put("clip0.wav", folder / "audio" / "r1nicOVtvkQ_130.wav")
    sounds.put("track.flac", folder / "audio" / "-0RWZT-miFs.flac")
    return folder


def lp_musiccaps(folder: Path, sounds: Sounds) -> Path:
    """Three sets with columns of their own, two as parquet and one as JSON."""
    texts = {
        f"caption_{kind}": f"A {kind} of it." for kind in ("writing", "summary", "paraphrase", "attribute_prediction")
    }
    msd = {
        "track_id": "TRBAISB12903CF1054",
        "title": "Crushing Belial",
        "artist_name": "Shadows Fall",
        "release": "Of One",
    }
    msd |= {"year": 2000, "tag": ["metalcore"], **texts, "path": "8/1/8134074.clip.mp3"}
    mtt = {
        "track_id": "2",
        "title": "T",
        "artist_name": "A",
        "release": "R",
        "tag_top50": ["slow"],
        "tag_top188": ["slow"],
    }
    mtt |= {**texts, "pseudo_attribute": ["x"], "path": "f/missing.mp3"}
    mc = {
        "fname": "[-0Gj8-vB1q4]-[30-40]",
        "ytid": "-0Gj8-vB1q4",
        "aspect_list": ["a"],
        "caption_ground_truth": "True.",
    }
    mc |= {**texts, "is_crawled": True, "author_id": 4, "start_s": 30, "end_s": 40, "is_audioset_eval": False}
    for place, row in {
        "MSD/data/test-00000-of-00001.parquet": msd,
        "MTT/data/valid-00000-of-00001.parquet": mtt,
    }.items():
        (folder / place).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([row]), folder / place)
    (folder / "MC").mkdir()
    (folder / "MC" / "train.json").write_text(json.dumps([mc]))
    sounds.put("song.mp3", folder / "MSD" / "audio" / "8" / "1" / "8134074.clip.mp3")
    sounds.put("clip1.wav", folder / "MC" / "[-0Gj8-vB1q4]-[30-40].wav")
    return folder


def laion_audio(folder: Path, sounds: Sounds) -> Path:
    """Archives with `text` as a list and as one text, an audio that is missing, and an archive that is cut."""
    flac = io.BytesIO()
    soundfile.write(flac, *soundfile.read(sounds.folder / "clip0.wav"), format="FLAC")
    place = folder / "freesound_no_overlap" / "train_1" / "0.tar"
    place.parent.mkdir(parents=True)
    members = {
        "0.flac": flac.getvalue(),
        "0.json": json.dumps({"text": ["rain", "it rains on a roof"], "tag": ["rain"], "original_data": {}}),
        "1.json": json.dumps({"text": "a bare text", "tag": []}),
        "1.flac": flac.getvalue(),
        "2.json": json.dumps({"text": ["no sound"]}),
    }
    with tarfile.open(place, "w") as archive:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (place.parent / "sizes.json").write_text('{"0.tar": 3}')
    cut = folder / "freesound_no_overlap" / "test" / "0.tar"
    cut.parent.mkdir()
    cut.write_bytes(place.read_bytes()[:5000])
    meta = [
        ["audio_filename", "caption1", "caption2", "freesound_id", "username", "freesound_url", "license"],
        ["train_1/0.flac", "rain", "it rains on a roof", 1234, "somebody", "http://x.org/1234", "CC0"],
    ]
    write_csv(folder / "freesound_no_overlap_meta.csv", meta)
    return folder


def allmusiccaps(folder: Path, sounds: Sounds) -> Path:
    """v0: a list as a text, an object as a text, a number as an id, null, and a track on two releases."""
    row = {"youtube_id": "-0Gj8-vB1q4", "discogs_release_id": 1, "allmusic_album_id": "mw1", "youtube_url": "x"}
    quotes, structured = "generated_quotes_captions", "generated_structured_captions"
    rows = [
        row | {quotes: ["A warm record.", "It swings."], structured: {"mood": "warm", "tempo": "slow", "energy": ""}},
        row | {"discogs_release_id": "2", quotes: "['A warm record.', 'Again.']", structured: None},
        row | {"youtube_id": "_gone_away_", quotes: None, structured: json.dumps({"mood": "cold", "tempo": ["fast"]})},
    ]
    (folder / "allmusiccaps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sounds.put("clip1.wav", folder / "-0Gj8-vB1q4.wav")
    return folder


MOMENTS = {
    "castella_test_release.jsonl": [
        ("-AheI8Epim4_1", "A man sings as something gets struck", 10, "-AheI8Epim4", [[3, 7]]),
        ("-AheI8Epim4_2", "Something metallic gets struck", 10, "-AheI8Epim4", [[6, 8], [1, 2], [9, 11]]),
        ("0yETgW44MZU_1", "A train rumbles while a horn blows", 9, "0yETgW44MZU", [[0, 4]]),
        ("0yETgW44MZU_2", "A train rumbles while a horn blows", 9, "0yETgW44MZU", [[6, 7], [5, 5]]),
        ("0yETgW44MZU_3", "A bell", 90, "0yETgW44MZU", [[80, 83]]),
        ("-gone-gone-_1", "Music plays", 300, "-gone-gone-", [[0, 12]]),
    ],
    "castella_val_release.jsonl": [("1DKLyH3FixM_1", "Music plays", 60, "1DKLyH3FixM", [[0, 100]])],
    "clotho_moment_val_release.jsonl": [
        ("32694", "A toilet flushes.", 60, "Singapore_0.0_60.0", [[4.1, 8.1]]),
        ("32695", "People shout as other people are chatting.", 60, "Singapore_1.0_61.0", []),
    ],
}


def castella(folder: Path, sounds: Sounds) -> Path:
    """Windows in any order, of no length, and after the recording's end; one query twice; ids that begin with `-`."""
    keys = ("qid", "query", "duration", "vid", "relevant_windows")
    for name, rows in MOMENTS.items():
        path = folder / name.partition("_")[0] / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    sounds.put("clip0.wav", folder / "download" / "audio" / "-AheI8Epim4.wav")
    sounds.put("clip1.wav", folder / "download" / "audio" / "0yETgW44MZU.wav")
    sounds.put("clip2.wav", folder / "wav" / "Singapore_0.0_60.0.wav")
    return folder


def mustbench(folder: Path, sounds: Sounds) -> Path:
    """Five tasks of which two have times, both dashes, several intervals, and a question that no time answers."""
    columns = ("id", "track_id", "task", "category", "qa_type", "question", "answer", "answers", "split")
    rows = [
        ("t1", "12", "TSG", "instrument", "x", "When does the electric guitar first start to play?", "0:04", ["0:04"]),
        ("t2", "12", "TSG", "vocal", "y", "When does the singer finally disappear?", "0:09", ["0:09"]),
        ("t3", "12", "TSG", "instrument", "z", "Which instrument is this?", "0:02", ["0:02"]),
        ("m1", "12", "MTR", None, None, "When is the highest arousal duration in this track?", "0:01-0:03", None),
        ("m2", "214", "MTR", None, None, "When is the lowest valence interval?", None, ["0:06\u20130:08", "0:01-0:02"]),
        ("l1", "214", "LTR", None, None, "What happens at 0:05?", "A", ["A"]),
        ("m3", "999", "MTR", None, None, "When is the highest arousal duration in this track?", "0:01-0:03", []),
    ]
    (folder / "benchmarks").mkdir()
    table = pa.Table.from_pylist([dict(zip(columns, (*row, "test"), strict=True)) for row in rows])
    pq.write_table(table, folder / "benchmarks" / "mustbench.parquet")
    sounds.put("song.mp3", folder / "audio" / "12.mp3")
    sounds.put("clip1.wav", folder / "audio" / "214.wav")
    return folder


def gtzan(folder: Path, sounds: Sounds) -> Path:
    """Some clips of each part of the fault-filtered split, and one that it leaves out."""
    numbers = {"blues": (29, 30, 0, 1, 12, 13), "pop": (2, 3, 10, 53, 0, 1, 15)}  # to train, validate, test; a fault
    for place, (genre, own) in enumerate(numbers.items()):
        for number in own:
            sounds.put(f"clip{place}.wav", folder / "Data" / "genres_original" / genre / f"{genre}.{number:05d}.wav")
    return folder


def folder(folder: Path, sounds: Sounds) -> Path:
    """Any audio with a text beside it, one without."""
    for name in ("one", "two"):
        sounds.put("clip0.wav", folder / "songs" / f"{name}.wav")
        (folder / "songs" / f"{name}.txt").write_text(f"The song called {name}.\n")
    sounds.put("clip1.wav", folder / "songs" / "three.wav")
    return folder


WRITERS = {
    writer.__name__: writer
    for writer in (
        *(song_describer, musiccaps, audioset, harmonixset, futga, vctk, wiki, wikimute, audiocaps, lp_musiccaps),
        *(laion_audio, allmusiccaps, castella, mustbench, gtzan, folder),
    )
}


def paper_root(root: Path, sounds: Sounds) -> Path:
    """All data sets of the paper's suite below one folder, each as above, and two songs at least for every pool;
    one recording is no audio."""
    for name, write in WRITERS.items():
        (root / name).mkdir(parents=True)
        write(root / name, sounds)
    for name in ("wiki_sd", "wiki_mc"):
        (root / name).mkdir()
        wiki(root / name, sounds)
    tables = {
        "SongDescriber": {214: "Guitars and drums.", 1100099: "A choir."},
        "MusicCaps": {"rOOBAGxxjBk": PERCENT, "--dead_link": "Gone.", "empty__file": "Nothing."},
        "AudioSet-Eval": {"-0RWZT-miFs": PERCENT, "oGZoVPACLvc": BARE, "gone_gone_g": "Gone."},
        "AudioSet-Train": {"rOOBAGxxjBk": PERCENT},
        "Harmonixset": {"0539_youandi": PERCENT, "1001_gone": "Gone."},
    }
    for name, captions in tables.items():
        with open(root / "futga" / f"{name}.csv", "a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(captions.items())
    with open(root / "audioset" / "eval_segments.csv", "a", encoding="utf-8") as file:
        file.write('oGZoVPACLvc, 30.000, 40.000, "/m/04rlf"\n')
    sounds.put("clip1.wav", root / "audioset" / "full" / "oGZoVPACLvc.wav")
    (root / "harmonixset" / "audio" / "1001_gone.mp3").write_bytes(b"404 not found")
    corpus = root / "vctk" / "VCTK-Corpus-0.92"
    for speaker in ("p225", "p226"):
        (corpus / "txt" / speaker).mkdir(exist_ok=True)
        for number in range(3, 80):
            name = f"{speaker}_{number:03}"
            (corpus / "txt" / speaker / f"{name}.txt").write_text(f"Sentence {number} of {speaker}.\n")
            sounds.put("speech0.flac", corpus / "wav48_silence_trimmed" / speaker / f"{name}_mic2.flac")
    return root
