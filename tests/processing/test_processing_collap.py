"""The processor: what it does with texts, which keyword goes where, and what survives save and load."""

import logging

import numpy as np
import pytest
import torch
from tiny import TEXTS, VOCABULARY, tiny_config, tiny_model, tiny_processor, tiny_text_config, tiny_tokenizer
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    RobertaConfig,
    T5Config,
)

from modeling_collap.configuration_collap import text_positions
from processing import CoLLAPFeatureExtractor, CoLLAPProcessor

LOGGER = "processing.processing_collap"
LONG = " ".join(5000 * ["piano"])
AUDIO = (0.1 * np.random.default_rng(0).standard_normal(40000)).astype(np.float32)  # 2.5 s
AUDIO_INPUTS = set(CoLLAPFeatureExtractor.model_input_names)


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch):
    """Every test starts like a fresh process, in which no text has been cut yet; transformers' words are heard too."""
    monkeypatch.setattr(CoLLAPProcessor, "_said_texts_are_cut", False)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)


@pytest.fixture(scope="module", params=["gpt2", "roberta"])
def variant(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def processor(variant) -> CoLLAPProcessor:
    return tiny_processor(variant)


@pytest.fixture(scope="module")
def reloaded(variant, processor, tmp_path_factory) -> CoLLAPProcessor:
    folder = tmp_path_factory.mktemp(variant)
    processor.save_pretrained(folder)
    return CoLLAPProcessor.from_pretrained(folder)


@pytest.fixture(params=["made here", "reloaded"])
def either(request, processor, reloaded) -> CoLLAPProcessor:
    """The processor as it was made, and after save and load."""
    return processor if request.param == "made here" else reloaded


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_text_and_audio_join(either):
    inputs = either(text=TEXTS, audio=[AUDIO, AUDIO[:20000]], sampling_rate=16000)
    assert set(inputs) == {"input_ids", "attention_mask"} | AUDIO_INPUTS == set(either.model_input_names)
    assert_same({name: inputs[name] for name in AUDIO_INPUTS}, either.feature_extractor([AUDIO, AUDIO[:20000]], 16000))
    for i, text in enumerate(TEXTS):
        ids = either.tokenizer(text)["input_ids"]
        assert inputs["input_ids"][i, : len(ids)].tolist() == ids
        assert inputs["attention_mask"][i].tolist() == len(ids) * [1] + (inputs["input_ids"].shape[1] - len(ids)) * [0]
        assert (inputs["input_ids"][i, len(ids) :] == either.tokenizer.pad_token_id).all()


def test_positional_equals_keyword(either):
    positional = either(TEXTS, [AUDIO, AUDIO], 22050, "cpu", {"max_length": 5}, {"return_tensors": "pt"}, "pt")
    named = either(
        return_tensors="pt",
        audio_kwargs={"return_tensors": "pt"},
        text_kwargs={"max_length": 5},
        device="cpu",
        sampling_rate=22050,
        audio=[AUDIO, AUDIO],
        text=TEXTS,
    )
    assert_same(positional, named)
    assert positional["input_ids"].shape == (2, 5)


def test_one_side_alone(either):
    both = either(text=TEXTS[0], audio=AUDIO, sampling_rate=16000)
    text, audio = either(text=TEXTS[0]), either(audio=AUDIO, sampling_rate=16000)
    assert set(text) == {"input_ids", "attention_mask"} and set(audio) == AUDIO_INPUTS
    assert_same({**text, **audio}, both)
    assert both["input_ids"].shape[0] == both["music_features"].shape[0] == 1


def test_neither_side_is_refused(processor):
    with pytest.raises(ValueError, match="found neither text nor audio; expected at least one"):
        processor(sampling_rate=16000)


def test_text_arguments_reach_the_tokenizer_alone(either):
    inputs = either(TEXTS, AUDIO, 16000, text_kwargs={"max_length": 7, "padding": "max_length"})
    assert inputs["input_ids"].shape == (2, 7)
    assert inputs["music_features"].shape[1] == 2
    short = either("a", text_kwargs={"padding": "max_length"})
    assert short["input_ids"].shape == (1, 128) and short["attention_mask"].sum() < 5
    assert_same(either(TEXTS, text_kwargs={"max_length": None}), either(TEXTS))


def test_audio_arguments_reach_the_feature_extractor(either):
    expected = either.feature_extractor(AUDIO, 24000)
    assert_same(either(audio=AUDIO, audio_kwargs={"sampling_rate": 24000}), expected)
    moved = either(audio=AUDIO, sampling_rate=24000, audio_kwargs={"device": "cpu"}, device="meta")
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}
    with pytest.raises(TypeError, match="sampling_rate"):
        either(audio=AUDIO, sampling_rate=16000, audio_kwargs={"sampling_rate": 24000})
    arrays = either(audio=AUDIO, sampling_rate=24000, audio_kwargs={"return_tensors": "np"})
    assert_same({name: torch.as_tensor(array) for name, array in arrays.items()}, expected)
    with pytest.raises(ValueError, match="return_tensors must be 'pt', 'np' or None, found 'tf'"):
        either(audio=AUDIO, sampling_rate=16000, audio_kwargs={"return_tensors": "tf"})


