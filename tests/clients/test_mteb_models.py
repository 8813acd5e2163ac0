"""The wrappers for mteb: its own figures on a task of real audio files are ours, digit by digit, pooled and by the
model's score; and what a task cannot ask of them is said in one line."""

import re
from pathlib import Path

import mteb
import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.models_protocols import EncoderProtocol, SearchProtocol

from collap.evaluation.load_embedders import load_embedder
from collap.evaluation.metrics import ranks_of_correct, retrieval_metrics
from collap.evaluation.mteb_models import PooledModel, ScoringModel, mteb_name, song_samples
from collap.evaluation.songs import RetrievalSet, ranks_by_direction
from processing import load_audio

WORDS = ("slow", "loud", "piano", "choir", "drums", "a flute", "strings", "brass")
NUM_SONGS, NUM_TEXTS = 8, 16
CUTOFFS = (1, 3, 5)


def local_task(category: str, queries: Dataset, corpus: Dataset, relevant: dict, **data) -> AbsTaskRetrieval:
    """A task of retrieval with data at hand, as mteb's tasks of music are (MusicCapsT2ARetrieval)."""

    class LocalRetrieval(AbsTaskRetrieval):
        k_values = CUTOFFS
        metadata = TaskMetadata(
            name=f"Local{category.upper()}Retrieval",
            description="Songs and captions",
            dataset={"path": "here", "revision": "1"},
            type="Any2AnyRetrieval",
            category=category,
            modalities=["audio", "text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_1",
            date=("2026-01-01", "2026-12-31"),
            domains=["Music"],
            task_subtypes=["Music Caption Retrieval"],
            license="cc0-1.0",
            annotations_creators="derived",
            dialect=[],
            sample_creation="created",
            bibtex_citation="",
        )

        def load_data(self, **kwargs):
            parts = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None, **data}
            self.dataset, self.data_loaded = {"default": {"test": parts}}, True

    return LocalRetrieval()


@pytest.fixture(scope="module")
def data(tmp_path_factory, sounds):
    """Songs as files of two rates and three kinds, two captions for each."""
    folder, random = tmp_path_factory.mktemp("mteb_songs"), np.random.default_rng(0)
    names = []
    for index in range(NUM_SONGS):
        sound = ("clip0.wav", "clip1.wav", "clip2.wav", "song.mp3")[index % 4]
        path = folder / f"song{index}{('.wav', '.flac', '.ogg')[index % 3]}"
        _write_part(sounds.folder / sound, path, index, 22050 if index % 2 else 16000)
        names.append(str(path))
    texts = [" and ".join(random.permutation(WORDS)[:3]) + f" in bar {index}" for index in range(NUM_TEXTS)]
    return {
        "names": names,
        "texts": texts,
        "songs": Dataset.from_dict({"id": [f"s{i}" for i in range(NUM_SONGS)], "audio": names}).cast_column(
            "audio", Audio(decode=False)
        ),
        "captions": Dataset.from_dict({"id": [f"t{i}" for i in range(NUM_TEXTS)], "text": texts}),
    }


def _write_part(source: Path, path: Path, index: int, rate: int) -> None:
    samples = load_audio(source, rate, start=index / 2, stop=index / 2 + 2 + index / 4)
    soundfile.write(path, samples * (0.2 + 0.1 * index), rate)


def tasks(data) -> list[AbsTaskRetrieval]:
    by_text = {f"t{i}": {f"s{i // 2}": 1} for i in range(NUM_TEXTS)}
    by_song = {f"s{i}": {f"t{2 * i}": 1, f"t{2 * i + 1}": 1} for i in range(NUM_SONGS)}
    return [
        local_task("t2a", data["captions"], data["songs"], by_text),
        local_task("a2t", data["songs"], data["captions"], by_song),
    ]


def run(model, data) -> dict[str, dict]:
    return by_direction(mteb.evaluate(model, tasks(data), cache=None, show_progress_bar=False, co2_tracker=False))


def by_direction(results) -> dict[str, dict]:
    return {one.task_name[5:8].lower(): one.scores["test"][0] for one in results.task_results}


