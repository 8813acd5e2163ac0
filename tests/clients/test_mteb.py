"""mteb, unchanged, takes a published CoLLAP for audio and text: it reads what the repository says of itself, loads it
and runs retrieval in both directions, in a fresh process where CoLLAP is not installed."""

import json
import subprocess
import sys

import numpy as np
import pytest
from elsewhere import REFUSE_INSTALLED
from hub_server import HubServer
from sentence_transformers import SentenceTransformer
from tiny import tiny_model, tiny_processor

from collap.models import save_model_folder

# The tasks of mteb for music (MusicCapsA2TRetrieval, LPMusicCapsMTTT2ARetrieval) with local data.
# Arguments: a JSON file of the captions and waveforms.
EVALUATE = """
import json
import numpy as np
import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

captions, waveforms = json.load(open(sys.argv[1]))
names = [f"song-{index}" for index in range(len(captions))]
texts = Dataset.from_dict({"id": [f"text-{index}" for index in range(len(captions))], "text": captions})
audio = [{"array": waveform, "sampling_rate": 16000} for waveform in waveforms]
songs = Dataset.from_dict({"id": names, "audio": audio})

def task(category, queries, corpus):
    class LocalRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Local{category.upper()}Retrieval", description="Songs and captions",
            dataset={"path": "here", "revision": "1"}, type="Any2AnyRetrieval", category=category,
            modalities=["audio", "text"], eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="hit_rate_at_1", date=("2026-01-01", "2026-12-31"), domains=["Music"],
            task_subtypes=["Music Caption Retrieval"], license="cc0-1.0", annotations_creators="derived", dialect=[],
            sample_creation="created", bibtex_citation="",
        )

        def load_data(self, **kwargs):
            relevant = {one: {other: 1} for one, other in zip(queries["id"], corpus["id"])}
            self.dataset = {
                "default": {
                    "test": {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
                }
            }
            self.data_loaded = True
    return LocalRetrieval()

meta = mteb.get_model_meta("you/collap-gpt2", fetch_from_hf=True)
model = mteb.get_model("you/collap-gpt2", device="cpu", trust_remote_code=True)
results = mteb.evaluate(
    model, [task("t2a", texts, songs), task("a2t", songs, texts)], cache=None, encode_kwargs={"batch_size": 3},
    show_progress_bar=False, co2_tracker=False,
)
scores = {one.task_name: one.scores["test"][0] for one in results.task_results}
assert not {"modeling_collap", "processing"} & set(sys.modules)
print()
print(json.dumps({"modalities": meta.modalities, "max_tokens": meta.max_tokens, "scores": scores}))
"""

CAPTIONS = ["a slow song with piano", "a loud guitar", "a choir over strings", "drums and brass take over", "a flute"]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What mteb says of the repository, and its scores."""
    folder = tmp_path_factory.mktemp("mteb")
    save_model_folder(tiny_model("gpt2"), tiny_processor("gpt2"), folder / "model")
    (folder / "model" / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# CoLLAP\n")
    (folder / "songs.json").write_text(json.dumps([CAPTIONS, [song.tolist() for song in songs()]]))
    with HubServer() as hub:
        hub.commit("you/collap-gpt2", {path.name: path.read_bytes() for path in (folder / "model").iterdir()})
        done = subprocess.run(
            [sys.executable, "-c", REFUSE_INSTALLED + EVALUATE, str(folder / "songs.json")],
            cwd=folder,
            env={**hub.environment(folder), "MTEB_CACHE": str(folder / "mteb_cache")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    return {"folder": folder, **json.loads(done.stdout.splitlines()[-1])}


def songs() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [
        (0.1 * random.standard_normal(8000 * (2 + index))).astype(np.float32).round(4) for index in range(len(CAPTIONS))
    ]


def test_mteb_knows_that_both_modalities_are_embedded(found):
    assert found["modalities"] == ["audio", "text"]


def test_scores_are_those_of_the_cosines(found):
    model = SentenceTransformer(str(found["folder"] / "model"), trust_remote_code=True, device="cpu")
    texts = model.encode(CAPTIONS)
    cosines = texts @ model.encode([{"array": song, "sampling_rate": 16000} for song in songs()]).T
    for name, matrix in (("LocalT2ARetrieval", cosines), ("LocalA2TRetrieval", cosines.T)):
        ranks = (matrix > np.diag(matrix)[:, None]).sum(1)  # (queries,)
        for at in (1, 3):
            assert found["scores"][name][f"recall_at_{at}"] == pytest.approx((ranks < at).mean(), abs=1e-4)
        assert found["scores"][name]["mrr_at_10"] == pytest.approx((1 / (ranks + 1)).mean(), abs=1e-4)
        assert 0 < found["scores"][name]["mrr_at_10"] < 1
