"""Tagging, linear probes and songs by a song: figures against scikit-learn's and plain ones, chance, no leak between
parts, and all of it by the command on a folder of labels and on GTZAN."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from collap.cli import run_command
from collap.evaluation.analysis.audio_retrieval import (
    AudioRetrieval,
    max_similarities,
    mean_frames,
    ranks_of_related,
    related_songs,
)
from collap.evaluation.analysis.label_metrics import (
    average_precision,
    drawn_counts,
    label_figures,
    label_table,
    mean_of_labels,
    right_labels,
    roc_auc,
)
from collap.evaluation.analysis.probe import LinearProbe, chosen_strength, group_folds, probe_scores
from collap.evaluation.analysis.tagging import MEAN, Tagging
from collap.evaluation.metrics import average_precisions

pytestmark = pytest.mark.filterwarnings("ignore:.*recordings of .* have no audio")


def test_figures_of_labels_are_those_of_scikit_learn_in_every_resample():
    generator = np.random.default_rng(0)
    for _ in range(40):
        scores, has = generator.integers(0, 7, 30).astype(float), generator.random(30) < 0.4  # with ties
        drawn = generator.integers(0, 30, (4, 30))
        precisions, areas = (one(scores, has, drawn_counts(drawn)) for one in (average_precision, roc_auc))
        for songs, precision, area in zip(drawn, precisions, areas, strict=True):
            if 0 < has[songs].sum() < 30:
                assert precision == pytest.approx(average_precision_score(has[songs], scores[songs]), abs=1e-12)
                assert area == pytest.approx(roc_auc_score(has[songs], scores[songs]), abs=1e-12)
    everyone = np.ones(5, bool), np.arange(5)[None]
    assert np.isnan(roc_auc(np.arange(5.0), everyone[0], drawn_counts(everyone[1]))[0])


def test_macro_figures_and_intervals_of_several_labels():
    generator = np.random.default_rng(1)
    has = generator.random((60, 4)) < [0.1, 0.3, 0.5, 0.7]
    has[0] = True
    scores = generator.standard_normal((60, 4)) + has
    found = label_figures(scores, has, 0)
    assert {*found} == {"mAP", "ROC-AUC"}  # songs have several labels
    for name, plain in (("mAP", average_precision_score), ("ROC-AUC", roc_auc_score)):
        assert found[name]["value"] == pytest.approx(100 * plain(has, scores, average="macro"), abs=1e-9)
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
        assert found[name]["low"] > found[name]["chance"]
    nobody = has & (np.arange(60) > 3)[:, None]
    assert np.isnan(mean_of_labels(average_precision, scores, nobody, np.array([[1, 2, 3] * 20]))[0])


def test_random_scores_are_at_chance():
    generator, values = np.random.default_rng(2), {}
    has = np.eye(5, dtype=bool)[generator.integers(0, 5, 200)]
    for _ in range(60):
        scores = generator.standard_normal((200, 5))
        drawn = np.arange(200)[None]
        values.setdefault("accuracy", []).append(100 * right_labels(scores, has).mean())
        values.setdefault("mAP", []).append(mean_of_labels(average_precision, scores, has, drawn)[0])
        values.setdefault("ROC-AUC", []).append(mean_of_labels(roc_auc, scores, has, drawn)[0])
    chances = {name: one["chance"] for name, one in label_figures(scores, has, 0).items()}
    for name, found in values.items():
        assert np.mean(found) == pytest.approx(chances[name], abs=4 * np.std(found) / 60**0.5), name


def test_equal_scores_of_two_labels_are_wrong():
    has = np.eye(2, dtype=bool)
    assert right_labels(np.array([[1.0, 1.0], [0.0, 0.1]]), has).tolist() == [False, True]
    labels, table = label_table(["rock", " pop ", "rock"], [0, 0, 1], 2)
    assert labels == ["pop", "rock"] and table.tolist() == [[True, True], [False, True]]


# --------------------------------------------------------------------------------------------------------------------
# Probes


def drawn_vectors(num_songs: int = 90, width: int = 6, seed: int = 0):
    """Vectors that hold which of three labels a song has."""
    generator = np.random.default_rng(seed)
    own = generator.integers(0, 3, num_songs)
    return 3 * generator.standard_normal((3, width))[own] + 2 * generator.standard_normal((num_songs, width)), own


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_a_probe_is_the_pipeline_of_scikit_learn(strength):
    vectors, own = drawn_vectors()
    fold = np.arange(60), np.arange(60, 90)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    expected = plain.fit(vectors[:60], own[:60]).predict_log_proba(vectors[60:])
    np.testing.assert_allclose(probe_scores(vectors, np.eye(3, dtype=bool)[own], fold, strength), expected)
    several = np.stack([own == 0, own < 2, own >= 0], axis=1)  # the last is true of all
    found = probe_scores(vectors, several, fold, strength)
    for label in (0, 1):
        one = plain.fit(vectors[:60], several[:60, label]).decision_function(vectors[60:])
        np.testing.assert_allclose(found[:, label], one)
    assert len(set(found[:, 2])) == 1


def test_no_group_is_on_both_sides_and_every_song_is_scored_once():
    groups = np.random.default_rng(3).integers(0, 13, 80).astype(str)
    folds = list(group_folds(groups, 5, 0))
    assert all(not set(groups[known]) & set(groups[unknown]) for known, unknown in folds) and len(folds) == 5
    assert sorted(np.concatenate([unknown for _, unknown in folds])) == list(range(80))
    assert len(list(group_folds(np.array(["a", "b"]), 5, 0))) == 2


def test_the_strength_is_the_best_of_validation():
    vectors, own = drawn_vectors(60, 40, 1)
    has, fold = np.eye(3, dtype=bool)[own], (np.arange(30), np.arange(30, 60))
    strengths = (1e-5, 0.01, 100.0)
    rights = {one: right_labels(probe_scores(vectors, has, fold, one), has[30:]).mean() for one in strengths}
    assert rights[chosen_strength(vectors, has, [fold], strengths)] == max(rights.values())
    assert len(set(rights.values())) > 1


class Run:
    """Stands for a pool whose vectors are given."""

    def __init__(self, vectors, labels: list[list[str]], tokens=None, **columns):
        self.rows = list(range(len(labels)))
        texts = [(text, song) for song, own in enumerate(labels) for text in own]
        self.songs = SimpleNamespace(
            rows=self.rows, texts=[text for text, _ in texts], song_of_text=[song for _, song in texts]
        )
        self.dataset, self.seed, self.given, self._tokens = Columns(columns), 0, vectors, tokens

    def vectors(self, embedder):
        return self.given

    def tokens(self, embedder):
        yield from self._tokens if self._tokens is not None else (torch.tensor(one)[None] for one in self.given)


class Columns(dict):
    @property
    def column_names(self):
        return list(self)

    def select_columns(self, names):
        return [{name: self[name][row] for name in names} for row in range(len(self[names[0]]))]


EMBEDDER = SimpleNamespace(name="model")


def test_a_probe_uses_the_split_and_shows_nothing_of_the_test():
    vectors, own = drawn_vectors()
    split = ["train"] * 40 + ["validation"] * 20 + ["test"] * 30
    labels = [[f"label {one}"] for one in own]
    outcome = LinearProbe().measure(Run(vectors, labels, split=split), EMBEDDER)
    (figures,) = outcome.figures.values()
    assert set(outcome.figures) == {"by the split"} and figures["accuracy"]["value"] > 80
    has, fold = np.eye(3, dtype=bool)[own], (np.arange(40), np.arange(60, 90))
    strength = chosen_strength(vectors, has, [(np.arange(40), np.arange(40, 60))], LinearProbe().strengths)
    right = right_labels(probe_scores(vectors, has, fold, strength), has[60:])
    assert figures["accuracy"]["value"] == pytest.approx(100 * right.mean())
    assert any(f"C {strength:g}" in note for note in outcome.notes) and any(
        "30 songs" in note for note in outcome.notes
    )
    other = [*labels[:60], *([f"label {(one + 1) % 3}"] for one in own[60:])]  # what is learnt does not depend on it
    again = LinearProbe().measure(Run(vectors, other, split=split), EMBEDDER)
    assert again.notes[-1] == outcome.notes[-1]
    assert again.figures["by the split"]["accuracy"]["value"] < 20


def test_a_probe_by_folds_keeps_artists_apart():
    """Each artist has one label, and vectors that say who plays but not what: a leak would be seen as learning."""
    generator = np.random.default_rng(4)
    artists = np.repeat(np.arange(24), 6)
    vectors = 5 * generator.standard_normal((24, 30))[artists] + generator.standard_normal((144, 30))
    labels = [[f"label {one % 2}"] for one in artists]
    names = [f"artist {one}" for one in artists]
    apart = LinearProbe(strengths=(1.0,)).measure(Run(vectors, labels, artist=names), EMBEDDER)
    mixed = LinearProbe(strengths=(1.0,)).measure(Run(vectors, labels), EMBEDDER)
    assert mixed.figures["by 5 folds"]["accuracy"]["value"] > 95
    assert apart.figures["by 5 folds"]["accuracy"]["value"] < 75
    assert any("no 'artist' on both sides" in note for note in apart.notes)
    alone = LinearProbe().measure(Run(vectors[:6], labels[:3] + [["other"]] * 3, artist=names[:6]), EMBEDDER)
    assert not alone.figures and "nothing to learn from" in alone.notes[0]


# --------------------------------------------------------------------------------------------------------------------
# Songs by a song


def test_songs_are_ranked_among_the_others_as_scikit_learn_does():
    generator = np.random.default_rng(5)
    vectors = generator.standard_normal((25, 8))
    labels = [list(generator.permutation(list("abcde"))[: generator.integers(0, 3)]) for _ in range(25)]
    related = related_songs(labels)
    assert related == [
        [other for other in range(25) if other != song and set(labels[song]) & set(labels[other])] for song in range(25)
    ]
    similarities = vectors @ vectors.T
    ranks, queries = ranks_of_related(similarities, related)
    assert queries == [song for song in range(25) if related[song]]
    for song, precision in zip(queries, average_precisions(ranks), strict=True):
        others = [other for other in range(25) if other != song]
        correct = [other in related[song] for other in others]
        assert precision == pytest.approx(average_precision_score(correct, similarities[song, others]))
    assert related_songs(["x", None, "x", "y"]) == [[2], [], [0], []]


def test_max_sim_is_the_mean_over_frames_of_the_nearest_frame():
    generator = torch.Generator().manual_seed(0)
    songs = [torch.randn(length, 5, generator=generator) for length in (1, 3, 17)]
    frames = [mean_frames(song, 4) for song in songs]
    assert [len(one) for one in frames] == [1, 3, 4]
    expected = torch.nn.functional.normalize(songs[2][:5].mean(0), dim=0)
    torch.testing.assert_close(frames[2][0], expected)
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor([1, 3, 4]))
    for query in frames:
        found = max_similarities(query, torch.cat(frames), owner, 3)
        plain = [np.mean([max(float(a @ b) for b in other) for a in query]) for other in frames]
        np.testing.assert_allclose(found, plain, atol=1e-6)


def test_frames_find_what_the_mean_hides():
    """Songs with one part in common, which is elsewhere in each and outweighed by the rest."""
    generator = torch.Generator().manual_seed(1)
    parts = torch.nn.functional.normalize(torch.randn(6, 200, generator=generator), dim=-1)
    tokens = []
    for song in range(12):
        own = torch.nn.functional.normalize(torch.randn(8, 200, generator=generator), dim=-1)
        own[song % 8] = parts[song // 2]
        tokens.append(own)
    vectors = torch.nn.functional.normalize(torch.stack([one.mean(0) for one in tokens]), dim=-1).numpy()
    run = Run(vectors, [["x"]] * 12, tokens, work=[song // 2 for song in range(12)])
    found = AudioRetrieval(label_column="work", frames=8).measure(run, EMBEDDER).figures
    assert found["MaxSim of frames"]["R@1"]["value"] == 100 and found["pooled cosine"]["R@1"]["value"] < 100
    assert found["pooled cosine"]["R@1"]["chance"] == pytest.approx(100 / 11)
    assert set(AudioRetrieval(label_column="work", frames=0).measure(run, EMBEDDER).figures) == {"pooled cosine"}
    assert set(AudioRetrieval().measure(Run(vectors, [["x"]] * 12), EMBEDDER).figures) == {
        "pooled cosine"
    }  # one vector
    for column, message in (("artists", "no column 'artists'"), ("alone", "no two songs share")):
        missing = AudioRetrieval(label_column=column).measure(
            Run(vectors, [["x"]] * 12, alone=[*"abcdefghijkl"]), EMBEDDER
        )
        assert not missing.figures and message in missing.notes[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tagging(templates=("a song",)), "templates: 'a song'; expected"),
        (lambda: Tagging(templates="{label}"), "templates: '{label}'; expected a list"),
        (lambda: LinearProbe(strengths=(0,)), "strengths: .*numbers above 0"),
        (lambda: LinearProbe(folds=1), "folds: 1; expected"),
        (lambda: LinearProbe(group_column=3), "group_column: 3; expected"),
        (lambda: AudioRetrieval(frames=-1), "frames: -1; expected"),
        (lambda: AudioRetrieval(label_column=None), "label_column: None; expected"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --------------------------------------------------------------------------------------------------------------------
# By the command


SUITE = """
title: Labels
pools:
  - {title: moods, dataset: folder, folder: moods, text_column: moods}
  - {title: GTZAN, dataset: gtzan, folder: gtzan, split: all}