def test_unknown_keywords_are_refused(either):
    for keyword in ("audios", "texts", "pad", "images"):
        with pytest.raises(
            TypeError, match=f"unknown argument {keyword}; expected text, audio, text_kwargs, .*padding"
        ):
            either(text=TEXTS, **{keyword: True})
    with pytest.raises(TypeError, match="text_kwargs has max_lenght; expected only max_length, padding"):
        either(text=TEXTS, text_kwargs={"max_lenght": 5})
    with pytest.raises(TypeError, match="rate"):
        either(audio=AUDIO, sampling_rate=16000, audio_kwargs={"rate": 5})


def test_arguments_as_other_processors_take_them(either):
    """padding, truncation, max_length and return_tensors beside the inputs, as CLAP's and Whisper's processors."""
    songs = [AUDIO, AUDIO[:20000]]
    expected = either(TEXTS, songs, 16000)
    usual = {"padding": True, "truncation": True, "return_tensors": "pt", "sampling_rate": 16000}
    assert_same(either(text=TEXTS, audio=songs, **usual), expected)
    assert_same(either(text=TEXTS, audio=songs, sampling_rate=16000, common_kwargs={"padding": "longest"}), expected)
    short = either(TEXTS, songs, 16000, text_kwargs={"max_length": 7, "padding": "max_length"})
    assert short["input_ids"].shape == (2, 7)
    assert_same(either(TEXTS, songs, 16000, max_length=7, padding="max_length", truncation=True), short)
    assert_same(either(TEXTS, songs, common_kwargs={"max_length": 7, "sampling_rate": 16000}), short)
    assert_same(either(TEXTS, songs, 16000, max_length=7, common_kwargs={"max_length": 9, "padding": False}), short)
    assert_same(either(TEXTS, songs, 16000, max_length=7, text_kwargs={"padding": "max_length"}), short)
    for alone in ({"padding": True}, {"padding": "longest", "truncation": False}):
        assert_same(either(audio=songs, sampling_rate=16000, **alone), either(audio=songs, sampling_rate=16000))


def test_numpy_arrays_and_lists(either):
    songs = [AUDIO, AUDIO[:20000]]
    expected = either(TEXTS, songs, 16000)
    for found in (
        either(TEXTS, songs, 16000, return_tensors="np"),
        either(TEXTS, songs, 16000, common_kwargs={"return_tensors": "np"}),
    ):
        assert {type(values) for values in found.values()} == {np.ndarray}
        assert_same({name: torch.as_tensor(values) for name, values in found.items()}, expected)
    lists = either(TEXTS, songs, 16000, return_tensors=None)
    assert lists["input_ids"] == expected["input_ids"].tolist() and isinstance(lists["music_features"], np.ndarray)
    assert_same({name: torch.as_tensor(values) for name, values in lists.items()}, expected)
    ragged = either(TEXTS, return_tensors=None, padding=False)
    assert ragged["input_ids"] == either.tokenizer(TEXTS)["input_ids"]
    assert either(TEXTS[:1], padding=False)["input_ids"].shape[0] == 1
    with pytest.raises(
        ValueError, match=r"^texts of \d+ and of \d+ tokens are no tensor: give padding=True, or [^\n]*$"
    ):
        either(TEXTS, padding=False)