def our_figures(embedder, data) -> tuple[np.ndarray, dict[str, dict]]:
    """Scores (A, B) one by one, and what `collap evaluate` makes of them."""
    embeds = embedder.embed_texts(data["texts"])
    songs = [embedder.embed_audio(load_audio(name, embedder.sampling_rate)) for name in data["names"]]
    scores = torch.stack([embedder.score(embeds, song).float() for song in songs]).numpy()
    pairs = RetrievalSet([*range(NUM_SONGS)], data["names"], data["texts"], [i // 2 for i in range(NUM_TEXTS)])
    ranked = ranks_by_direction(scores, pairs)
    return scores, {
        mteb_direction: retrieval_metrics(*ranked[ours], k=CUTOFFS, num_bootstrap=10)
        for mteb_direction, ours in (("t2a", "text_to_audio"), ("a2t", "audio_to_text"))
    }


def check_equal(theirs: dict, ours: dict) -> None:
    """R@k is mteb's hit rate; mteb rounds to five digits."""
    for direction, figures in ours.items():
        for k in CUTOFFS:
            assert theirs[direction][f"hit_rate_at_{k}"] == round(figures[f"R@{k}"]["value"] / 100, 5)
    assert theirs["t2a"]["recall_at_1"] == theirs["t2a"]["hit_rate_at_1"]  # one correct song each
    assert 0 < theirs["t2a"]["hit_rate_at_5"] < 1


@pytest.fixture(scope="module")
def pooled(model_folder, data) -> dict[str, dict]:
    """What mteb finds of pooled vectors."""
    return run(PooledModel(load_embedder(str(model_folder))), data)


def test_pooled_vectors_have_the_figures_of_the_mean_token_to_the_last_digit(model_folder, data, pooled):
    model = PooledModel(load_embedder(str(model_folder)))
    assert isinstance(model, EncoderProtocol) and not isinstance(model, SearchProtocol)
    scores, ours = our_figures(load_embedder(f"{model_folder}@mean"), data)
    check_equal(pooled, ours)
    cosines = model.similarity(torch.cat(model.embed_songs(data["songs"]["audio"])), model.embed_texts(data["texts"]))
    np.testing.assert_allclose(cosines, scores, atol=1e-6)
    pairs = model.similarity_pairwise(model.embed_texts(data["texts"][:2]), 3 * model.embed_texts(data["texts"][:2]))
    np.testing.assert_allclose(pairs, [1, 1], atol=1e-6)


def documented(model_folder, asked) -> object:
    """Run the block of docs/clients.md that searches by a model's score."""
    text = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
    (block,) = [one for one in re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S) if "ScoringModel" in one]
    found = {"mteb": mteb, "tasks": asked}
    exec(block.replace("you/collap-gpt2", str(model_folder)), found)
    return found["results"]


def test_search_is_by_the_models_own_score(model_folder, data, pooled):
    embedder = load_embedder(str(model_folder))
    theirs = by_direction(documented(model_folder, tasks(data)))
    _, ours = our_figures(embedder, data)
    check_equal(theirs, ours)
    assert any(pooled[way][k] != theirs[way][k] for way in pooled for k in ("mrr_at_5", "hit_rate_at_3"))


def test_search_returns_the_best_scores_and_ranks_a_list_again(model_folder, data):
    model, (task, _) = ScoringModel(load_embedder(str(model_folder))), tasks(data)
    assert isinstance(model, SearchProtocol)
    scores, _ = our_figures(model.embedder, data)
    asked = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default", "encode_kwargs": {}}
    model.index(data["songs"], **asked)
    found = model.search(data["captions"], **asked, top_k=3)
    for text, row in enumerate(scores.T):
        best = np.argsort(-row)[:3]
        assert list(found[f"t{text}"]) == [f"s{song}" for song in best]
        np.testing.assert_array_equal(list(found[f"t{text}"].values()), row[best].astype(float))
    model.index(data["songs"], **asked)
    listed = {f"t{text}": ["s1", "s4"] for text in range(NUM_TEXTS)}
    again = model.search(data["captions"], **asked, top_k=3, top_ranked=listed)
    assert set(again["t0"]) == {"s1", "s4"} and again["t3"]["s4"] == scores[4, 3]
    with pytest.raises(ValueError, match="nothing to search in"):
        model.search(data["captions"], **asked, top_k=3)


def test_other_models_are_handed_to_mteb_as_well(data):
    random = load_embedder("random")
    scores, ours = our_figures(random, data)
    check_equal(run(PooledModel(random), data), ours)
    ranks = ranks_of_correct(scores.T, [[i // 2] for i in range(NUM_TEXTS)])
    assert 1 < np.median([one[0] for one in ranks]) < NUM_SONGS


class LocalClassification(AbsTaskClassification):
    """Tones of two pitches, as mteb's tasks of genres have songs."""

    input_column_name, label_column_name, samples_per_label, n_experiments = "audio", "label", 4, 2
    metadata = TaskMetadata(
        name="LocalClassification",
        description="Tones",
        dataset={"path": "here", "revision": "1"},
        type="AudioClassification",
        category="a2t",
        modalities=["audio"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="accuracy",
        date=("2026-01-01", "2026-12-31"),
        domains=["Music"],
        task_subtypes=["Music Genre Classification"],
        license="cc0-1.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
    )

    def load_data(self, **kwargs):
        self.dataset, self.data_loaded = {"train": self.part(10), "test": self.part(8)}, True

    @staticmethod
    def part(count: int) -> Dataset:
        time, random = np.arange(8000) / 16000, np.random.default_rng(count)
        tones = [np.sin(2 * np.pi * (3000, 200)[index % 2] * time) for index in range(count)]
        audio = [0.3 * tone + 0.01 * random.standard_normal(8000) for tone in tones]
        rows = [{"array": samples, "sampling_rate": 16000} for samples in audio]
        return Dataset.from_dict({"audio": rows, "label": [index % 2 for index in range(count)]})


@pytest.mark.parametrize("kind", [PooledModel, ScoringModel])
def test_tasks_without_a_search_get_pooled_vectors(model_folder, kind):
    model = kind(load_embedder(str(model_folder)))
    found = mteb.evaluate(model, LocalClassification(), cache=None, show_progress_bar=False, co2_tracker=False)
    assert found.task_results[0].scores["test"][0]["accuracy"] == 1.0  # untrained encoders tell tones apart


def test_what_is_known_of_a_model_tells_its_readings_apart(model_folder):
    embedder = load_embedder(str(model_folder))
    pooled, scoring = (kind(embedder).mteb_model_meta for kind in (PooledModel, ScoringModel))
    assert pooled.name == "local/collap-gpt2" and pooled.revision == embedder.weights
    assert pooled.modalities == ["audio", "text"] and pooled.experiment_name != scoring.experiment_name
    names = {"you/collap-gpt2@mean": "you/collap-gpt2@mean", "runs/a/best": "local/best", "random": "local/random"}
    assert {name: mteb_name(name) for name in names} == names


def test_audio_in_memory_is_the_audio_of_its_file(data):
    samples = load_audio(data["names"][1], 22050)
    found = song_samples({"array": samples, "sampling_rate": 22050}, 16000, "audio")
    expected = song_samples({"path": data["names"][1], "bytes": None}, 16000, "audio")
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    np.testing.assert_array_equal(
        song_samples({"path": None, "bytes": Path(data["names"][1]).read_bytes()}, 16000, ""), expected
    )


def test_tasks_that_no_song_and_text_are_compared_in_are_refused(model_folder, data):
    model = ScoringModel(load_embedder(str(model_folder)))
    relevant = {f"t{i}": {f"t{i}": 1} for i in range(NUM_TEXTS)}
    task = local_task("t2t", data["captions"], data["captions"], relevant)
    with pytest.raises(ValueError, match=r"compares text with text.*use PooledModel"):
        mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
    both = data["songs"].add_column("text", ["x"] * NUM_SONGS)
    task = local_task("t2at", data["captions"], both, {"t0": {"s0": 1}})
    with pytest.raises(ValueError, match="expected one of 'text' and 'audio', not both"):
        mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
