"""SentenceTransformerTrainer, unchanged, trains a CoLLAP folder: plain, with evaluation and reload, with the cached
loss, and with a LoRA adapter of peft."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from peft import LoraConfig
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from tiny import tiny_processor, undropped_model

from collap.models import save_model_folder

CAPTIONS = [
    f"{adjective} {sound}" for adjective in ("a slow", "a loud") for sound in ("piano", "guitar", "choir", "drum")
]
RATE = 16000
LORA = LoraConfig(r=4, target_modules=["c_attn", "q_proj", "v_proj"], task_type="FEATURE_EXTRACTION")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A published model whose forward pass is the same in training."""
    folder = tmp_path_factory.mktemp("sentence") / "model"
    save_model_folder(undropped_model(), tiny_processor("gpt2"), folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Songs of 1 to 5 s, of one to three segments."""
    folder, random = tmp_path_factory.mktemp("songs"), np.random.default_rng(0)
    for index in range(len(CAPTIONS)):
        song = 0.1 * random.standard_normal(RATE * (1 + index % 3 * 2))
        soundfile.write(folder / f"{index}.wav", song.astype(np.float32), RATE, subtype="FLOAT")
    return [str(folder / f"{index}.wav") for index in range(len(CAPTIONS))]


@pytest.fixture(scope="module")
def pairs(files) -> Dataset:
    return Dataset.from_dict({"caption": CAPTIONS, "audio": files})


def load(folder: Path | str) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def train(model: SentenceTransformer, pairs: Dataset, loss, output_dir: Path, evaluator=None, **settings):
    """Run the Trainer and return it."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output_dir),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        seed=3,
        **{"save_strategy": "no", **settings},
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=pairs, eval_dataset=pairs, loss=loss, evaluator=evaluator
    )
    trainer.train()
    return trainer


def losses(trainer: SentenceTransformerTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_embeddings(found: SentenceTransformer, expected: SentenceTransformer, files: list[str]):
    for inputs in (CAPTIONS, files):
        np.testing.assert_array_equal(found.encode(inputs), expected.encode(inputs))


def test_training_with_an_evaluator_and_reload(folder, pairs, files, tmp_path):
    model = load(folder)
    evaluator = InformationRetrievalEvaluator(
        queries={str(index): caption for index, caption in enumerate(CAPTIONS)},
        corpus={str(index): file for index, file in enumerate(files)},
        relevant_docs={str(index): {str(index)} for index in range(len(files))},
        name="songs",
        write_csv=False,
    )
    before = evaluator(model)["songs_cosine_mrr@10"]
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 6, "learning_rate": 2e-3}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_songs_cosine_mrr@10"}
    trainer = train(model, pairs, MultipleNegativesRankingLoss(model), tmp_path / "run", evaluator, **settings, **best)
    assert losses(trainer)[-1] < losses(trainer)[0]
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 6 and evaluated[-1]["eval_loss"] < evaluated[0]["eval_loss"]
    found = evaluator(model)["songs_cosine_mrr@10"]
    assert found > before
    assert found == pytest.approx(max(entry["eval_songs_cosine_mrr@10"] for entry in evaluated))
    model.save_pretrained(str(tmp_path / "saved"))
    assert_same_embeddings(load(tmp_path / "saved"), model, files)
    assert_same_embeddings(load(trainer.state.best_model_checkpoint), model, files)


@pytest.mark.parametrize("form", ["files in rows", "samples in rows", "songs first"])
def test_every_form_of_a_song_gives_the_same_first_step(folder, pairs, files, tmp_path, form):
    expected, found = load(folder), load(folder)
    if form == "files in rows":
        data = pairs.cast_column("audio", Audio(decode=False))
    elif form == "samples in rows":
        samples = [{"array": soundfile.read(file)[0], "sampling_rate": RATE} for file in files]
        data = Dataset.from_dict({"caption": CAPTIONS, "audio": samples})
    else:
        data = pairs.select_columns(["audio", "caption"])
    run = {"max_steps": 1, "learning_rate": 1e-3}
    plain = train(expected, pairs, MultipleNegativesRankingLoss(expected), tmp_path / "plain", **run)
    other = train(found, data, MultipleNegativesRankingLoss(found), tmp_path / "other", **run)
    if form == "songs first":
        # The loss contrasts captions for each song instead of songs for each caption: another value of the same scores.
        assert losses(other)[0] != losses(plain)[0] and np.isfinite(losses(other)[0])
    else:
        assert losses(other) == pytest.approx(losses(plain), abs=1e-5)


def test_the_cached_loss_takes_the_step_of_the_plain_one(folder, pairs, files, tmp_path):
    plain, cached = load(folder), load(folder)
    run = {"max_steps": 2, "learning_rate": 1e-3}
    expected = train(plain, pairs, MultipleNegativesRankingLoss(plain), tmp_path / "plain", **run)
    found = train(
        cached, pairs, CachedMultipleNegativesRankingLoss(cached, mini_batch_size=1), tmp_path / "cached", **run
    )
    assert losses(found) == pytest.approx(losses(expected), abs=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], value, atol=1e-4, rtol=0, msg=name)
    assert np.abs(plain.encode(CAPTIONS) - load(folder).encode(CAPTIONS)).max() > 1e-3


def test_a_lora_adapter(folder, pairs, files, tmp_path):
    model, base = load(folder), load(folder)
    model.add_adapter(LORA)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    for tower in ("text_tower.encoder", "audio_tower.music", "audio_tower.speech"):
        assert any(tower in name for name in trained), tower
    run = {"max_steps": 3, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 3}
    trainer = train(model, pairs, CachedMultipleNegativesRankingLoss(model, mini_batch_size=2), tmp_path / "run", **run)
    for inputs in (CAPTIONS, files):
        assert np.abs(model.encode(inputs) - base.encode(inputs)).max() > 1e-3
    model.save_pretrained(str(tmp_path / "saved"))
    saved = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "modules.json"} <= saved
    assert not saved & {"model.safetensors", "config.json"}, "the base model is not saved again"
    assert_same_embeddings(load(tmp_path / "saved"), model, files)
    assert_same_embeddings(load(Path(trainer.args.output_dir) / "checkpoint-3"), model, files)
