"""Checks of captions: times that cannot be, statements that measurements refute, splits without leaks."""

import pytest

from collap.corpora.check import (
    CaptionTotals,
    check_caption,
    covered_share,
    impossible_times,
    is_english,
    times_beyond,
    untrue_lengths,
    untrue_silence,
    untrue_tempi,
)
from collap.corpora.selection import keys_of, split_tracks
from collap.corpora.tracks import Caption, Section, Track
from collap.corpora.write import cut_by_size


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([(0, 60), (60, 120)], []),
        ([(0, 60), (60, 120.4)], []),
        ([(0, 60), (60, 125)], ["beyond the end: section 2"]),
        ([(0, 70), (60, 120)], ["overlap: section 2"]),
        ([(60, 120), (0, 60)], ["descending: section 2"]),
        ([(0, 0), (10, 5)], ["section 1: starts", "section 2: starts"]),
    ],
)
def test_times_that_cannot_be_are_named(times, said):
    found = impossible_times([Section(*one) for one in times], 120.0)
    assert len(found) == len(said) and all(one.startswith(two) for one, two in zip(found, said, strict=True))


def test_a_clock_time_after_the_end_is_named():
    assert not times_beyond("From 0:00 to 2:01, drums.", 120.0)
    assert times_beyond("At 2:40 the choir comes in.", 120.0) == [
        "beyond the end: says 2:40, the track ends at 120.0 s"
    ]


def test_a_moment_is_covered_once():
    assert covered_share([Section(0, 60), Section(30, 90)], 120.0) == pytest.approx(0.75)
    assert covered_share([Section(60, 500)], 120.0) == pytest.approx(0.5)
    assert covered_share([], 120.0) == 0


@pytest.mark.parametrize(
    ("text", "tempo", "count"),
    [
        ("a fast song at 120 BPM", 121.0, 0),
        ("a fast song at 120 BPM", 60.5, 0),
        ("60 beats per minute, later 180 bpm", 120.0, 1),
        ("at 40 BPM", 120.0, 0),
        ("at 90 BPM", 120.0, 1),
        ("at 90 BPM", None, 0),
        ("it has 90 notes", 120.0, 0),
    ],
)
def test_a_tempo_is_held_against_the_measured_one(text, tempo, count):
    assert len(untrue_tempi(text, tempo)) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("A piece that lasts 4:02.", 0),
        ("A piece that lasts 3:02.", 1),
        ("A 4-minute song.", 0),
        ("An 8 minute long track.", 1),
        ("It lasts 4 minutes and 1 second.", 0),
        ("It lasts 2 minutes and 40 seconds.", 1),
        ("A 30-second piece.", 1),
        ("The drums enter at 1:10.", 0),
    ],
)
def test_a_length_is_held_against_the_true_one(text, count):
    assert len(untrue_lengths(text, 242.0)) == count


def test_silence_is_held_against_the_loudness():
    told = [Section(0, 5, "", "part 1 is silent."), Section(5, 10, "", "Loud drums."), Section(10, 15, "", "")]
    assert not untrue_silence(told, [-120.0, -20.0, -120.0])
    assert [one.split()[2] for one in untrue_silence(told, [-20.0, -90.0, -20.0])] == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The song begins with a soft piano, and then the drums come in with a guitar.", True),
        ("Das Lied beginnt mit einem leisen Klavier, dann kommen Schlagzeug und eine Gitarre dazu.", False),
        ("La chanson commence par un piano doux, puis la batterie et une guitare entrent en jeu.", False),
        ("这首歌以柔和的钢琴开始", True),  # too few words to tell
    ],
)
def test_language_is_told_by_common_words(text, expected):
    assert is_english(text) is expected


def test_captions_are_counted():
    totals, sections = CaptionTotals(), [Section(0, 60, "verse", "The verse."), Section(60, 120, "chorus", "Silent.")]
    measures = {"tempo": 100.0, "sections": [{"start": 60, "end": 120, "loudness": -20.0}]}
    for name, words in (
        ("a", "It is a song at 80 BPM."),
        ("b", "It is a song at 100 BPM."),
        ("c", "it is a song  at 100 BPM."),
    ):
        totals.add(name, words, check_caption(Caption(words, sections), words, 120.0, measures))
    figures = totals.figures()
    assert (figures["captions"], figures["repeated"], figures["untrue"]) == (3, 1, {"tempo": 1})
    assert figures["cover_the_track"] == 1 and figures["mean_words"] == 7 and figures["mean_sections"] == 2
    assert figures["untrue_examples"] == ["a: tempo: says 80 BPM, measured 100"] and figures["vocabulary"] == 6


def test_tracks_that_share_anything_share_their_split():
    tracks = [
        Track(str(i), "x", artist=f"artist {i % 40}", source=f"video {i // 3}" if i % 7 == 0 else None)
        for i in range(400)
    ]
    groups = {track.id: keys_of(track) for track in tracks}
    splits = split_tracks(groups, 0.2, seed=0)
    for key in {key for keys in groups.values() for key in keys}:
        assert len({splits[name] for name, keys in groups.items() if key in keys}) == 1, key
    assert split_tracks(dict(reversed(groups.items())), 0.2, seed=0) == splits
    assert split_tracks(groups, 0.2, seed=1) != splits


def test_a_chain_of_artist_and_source_is_one_group():
    chain = {"1": ["artist a"], "2": ["artist a", "source s"], "3": ["source s", "artist b"], "4": ["artist b"]}
    assert len(set(split_tracks(chain, 0.5, seed=3).values())) == 1


def test_the_share_to_validate_on_is_met_and_never_empty():
    many = {str(i): [f"artist {i}"] for i in range(2000)}
    share = list(split_tracks(many, 0.1, 0).values()).count("validation") / 2000
    assert share == pytest.approx(0.1, abs=0.02)
    few = {str(i): [f"artist {i}"] for i in range(3)}
    assert sorted(split_tracks(few, 0.01, 0).values()) == ["train", "train", "validation"]
    assert sorted(split_tracks(few, 0.99, 0).values())[0] == "train"
    assert set(split_tracks(few, 0, 0).values()) == {"train"}
    for seed in range(30):  # one artist alone is never all there is to validate on
        assert split_tracks({"a": ["artist x"], "b": ["artist x"]}, 0.5, seed) == {"a": "train", "b": "train"}


def test_names_that_stand_for_no_artist_bind_no_tracks():
    tracks = [Track(str(i), "x", artist=artist) for i, artist in enumerate(("Various Artists", "unknown artist", "VA"))]
    assert [keys_of(track) for track in tracks] == [["track 0"], ["track 1"], ["track 2"]]
    assert keys_of(Track("3", "x", artist=" The  Band ")) == ["artist the band"]


def test_shards_and_row_groups_hold_what_they_may():
    sizes = [4, 4, 4, 20, 1, 1, 1, 1]
    assert [list(one) for one in cut_by_size(sizes, 10, 3)] == [[0, 1], [2], [3], [4, 5, 6], [7]]
    assert not list(cut_by_size([], 10, 3))
