"""Sections of a track: by its annotation file, its caption, its sound; each against what is known to be true."""

import itertools
import json

import mir_eval
import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from benchmarks.segmentation import figures, measure, rendered, table
from collap.corpora.frames import HOP
from collap.corpora.novelty import MIN_NOVELTY, average_linkage, novelty_curve, pick_peaks, section_edges
from collap.corpora.structure import audio_sections, find_sections, letter
from collap.corpora.synthetic.composition import Section as ComposedSection
from collap.corpora.synthetic.composition import Song
from collap.corpora.synthetic.songs import render_song
from collap.corpora.tracks import RATE, Section, Track

CAPTION = (
    "A song.\n**Functional Segments:**\n**0-25% - Intro:**\n- soft\n**25-60% - Verse:**\n- loud\n**60-100% - End:**"
)
SILENT_40 = np.zeros(40 * RATE, np.float32)


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(0).normal(size=round(seconds * RATE))).astype(np.float32)


def times(sections: list[Section]) -> list[tuple[str, float, float]]:
    return [(one.label, one.start, one.end) for one in sections]


# By sound


def test_novelty_is_the_correlation_of_the_self_similarity_with_a_checkerboard():
    features, half = np.random.default_rng(1).normal(size=(60, 5)), 8
    curve = novelty_curve(features, half)
    side = np.exp(-0.5 * ((np.arange(half) + 0.5) / (half / 2)) ** 2)
    side /= side.sum()
    for frame in range(len(features)):
        before, after = side[::-1][half - min(half, frame) :], side[: len(features) - frame]
        total = 0.0
        for i, one in zip(range(frame - len(before), frame + len(after)), [*-before, *after], strict=True):
            for j, other in zip(range(frame - len(before), frame + len(after)), [*-before, *after], strict=True):
                total += one * other * (features[i] @ features[j])
        if half <= frame <= len(features) - half:
            assert curve[frame] == pytest.approx(total / 4, rel=1e-9)
        elif frame:  # where the kernel is cut, each side counts as if it were whole
            means = [np.average(features[:frame][-half:], axis=0, weights=before)]
            means.append(np.average(features[frame:][:half], axis=0, weights=after))
            assert curve[frame] == pytest.approx(np.square(means[1] - means[0]).sum() / 4, rel=1e-9)
    assert curve[0] == 0


def test_peaks_are_high_apart_and_away_from_the_ends():
    curve = np.zeros(60)
    curve[[3, 20, 24, 40, 57]] = [9, 5, 6, 0.5, 9]
    assert pick_peaks(curve, 10, 5, 1.0) == [24]
    assert pick_peaks(curve, 10, 4, 1.0) == [20, 24]
    assert pick_peaks(curve, 10, 4, 0.1) == [20, 24, 40]
    assert pick_peaks(curve, 10, 3, 1.0) == [3, 20, 24, 57]
    assert pick_peaks(curve + 5, 10, 4, 0.1) == [20, 24, 40]  # the mean goes up with the curve
    assert pick_peaks(np.ones(60), 10, 4, 0.1) == [] == pick_peaks(np.zeros(0), 10, 4, 0.1)


@pytest.mark.parametrize("limit", [0.0, 0.8, 1.5, 2.5, 9.0])
def test_groups_are_those_of_scipy(limit):
    points = np.random.default_rng(2).normal(size=(12, 3))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    theirs = fcluster(linkage(squareform(distances, checks=False), "average"), limit, "distance")
    ours = average_linkage(distances, limit)
    assert [[a == b for a in ours] for b in ours] == [[a == b for a in theirs] for b in theirs]
    assert list(dict.fromkeys(ours)) == list(range(max(ours) + 1))


def test_sections_of_rendered_songs_are_found():
    """Chance is 5 % and 21 %, and of labels 55 %; the table of docs has 60 songs."""
    found, about = measure(rendered(6, seed=7, equal_loudness=True), with_guesses=True, seed=0)
    close, near, labels = np.mean(found["by sound"], axis=0)
    assert close > 0.75 and near > 0.8 and labels > 0.75
    assert near > 0.3 + max(np.mean(found[name], axis=0)[1] for name in ("equal sections", "random places"))
    assert about["processor seconds"] < about["seconds"] / 60  # 0.2 s for 5 minutes; slow machines
    assert len(table(found)) == 2 + 4


