"""transformers' Trainer, unchanged: it trains, evaluates and predicts with a collator of five lines, peft's adapters
too."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_processor, undropped_model
from transformers import AutoModel, Trainer, TrainingArguments

RATE = 16000
BATCH = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
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
        seed=3,
        **{"save_strategy": "no", "learning_rate": 2e-3, **BATCH, **settings},
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


def test_hidden_states_are_not_gathered(pairs, processor, tmp_path):
    """They are for who calls the model; Trainer would keep those of every text."""
    collate, model = collator(processor, return_loss=True), undropped_model()
    expected = make_trainer(model, pairs, collate, tmp_path).predict(pairs).predictions
    model.config.output_hidden_states = True
    assert len(model(**collate(pairs.to_list()[:2])).text_model_output.hidden_states) == 3
    found = make_trainer(model, pairs, collate, tmp_path).predict(pairs).predictions
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_adapter_of_peft(pairs, processor, tmp_path):
    base = undropped_model()
    base.save_pretrained(tmp_path / "base")
    lora = LoraConfig(task_type="FEATURE_EXTRACTION", r=4, target_modules=["c_attn", "q_proj", "v_proj"])
    model = get_peft_model(base, lora)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = make_trainer(
        model, pairs, collator(processor, return_loss=True), tmp_path, max_steps=3, learning_rate=0.02
    )
    trainer.train()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved and all("lora_" in name for name in moved)
    for tower in ("text_tower.encoder", "audio_tower.music", "audio_tower.speech"):
        assert any(tower in name for name in moved), tower
    assert trainer.evaluate()["eval_loss"] > 0
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    inputs = collator(processor)(pairs.to_list())
    with torch.no_grad():
        found, expected = again(**inputs).logits_per_audio, model.eval()(**inputs).logits_per_audio
        unadapted = AutoModel.from_pretrained(tmp_path / "base").eval()(**inputs).logits_per_audio
    assert torch.equal(found, expected) and (found - unadapted).abs().max() > 1e-2


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


def test_a_batch_may_tell_when_sentences_are_heard_and_which_order_is_wrong(pairs, tmp_path):
    settings, rows = {"alignment": "monotone", "location_weight": 1.0}, pairs.select(range(4))
    known = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]] * 4)
    known[:, 0] = torch.nan
    labels = {"return_loss": True, "sentence_spans": known, "sentence_orders": torch.tensor([[1, 0]] * 4)}
    processor, found = tiny_processor("gpt2", **settings), []
    rows = rows.map(lambda row: {"caption": f"a song. {row['caption']}"})
    for told in (labels, {"return_loss": True}):
        collate, model = collator(processor, **told), undropped_model(**settings)
        trainer = make_trainer(model, rows, collate, tmp_path, max_steps=1, train_sampling_strategy="sequential")
        with torch.no_grad():
            expected = model(**collate(rows.to_list())).loss.item()
        trainer.train()
        found += losses(trainer)
        assert found[-1] == pytest.approx(expected, abs=1e-3)
    assert found[0] > found[1] + 0.5