def test_what_an_argument_cannot_do_is_said(either):
    for arguments, message in (
        ({"text": TEXTS, "return_tensors": "tf"}, "return_tensors must be 'pt', 'np' or None, found 'tf'"),
        ({"text": TEXTS, "truncation": "only_second"}, "truncation must be True or False, found 'only_second'"),
        ({"text": TEXTS, "padding": True, "text_kwargs": {"padding": "max_length"}}, "padding is given twice, as True"),
        ({"text": TEXTS, "max_length": 129}, "max_length must be from 1 to the 128 tokens"),
        ({"audio": AUDIO, "truncation": True}, "songs are read whole.*instead of giving truncation=True"),
        ({"audio": AUDIO, "max_length": 48000}, "songs are read whole.*instead of giving max_length=48000"),
        ({"audio": AUDIO, "padding": "max_length"}, "songs are padded to the longest.*found 'max_length'"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            either(**arguments, sampling_rate=16000)
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="unknown argument image_size; expected text, audio"):
        either(TEXTS, common_kwargs={"image_size": 224})


def test_truncation_of_long_texts(either, caplog):
    limit = 128
    with caplog.at_level(logging.WARNING):
        cut = either(LONG, truncation=True)
        whole = either(LONG, truncation=False, return_tensors=None)
    assert cut["input_ids"].shape == (1, limit) and len(whole["input_ids"][0]) > 5000
    assert not caplog.messages, "who asks for it need not be told"
    assert torch.equal(either(LONG)["input_ids"], cut["input_ids"])


def test_the_tokenizer_of_the_caller_is_not_changed(variant):
    tokenizer = tiny_tokenizer(variant)
    tokenizer.padding_side, tokenizer.model_input_names = "left", ["input_ids", "token_type_ids", "attention_mask"]
    before = (tokenizer.pad_token, tokenizer.padding_side, tokenizer.model_input_names, tokenizer(LONG).keys())
    processor = CoLLAPProcessor.from_model_config(tiny_config(variant), tokenizer)
    processor([LONG, TEXTS[0]], truncation=True)
    assert before == (tokenizer.pad_token, tokenizer.padding_side, tokenizer.model_input_names, tokenizer(LONG).keys())
    tokenizer.padding_side = "left"
    assert processor.tokenizer.padding_side == "right" and processor(TEXTS)["attention_mask"][:, 0].all()


def test_a_batch_of_songs_and_the_channels_of_one(either):
    """np.stack([a, b]) are two songs, as for CLAP; channels stand in a list."""
    songs = np.stack([AUDIO, AUDIO[::-1], AUDIO / 2, AUDIO / 4])
    assert_same(either(audio=songs, sampling_rate=16000), either(audio=list(songs), sampling_rate=16000))
    one = either(audio=[songs], sampling_rate=16000)
    assert_same(one, either(audio=songs.mean(0), sampling_rate=16000))
    with pytest.raises(
        ValueError, match=r"shape \(40000, 4\); expected \(channels, samples\): transpose it, .*\[audio.T\]"
    ):
        either(audio=songs.T, sampling_rate=16000)
    rows = [{"array": song.tolist(), "sampling_rate": 16000} for song in songs]
    assert_same(either(audio=rows), either(audio=songs, sampling_rate=16000))
    assert_same(either(audio=AUDIO.tolist(), sampling_rate=16000), either(audio=AUDIO, sampling_rate=16000))


def test_device_argument_moves_every_output(processor):
    inputs = processor(TEXTS, [AUDIO, AUDIO[:20000]], 44100, device="meta")
    assert set(inputs) == set(processor.model_input_names)
    assert {tensor.device.type for tensor in inputs.values()} == {"meta"}


def test_every_text_gets_a_pad_token(variant, either):
    assert either.tokenizer.pad_token == {"gpt2": "<|endoftext|>", "roberta": "<pad>"}[variant]
    assert either.tokenizer.padding_side == "right"


def test_padding_side_of_the_tokenizer_does_not_matter(variant, processor):
    tokenizer = tiny_tokenizer(variant)
    tokenizer.padding_side = "left"
    assert_same(CoLLAPProcessor(CoLLAPFeatureExtractor(), tokenizer, 128)(TEXTS), processor(TEXTS))


def test_tokenizer_without_pad_and_end_is_refused():
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither pad_token nor eos_token"):
        CoLLAPProcessor(CoLLAPFeatureExtractor(), tokenizer)


def test_long_texts_are_cut_after_one_warning(variant, either, caplog):
    limit = 128
    with caplog.at_level(logging.WARNING):
        inputs = either([LONG, TEXTS[0]])
        either([LONG + " piano"])
        either(LONG[:6000], text_kwargs={"max_length": 9})
    whole = either.tokenizer(LONG, verbose=False)["input_ids"]
    assert len(whole) > 5000
    assert caplog.messages == [
        f"a text of {len(whole)} tokens is cut to the {limit} that the text tower reads (said once; the end of every "
        "longer text is ignored)"
    ]
    assert inputs["input_ids"].shape == (2, limit) and inputs["attention_mask"][0].all()
    # RoBERTa's closing </s> stays; GPT-2 has no token of its own at the end.
    kept = whole[: limit - 1] + whole[-1:] if variant == "roberta" else whole[:limit]
    assert inputs["input_ids"][0].tolist() == kept
    if variant == "roberta":
        assert inputs["input_ids"][0, -1] == either.tokenizer.eos_token_id


def test_text_of_exactly_the_limit_is_not_cut(variant, processor, caplog):
    extra = 2 if variant == "roberta" else 0
    with caplog.at_level(logging.WARNING):
        inputs = processor(["q" * (128 - extra)])
        assert inputs["input_ids"].shape == (1, 128) and not caplog.messages
        assert processor(["q" * (129 - extra)])["input_ids"].shape == (1, 128)
    assert len(caplog.messages) == 1 and "129 tokens is cut to the 128" in caplog.messages[0]


@pytest.mark.parametrize("limit", [0, -1, 129, 4096])
def test_length_that_the_text_tower_cannot_read_is_refused(either, limit):
    message = f"max_length must be from 1 to the 128 tokens that the text tower reads, found {limit}"
    with pytest.raises(ValueError, match=message):
        either(TEXTS, text_kwargs={"max_length": limit})


def test_limit_of_the_processor_survives_save_and_load(variant, tmp_path):
    tokenizer = tiny_tokenizer(variant)
    for made in (
        CoLLAPProcessor(CoLLAPFeatureExtractor(2), tokenizer, 7),
        CoLLAPProcessor(feature_extractor=CoLLAPFeatureExtractor(2), tokenizer=tokenizer, max_text_tokens=7),
    ):
        made.save_pretrained(tmp_path)
        for loaded in (CoLLAPProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
            assert loaded.max_text_tokens == 7
            assert loaded(LONG)["input_ids"].shape == (1, 7)


def test_without_a_limit_nothing_is_cut(caplog):
    unlimited = CoLLAPProcessor(CoLLAPFeatureExtractor(2), tiny_tokenizer("gpt2"))
    with caplog.at_level(logging.WARNING):
        whole = unlimited(LONG)["input_ids"]
        assert whole.shape[1] > 5000
        assert torch.equal(unlimited(LONG, text_kwargs={"padding": "max_length"})["input_ids"], whole)
        assert unlimited(LONG, text_kwargs={"max_length": 7})["input_ids"].shape == (1, 7)
    assert len(caplog.messages) == 1 and "is cut to the 7" in caplog.messages[0]


def test_limit_of_the_tokenizer_counts_too(variant, caplog):
    tokenizer = tiny_tokenizer(variant)
    tokenizer.model_max_length = 50
    assert CoLLAPProcessor.from_model_config(tiny_config(variant), tokenizer).max_text_tokens == 50
    with caplog.at_level(logging.WARNING):
        assert CoLLAPProcessor(CoLLAPFeatureExtractor(2), tokenizer)(LONG)["input_ids"].shape == (1, 50)
    assert len(caplog.messages) == 1 and "is cut to the 50" in caplog.messages[0]
    tokenizer.model_max_length = 5000
    assert CoLLAPProcessor.from_model_config(tiny_config(variant), tokenizer).max_text_tokens == 128


def test_positions_of_text_towers():
    assert text_positions(GPT2Config()) == 1024
    assert text_positions(RobertaConfig(max_position_embeddings=514)) == 512
    assert text_positions(BertConfig()) == 512
    assert text_positions(T5Config()) is None


def test_the_model_reads_the_limit_and_not_one_more(variant, processor):
    model = tiny_model(variant)
    with torch.no_grad():
        assert model.get_text_features(**processor([LONG, TEXTS[0]])).isfinite().all()
    limit = text_positions(tiny_text_config(variant))
    assert limit == 128
    ids = torch.randint(5, VOCABULARY, (1, limit + 1), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model.get_text_features(ids[:, :limit]).isfinite().all()
        with pytest.raises(ValueError, match="a text of 129 tokens; the text tower reads 128"):
            model.get_text_features(ids)


@pytest.mark.parametrize("kind", ["", "   ", "\n\t"])
def test_empty_texts_are_refused_by_index(processor, kind):
    with pytest.raises(ValueError, match=r"text\[0\] is empty; expected a description"):
        processor(kind)
    with pytest.raises(ValueError, match=r"text\[2\] is empty; expected a description"):
        processor([*TEXTS, kind])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([TEXTS[0], 5], r"text\[1\] is a int; expected a string"),
        ([None], r"text\[0\] is a NoneType; expected a string"),
        ([[TEXTS]], r"text\[0\]\[0\] is a list; expected a string"),
        (5, "text is a int; expected a string or a list of strings"),
        (b"piano", "text is a bytes; expected a string or a list of strings"),
        ({"caption": "piano"}, "text is a dict; expected a string or a list of strings"),
        (AUDIO, r"text\[0\] is a float32; expected a string"),
        ([], "found an empty list of texts; expected at least one"),
    ],
)
def test_what_is_not_a_text_is_refused(processor, text, message):
    with pytest.raises(ValueError, match=message):
        processor(text)


def test_columns_of_texts(processor):
    for column in (tuple(TEXTS), np.array(TEXTS), iter(TEXTS)):
        assert_same(processor(column), processor(TEXTS))


def test_bad_audio_is_refused_by_index(processor):
    with pytest.raises(ValueError, match=r"audio\[1\] is empty"):
        processor(TEXTS, [AUDIO, AUDIO[:0]], 16000)
    with pytest.raises(ValueError, match="sampling_rate is missing"):
        processor(TEXTS, AUDIO)


def test_texts_and_audios_of_different_number(variant, processor):
    model = tiny_model(variant)
    inputs = processor([*TEXTS, "a choir"], [AUDIO, AUDIO[:20000]], 16000)
    with torch.no_grad():
        assert model(**inputs).logits_per_audio.shape == (2, 3)
        with pytest.raises(ValueError, match=r"2.*3|3.*2"):
            model(**inputs, return_loss=True)


def test_auto_classes_load_without_trusting_remote_code(variant, processor, tmp_path):
    model = tiny_model(variant)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is CoLLAPProcessor
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is CoLLAPFeatureExtractor
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is type(processor.tokenizer)
    inputs = processor([*TEXTS, LONG], [AUDIO, AUDIO[:20000]], 22050)
    assert_same(loaded([*TEXTS, LONG], [AUDIO, AUDIO[:20000]], 22050), inputs)
    with torch.no_grad():
        expected = model(**inputs).logits_per_audio
        assert torch.equal(AutoModel.from_pretrained(tmp_path).eval()(**inputs).logits_per_audio, expected)