def song(*labels: str, seconds: float = 16.0) -> Song:
    """A song in which a label always sounds the same."""
    looks = {
        "verse": (("piano", "bass"), ("C", "Am", "F", "G")),
        "chorus": (("drums", "electric guitar"), ("Em", "D", "Bm", "A")),
    }
    sections = []
    for number, label in enumerate(labels):
        instruments, chords = looks[label]
        start, end = seconds * number, seconds * (number + 1)
        sections.append(
            ComposedSection(
                label, start, end, instruments, "loud", "middle", "busy", "warm", chords * round(seconds / 8)
            )
        )
    return Song("made", 0, 120.0, "C", "major", 4, seconds * len(labels), tuple(sections))


def test_sections_that_sound_alike_share_a_letter():
    true = song("verse", "chorus", "verse", "chorus")
    samples = render_song(true, RATE)
    found = audio_sections(samples)
    assert [one.label for one in found] == ["A", "B", "A", "B"]
    assert [one.start for one in found] == pytest.approx([one.start for one in true.sections], abs=0.3)
    assert found[0].start == 0 and found[-1].end == 64.0
    assert all(one.end == other.start for one, other in itertools.pairwise(found))
    assert audio_sections(samples) == found
    assert [one.start for one in audio_sections(samples / 8)] == pytest.approx([one.start for one in found], abs=0.2)


@pytest.mark.parametrize(
    "samples",
    [
        noise(60),
        noise(60, 1e-6),
        np.zeros(60 * RATE, np.float32),
        np.sin(0.17 * np.arange(60 * RATE)).astype(np.float32),
        np.tile(np.hanning(RATE).astype(np.float32) * noise(1), 60),
        noise(5),
        noise(0.1),
    ],
    ids=["noise", "faint noise", "silence", "tone", "loop", "short", "below a window"],
)
def test_what_does_not_change_is_one_section(samples):
    assert times(audio_sections(samples)) == [("A", 0.0, len(samples) / RATE)]


def test_noise_stays_below_the_least_novelty():
    timbre = 10 * np.random.default_rng(3).normal(size=(2000, 13))
    assert section_edges(timbre) == [0, 2000]
    timbre[1000:] += 10 * 2 * np.sqrt(2 * MIN_NOVELTY)  # explains twice the least, of what the noise is
    (edge,) = section_edges(timbre)[1:-1]
    assert abs(edge - 1000) * HOP / RATE < 2