analyses:
  tagging: {templates: ["{label}", "a {label} song"]}
  linear_probe: {strengths: [0.1, 1.0], folds: 2, pools: [GTZAN]}
  audio_retrieval: {frames: 4}
"""


def test_a_folder_of_labels_and_gtzan_by_the_command(real, sounds, model_folder, tmp_path):
    root = tmp_path / "data"
    lines = []
    for index, moods in enumerate((["calm", "sad"], ["calm"], ["wild"], ["wild", "sad"])):
        sounds.put(f"clip{index % 3}.wav", root / "moods" / "test" / f"song{index}.wav")
        lines.append(json.dumps({"file_name": f"song{index}.wav", "moods": moods}) + "\n")
    (root / "moods" / "test" / "metadata.jsonl").write_text("".join(lines))
    (root / "gtzan").symlink_to(real["gtzan"])
    (tmp_path / "labels.yaml").write_text(SUITE)
    arguments = ["--suite", str(tmp_path / "labels.yaml"), "--data_root", str(root)]
    arguments += ["--models", str(model_folder), "random", "--output_dir", str(tmp_path / "found")]
    assert run_command("evaluate", arguments) == 0
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    analyses = {one["name"]: {pool["title"]: pool for pool in one["pools"]} for one in results["analyses"]}
    assert {*analyses["linear_probe"]} == {"GTZAN"} and {*analyses["tagging"]} == {"moods", "GTZAN"}
    for pools in analyses.values():
        for pool in pools.values():
            assert {*pool["rows"]} == {str(model_folder), "random"} and pool["missing"] is None
    tagging = analyses["tagging"]["GTZAN"]["rows"]["random"]["figures"]
    assert set(tagging) == {"{label}", "a {label} song", MEAN} and tagging[MEAN]["accuracy"]["chance"] == 50
    assert "accuracy" not in analyses["tagging"]["moods"]["rows"]["random"]["figures"][MEAN]  # several labels
    probed = analyses["linear_probe"]["GTZAN"]["rows"][str(model_folder)]["figures"]["by the split"]
    assert probed["accuracy"]["value"] == 100  # the clips of a genre are one recording here
    assert set(analyses["audio_retrieval"]["GTZAN"]["rows"][str(model_folder)]["figures"]) == {
        "pooled cosine",
        "MaxSim of frames",
    }
    text = (tmp_path / "found" / "results.md").read_text()
    assert "Zero-shot tagging" in text and "4 songs measured, by the split; no 'artist'" in text
