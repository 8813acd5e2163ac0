"""What transformers' own common tests ask of every processor and feature extractor (`ProcessorTesterMixin` and
`FeatureExtractionSavingTestMixin`, `SequenceFeatureExtractionTestMixin` of its source release 5.23.0), asked of ours.

The mixins were run by hand: of the 38 tests that are not skipped (no images, videos, chat template) 25 pass. These do
not apply:

- `test_processor_from_and_save_pretrained`, `..._as_nested_dict`: compare `to_dict()` with an object that was saved, on
  which transformers has left the `auto_map` of code that travels; without it they hold (below).
- `test_call_arguments_default_none`, `test_call_arguments_not_in_processor_kwargs`: style rules of that library. Ours
  are explicit arguments, so that a misspelt one is refused instead of ignored with a warning.
- `test_subprocessor_defaults_preserved_by_kwargs` (audio): a `max_length` that a tokenizer was saved with would cut
  texts; here the text tower's limit decides.
- `test_padding_*`, `test_truncation_*`, `test_attention_mask*`, `test_feat_extract_common_properties`: `pad` over one
  sequence of vectors with `feature_size` and `padding_value`. A song is two spectrograms of many segments with three
  masks, padded as a whole and never cut (`test_feature_extraction_collap.py`).
- Songs without `sampling_rate` are refused, where Whisper's extractor warns and takes its own rate: the mixins were
  given rows with their rate.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEXTS, tiny_processor
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer

from processing import CoLLAPFeatureExtractor, CoLLAPProcessor

SONG = {"array": 0.1 * np.random.default_rng(0).standard_normal(8000), "sampling_rate": 16000}
SETTINGS = {"segment_seconds": 2, "fbank_std": 5.5, "speech_mel_bins": 40}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    tiny_processor("gpt2").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def processor(saved) -> CoLLAPProcessor:
    return CoLLAPProcessor.from_pretrained(saved)


def settings_of(part) -> dict:
    """Its dictionary without what transformers leaves on an object that has been saved."""
    found = part.to_dict()
    for settings in (found, found.get("feature_extractor", {})):
        settings.pop("auto_map", None)
    return found


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, msg=name)


def test_settings_of_the_extractor_as_json(tmp_path):
    extractor = CoLLAPFeatureExtractor(**SETTINGS)
    assert SETTINGS.items() <= json.loads(extractor.to_json_string()).items()
    extractor.to_json_file(tmp_path / "features.json")
    assert CoLLAPFeatureExtractor.from_json_file(tmp_path / "features.json").to_dict() == extractor.to_dict()
    file = extractor.save_pretrained(tmp_path)[0]
    assert json.loads(Path(file).read_text())["fbank_std"] == 5.5
    assert settings_of(CoLLAPFeatureExtractor.from_pretrained(tmp_path)) == settings_of(extractor)
    assert CoLLAPFeatureExtractor().segment_seconds == 30


def test_settings_of_the_processor_as_json(processor, tmp_path):
    assert json.loads(processor.to_json_string())["max_text_tokens"] == processor.max_text_tokens == 128
    file = processor.save_pretrained(tmp_path)[0]
    assert json.loads(Path(file).read_text())
    again = CoLLAPProcessor.from_pretrained(tmp_path)
    assert settings_of(again) == settings_of(processor)
    assert repr(again.feature_extractor) == repr(processor.feature_extractor)
    assert_same(again(TEXTS, [SONG, SONG]), processor(TEXTS, [SONG, SONG]))


def test_each_part_loads_alone_and_builds_the_whole(processor, saved):
    parts = AutoFeatureExtractor.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    assert settings_of(parts[0]) == settings_of(processor.feature_extractor)
    built = CoLLAPProcessor(*parts, max_text_tokens=128)
    assert settings_of(built) == settings_of(processor)
    assert_same(built(TEXTS, [SONG, SONG]), processor(TEXTS, [SONG, SONG]))


@pytest.mark.parametrize("kind", [CoLLAPProcessor, AutoProcessor])
def test_arguments_of_from_pretrained_reach_the_parts(saved, kind):
    loaded = kind.from_pretrained(saved, cls_token="(CLS)", fbank_std=4.0, max_text_tokens=9)
    assert loaded.tokenizer.cls_token == "(CLS)" and loaded.feature_extractor.fbank_std == 4.0
    assert loaded.max_text_tokens == 9


def test_outputs_are_those_of_the_parts_under_the_names_it_gives(processor):
    both = processor(text=TEXTS[0], audio=SONG, return_tensors="pt")
    assert set(both) == set(processor.model_input_names)
    tokens = processor.tokenizer(TEXTS[:1], return_tensors="pt")
    assert_same({name: both[name] for name in tokens}, dict(tokens))
    features = processor.feature_extractor(SONG, return_tensors="pt")
    assert_same({name: both[name] for name in features}, dict(features))
    ids = [[1, 4, 5, 8, 1, 0, 8], [3, 4, 3, 1, 1, 8, 9]]
    assert processor.batch_decode(ids) == processor.tokenizer.batch_decode(ids)
    assert processor.decode(ids[0]) == processor.tokenizer.decode(ids[0])
    with pytest.raises(ValueError, match="neither text nor audio"):
        processor()


def test_arguments_flat_and_structured(processor):
    flat = processor(text=TEXTS[0], audio=SONG, max_length=76, padding="max_length", return_tensors="pt")
    structured = processor(
        text=TEXTS[0],
        audio=SONG,
        common_kwargs={"return_tensors": "pt"},
        text_kwargs={"padding": "max_length", "max_length": 76},
        audio_kwargs={},
    )
    assert flat["input_ids"].shape == (1, 76)
    assert_same(structured, flat)
    batch = processor(text=TEXTS, audio=[SONG, SONG], padding="longest", max_length=76, return_tensors="pt")
    assert batch["input_ids"].shape[0] == 2 and batch["input_ids"].shape[1] < 76
    flat_beside_empty = processor(text=TEXTS[0], audio=SONG, text_kwargs={}, return_tensors="pt")
    assert {type(values) for values in flat_beside_empty.values()} == {torch.Tensor}
    with pytest.raises(ValueError, match="padding is given twice"):
        processor(text=TEXTS[0], audio=SONG, padding="max_length", text_kwargs={"padding": "do_not_pad"})