def test_letters_go_on_after_z():
    assert [letter(number) for number in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


def test_true_sections_have_full_marks_and_silence_between_them_counts():
    true = [Section(0.0, 10.0, "a"), Section(12.0, 30.0, "b")]
    assert figures(true, true, 30.0) == [1.0, 1.0, 1.0]
    found = figures([Section(0.0, 12.2, "a"), Section(12.2, 30.0, "b")], true, 30.0)
    assert found[:2] == pytest.approx([2 / 3, 2 / 3])
    pair = [np.array([[0.0, 12.2], [12.2, 30.0]]), ["a", "b"]]
    whole = [np.array([[0.0, 10.0], [10.0, 12.0], [12.0, 30.0]]), ["a", "-", "b"]]
    assert found[2] == pytest.approx(mir_eval.segment.pairwise(*whole, *pair)[2], abs=0.02)


# By captions


def test_percents_of_a_caption_are_of_what_its_captioner_heard():
    track = Track("a", "nowhere/a.wav", texts=["Nothing here.", CAPTION])
    sections, by = find_sections(track, SILENT_40)
    assert by == "caption"
    assert times(sections) == [("Intro", 0.0, 10.0), ("Verse", 10.0, 24.0), ("End", 24.0, 40.0)]
    assert sections[0].text == "soft"
    assert times(find_sections(track, SILENT_40, window_seconds=20.0)[0])[-1] == ("End", 12.0, 20.0)
    assert times(find_sections(track, SILENT_40, window_seconds=0)[0])[-1] == ("End", 24.0, 40.0)


def test_a_caption_speaks_of_what_was_listed_before_it_was_cropped():
    track = Track("a", "nowhere/a.wav#t=500,800", texts=[CAPTION], listed_seconds=300.0, crop=(44.5, 84.5))
    sections, _ = find_sections(track, SILENT_40, window_seconds=80.0)
    assert times(sections) == [("Verse", 0.0, 3.5), ("End", 3.5, 35.5)]
    track.crop = (47.5, 87.5)  # half a second of the verse is none
    assert find_sections(track, SILENT_40, window_seconds=80.0)[1] == "audio"


@pytest.mark.parametrize(
    "caption",
    [
        "**0-60% - Intro:** a\n**40-100% - Verse:** b",
        "**0-60: Intro** a\n**60-120: Verse** b\n**120-180: End** c",
        "**0-100% - Song:** a",
        "A song in which **Tempo:** 120 bpm.",
    ],
    ids=["overlap", "beyond 100", "one", "none"],
)
def test_a_caption_that_contradicts_itself_does_not_count(caption):
    assert find_sections(Track("a", "nowhere/a.wav", texts=[caption]), SILENT_40) == ([Section(0, 40, "A")], "audio")


# By annotations


def wrote(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def jams(*annotations: tuple[str, list]) -> str:
    listed = [
        {"annotation_metadata": {}, "namespace": name, "data": data, "sandbox": {}, "time": 0, "duration": 40.0}
        for name, data in annotations
    ]
    return json.dumps({"annotations": listed, "file_metadata": {"duration": 40.0}, "sandbox": {}})


def row(time: float, duration: float, value) -> dict:
    return {"time": time, "duration": duration, "value": value, "confidence": 1}


SEGMENTS = "0.0 intro\n8.5 verse2\n20.0 silence\n22.25 chorus\n38.0 end\n"
SALAMI = "0.0\tSilence\n0.5\tIntro\n9.0\tno_function\n20.0\tVerse\n40.0\tEnd"
JAMS = jams(
    ("beat", [row(0.0, 0.0, 1)]),
    ("segment_salami_upper", [row(0.0, 20.0, "A"), row(20.0, 20.0, "A'")]),
    ("segment_open", [row(20.001, 19.999, "Chorus"), row(0.0, 0.5, "Silence"), row(0.5, 19.502, "Verse")]),
    ("segment_open", [row(0.0, 40.0, "of another annotator")]),
)


def test_annotations_of_harmonixset(tmp_path):
    """Its beats lie in files of the same name."""
    wrote(tmp_path / "dataset/segments/0001_song.txt", SEGMENTS)
    wrote(tmp_path / "dataset/beats_and_downbeats/0001_song.txt", "0.530973\t2\t1\n1.061947\t3\t1\n")
    wrote(tmp_path / "dataset/jams/0001_song.jams", JAMS)
    expected = [("intro", 0.0, 8.5), ("verse", 8.5, 20.0), ("chorus", 22.25, 38.0)]
    for track in (
        Track("0001_song", "nowhere/x.wav"),
        Track("a", "nowhere/0001_song.wav#t=0,40"),
        Track("a", "nowhere/x.tar/0001_song.wav"),
        Track("a", "nowhere/x.wav", source="harmonixset:0001_song"),
    ):
        track.texts = [CAPTION]
        sections, by = find_sections(track, SILENT_40, tmp_path)
        assert (times(sections), by) == (expected, "annotation")
    assert find_sections(Track("0002_other", "nowhere/x.wav", texts=[CAPTION]), SILENT_40, tmp_path)[1] == "caption"


def test_annotations_in_jams(tmp_path):
    wrote(tmp_path / "a.jams", JAMS)
    wrote(tmp_path / "b.jams", jams(("segment_salami_upper", [row(0.0, 20.0, "A"), row(20.0, 20.0, "A'")])))
    track = Track("a", "nowhere/x.wav")
    assert times(find_sections(track, SILENT_40, tmp_path)[0]) == [("verse", 0.5, 20.001), ("chorus", 20.001, 40.0)]
    track = Track("b", "nowhere/x.wav")
    assert times(find_sections(track, SILENT_40, tmp_path)[0]) == [("A", 0.0, 20.0), ("A'", 20.0, 40.0)]


def test_annotations_of_salami(tmp_path):
    wrote(tmp_path / "10/parsed/textfile1_uppercase.txt", "0.0\tsilence\n0.0\tA\n21.0\tB\n40.0\tEnd")
    wrote(tmp_path / "10/parsed/textfile1_lowercase.txt", "0.0\ta\n40.0\tEnd")
    wrote(tmp_path / "10/textfile1.txt", "0.0\tA, a, Verse\n40.0\tEnd")
    track = Track("10", "nowhere/x.wav")
    assert times(find_sections(track, SILENT_40, tmp_path)[0]) == [("A", 0.0, 21.0), ("B", 21.0, 40.0)]
    other = tmp_path / "with_functions"
    wrote(other / "10/parsed/textfile1_uppercase.txt", "0.0\tA\n40.0\tEnd")
    wrote(other / "10/parsed/textfile2_functions.txt", SALAMI)
    expected = [("intro", 0.5, 9.0), ("", 9.0, 20.0), ("verse", 20.0, 40.0)]
    assert times(find_sections(track, SILENT_40, other)[0]) == expected


def test_annotations_beside_the_audio(tmp_path):
    track = Track("t1", str(tmp_path / "song.wav"), texts=[CAPTION])
    lyrics = wrote(tmp_path / "song.txt", "3 guitars play.\nAnd a drum.\n")
    assert find_sections(track, SILENT_40)[1] == "caption"
    wrote(tmp_path / "song.jams", JAMS)
    assert len(find_sections(track, SILENT_40)[0]) == 2
    lyrics.write_text(SEGMENTS)
    assert len(find_sections(track, SILENT_40)[0]) == 3
    wrote(tmp_path / "elsewhere" / "t1.txt", "0 verse\n40 end\n")
    assert times(find_sections(track, SILENT_40, tmp_path / "elsewhere")[0]) == [("verse", 0.0, 40.0)]
    salami = Track("7", str(tmp_path / "7.wav"))
    wrote(tmp_path / "7" / "parsed" / "textfile1_functions.txt", SALAMI)
    assert len(find_sections(salami, SILENT_40)[0]) == 3


def test_annotations_are_moved_with_the_crop_and_the_span(tmp_path):
    wrote(tmp_path / "a.txt", "0 intro\n50.5 verse\n60 chorus\n120 outro\n")  # without an end
    crop = Track("a", str(tmp_path / "a.wav"), crop=(50.0, 90.0))
    assert times(find_sections(crop, SILENT_40)[0]) == [("verse", 0.5, 10.0), ("chorus", 10.0, 40.0)]
    span = Track("a", f"{tmp_path}/a.wav#t=40,140", crop=(60.0, 100.0))
    assert times(find_sections(span, SILENT_40)[0]) == [("chorus", 0.0, 20.0), ("outro", 20.0, 40.0)]
    wrote(tmp_path / "a.txt", "0 intro\n90 verse\n120 end\n")
    late = Track("a", f"{tmp_path}/a.wav#t=140,180")
    with pytest.raises(ValueError, match=r"a.txt: has no section from 140.0 to 180.0 s, which is the track"):
        find_sections(late, SILENT_40)


def test_sections_that_are_known_stay_unless_a_file_has_others(tmp_path):
    known = [Section(0.0, 12.0, "verse"), Section(12.0, 40.0, "chorus")]
    track = Track("a", str(tmp_path / "a.wav"), sections=known, texts=[CAPTION])
    assert find_sections(track, SILENT_40) == (known, "annotation")
    track.boundaries = "audio"
    assert find_sections(track, SILENT_40) == (known, "audio")
    wrote(tmp_path / "a.txt", SEGMENTS)
    assert len(find_sections(track, SILENT_40)[0]) == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "0 intro\n8 verse\nten chorus\n", "a.txt: line 3 is 'ten chorus'; expected seconds and a label"),
        ("a.txt", "0 intro\n8 verse\n300 end\n", "a.txt: ends at 300.0 s, the audio at 40.0 s; is it of another"),
        ("a.txt", b"0 intro\n8 caf\xe9\n", "a.txt: cannot be read"),
        ("a.jams", "{", "a.jams: is no JSON"),
        ("a.jams", "[]", "a.jams: has no list of annotations; expected a JAMS file"),
        ("a.jams", jams(("beat", [])), "a.jams: has no annotation of sections; expected one of segment_salami_funct"),
        ("a.jams", jams(("segment_open", [])), "a.jams: segment_open has no section; expected a list of rows with"),
        ("a.jams", jams(("segment_open", [row(-1, 2, "a")])), "a.jams: segment_open, row 0 is .*; expected time and"),
        ("a.jams", jams(("segment_open", ["verse"])), "a.jams: segment_open, row 0 is verse; expected time and"),
    ],
)
def test_what_is_malformed_is_named_in_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as raised:
        find_sections(Track("a", "nowhere/x.wav"), SILENT_40, tmp_path)
    assert "\n" not in str(raised.value)


def test_two_annotations_of_a_track_are_told_apart_by_folder_or_refused(tmp_path):
    wrote(tmp_path / "one" / "01.txt", "0 verse\n40 end\n")
    wrote(tmp_path / "two" / "01.txt", "0 chorus\n40 end\n")
    assert find_sections(Track("t", "songs/two/01.wav"), SILENT_40, tmp_path)[0][0].label == "chorus"
    with pytest.raises(ValueError, match=r"two annotations of one track: one/01.txt and two/01.txt; keep one of them"):
        find_sections(Track("t", "songs/01.wav"), SILENT_40, tmp_path)
    with pytest.raises(ValueError, match="missing: no such folder; expected one of annotation files"):
        find_sections(Track("t", "songs/01.wav"), SILENT_40, tmp_path / "missing")
