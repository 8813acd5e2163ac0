"""transformers' Trainer, unchanged: it trains, evaluates and predicts with a collator of five lines."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import tiny_processor, undropped_model
from transformers import AutoModel, Trainer, TrainingArguments

RATE = 16000
SECONDS = (1, 5, 3, 1, 3, 5, 1, 2)  # of one to three segments


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    """Tones of different height, each with its caption."""
    tones = [
        np.sin(2 * np.pi * 150 * (index + 1) * np.arange(RATE * seconds) / RATE)
        for index, seconds in enumerate(SECONDS)
    ]
    songs = [(0.2 * tone).astype(np.float32) for tone in tones]
    rows = [
        {"caption": f"song {index}, " + "very " * index + "slow", "audio": {"array": song, "sampling_rate": RATE}}
        for index, song in enumerate(songs)
    ]
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor("gpt2")


def collator(processor, **more):
    def collate(rows: list[dict]) -> dict:
        inputs = processor(text=[row["caption"] for row in rows], audio=[row["audio"] for row in rows])
        return {**inputs, **more}

    return collate


def make_trainer(model, pairs, collate, output_dir, **settings) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        remove_unused_columns=False,
        learning_rate=2e-3,
        seed=3,
        **{"save_strategy": "no", "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, **settings},
    )
    return Trainer(model=model, args=arguments, train_dataset=pairs, eval_dataset=pairs, data_collator=collate)


def losses(trainer: Trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def batches(pairs: Dataset, size: int) -> list[list[dict]]:
    rows = pairs.to_list()
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_train_evaluate_and_reload(pairs, processor, tmp_path):
    model = undropped_model()
    settings = {"num_train_epochs": 8, "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1}
    trainer = make_trainer(model, pairs, collator(processor, return_loss=True), tmp_path, **settings)
    trainer.train()
    found = losses(trainer, "eval_loss")
    assert len(found) == 8 and found[-1] < 0.7 * found[0]
    with torch.no_grad():
        expected = [model(**collator(processor)(rows), return_loss=True).loss.item() for rows in batches(pairs, 4)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.mean(expected), abs=1e-4)
    saved = AutoModel.from_pretrained(tmp_path / "checkpoint-16")
    for name, value in model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], value), name


def test_predictions_hold_no_moments_and_no_padded_mask(pairs, processor, tmp_path):
    """Trainer pads with -100, which is True in a mask, and would keep every moment of every song in memory."""
    model = undropped_model().eval()
    found = make_trainer(model, pairs, collator(processor, return_loss=True), tmp_path).predict(pairs)
    with torch.no_grad():
        expected = [model(**collator(processor)(rows)) for rows in batches(pairs, 4)]
    logits_per_audio, logits_per_text, text_embeds = found.predictions
    for values, name in (
        (logits_per_audio, "logits_per_audio"),
        (logits_per_text, "logits_per_text"),
        (text_embeds, "text_embeds"),
    ):
        np.testing.assert_allclose(values, torch.cat([output[name] for output in expected]), atol=1e-4)
    assert found.metrics["test_loss"] > 0


def test_without_return_loss_there_is_no_eval_loss(pairs, processor, tmp_path):
    """As docs/clients.md says: Trainer does not ask for the loss of a model whose forward returns none by itself."""
    trainer = make_trainer(undropped_model(), pairs, collator(processor), tmp_path)
    assert "eval_loss" not in trainer.evaluate()
    with pytest.raises(ValueError, match="The model did not return a loss from the inputs"):
        trainer.train()


def test_gradient_accumulation_contrasts_within_the_micro_batch(pairs, processor, tmp_path):
    """The loss of 2 x 4 pairs is the mean of two losses of 4, which is lower than that of 8: there are fewer others."""
    collate, rows = collator(processor, return_loss=True), pairs.select(range(8))
    settings = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    model = undropped_model()
    with torch.no_grad():
        whole = model(**collate(batches(rows, 8)[0])).loss.item()
    trainer = make_trainer(model, rows, collate, tmp_path, **settings, train_sampling_strategy="sequential")
    assert not trainer.model_accepts_loss_kwargs, "Trainer would leave out the division by the number of micro batches"
    with torch.no_grad():
        parts = [undropped_model()(**collate(part)).loss.item() for part in batches(rows, 4)]
    trainer.train()
    assert losses(trainer) == [pytest.approx(np.mean(parts), abs=1e-3)]
    assert np.mean(parts) < whole - 0.3 and whole == pytest.approx(math.log(8), abs=1)
