"""The space of an index: the same for the same model in any folder, another for whatever changes vectors or scores."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from collap.search.space import Space, load_searched, searched_model, space_of


@pytest.fixture
def copied(tmp_path, model_folder):
    return shutil.copytree(model_folder, tmp_path / "model")


def edited(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_copy_of_a_model_is_of_the_same_space(copied, model_folder):
    edited(copied / "config.json", transformers_version="5.99.0", _name_or_path="/elsewhere", architectures=["Other"])
    (copied / "README.md").write_text("words")
    weights = load_file(copied / "model.safetensors")
    save_file(weights, copied / "model-00001-of-00002.safetensors")  # in other files
    (copied / "model.safetensors").unlink()
    assert space_of(str(copied)).id == space_of(str(model_folder)).id


def set_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "log_attention_temperature" in name)
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})


CHANGES = {
    "model.weights is ": set_weight,
    "model.config.json.stride_seconds is 0.25, there it is 0.5": lambda folder: edited(
        folder / "config.json", stride_seconds=0.25
    ),
    "model.tokenizer.json is ": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "model.processor_config.json.new is 1, there it is None": lambda folder: edited(
        folder / "processor_config.json", new=1
    ),
}


@pytest.mark.parametrize("said", CHANGES)
def test_whatever_changes_vectors_or_scores_makes_another_space(said, copied, model_folder):
    CHANGES[said](copied)
    found, index = space_of(str(copied)), space_of(str(model_folder))
    assert found.id != index.id
    (difference,) = found.differences(index)
    assert difference.startswith(said)
    with pytest.raises(ValueError, match="another space: .*name the model and the settings that it was made with"):
        found.check(index, Path("music.index"))


def test_dtype_and_stride_are_of_the_space_and_a_message_is_one_short_line(model_folder):
    plain = space_of(str(model_folder))
    others = [space_of(str(model_folder), "bfloat16"), space_of(str(model_folder), stride=2)]
    assert len({space.id for space in (plain, *others)}) == 3
    assert Space(json.loads(json.dumps(plain.about))) == plain and not plain.differences(plain)
    many = Space({"a": {str(number): number for number in range(50)}})
    with pytest.raises(ValueError) as caught:
        many.check(Space({}), Path("x"))
    assert "and 46 more" in str(caught.value) and len(str(caught.value)) < 400


def test_what_cannot_be_searched_with_is_refused(tmp_path, model_folder, backbones):
    assert searched_model(str(model_folder)) == (str(model_folder), str(model_folder))
    for spec, said in (
        (f"{model_folder}@mean", "gives no vectors over the time of a song that its score is of"),
        (str(backbones["gpt2"]), "a 'gpt2' model; expected one of collap, clap, pe_audio"),
        (str(tmp_path), "no model that can be read"),
        ("no/such@model", "no model that can be read"),
    ):
        with pytest.raises((OSError, ValueError)) as caught:
            load_searched(spec)
        assert said in str(caught.value)
