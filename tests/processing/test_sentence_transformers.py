"""A published folder is a `SentenceTransformer`: in a fresh process, with and without the installed packages."""

import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Audio, Dataset
from elsewhere import publish
from sentence_transformers import SentenceTransformer
from test_pipelines import RATE, VARIANTS, model_outputs, run_fresh, save_published, waveforms, write_files
from tiny import TEXTS, Decoder, tiny_model
from torch.nn import functional as F

from modeling_collap import mean_pooled_scores

# Arguments: the folder of the files, where to save again, then pairs of a model folder and its Hub id.
FRESH_PROCESS = """
import json
from sentence_transformers import SentenceTransformer

texts = %r
files, again, *places = sys.argv[1:]
files = [f"{files}/{index}.wav" for index in range(4)]
results = {}
for folder, repository in zip(places[::2], places[1::2]):
    model = SentenceTransformer(repository, trust_remote_code=True, device="cpu")
    model.save_pretrained(again)
    results[folder] = []
    for name in (folder, repository, again):
        model = SentenceTransformer(name, trust_remote_code=True, device="cpu")
        assert type(model[0]).__module__.startswith("transformers_modules."), type(model[0])
        assert type(model[0].model).__module__.startswith("transformers_modules."), type(model[0].model)
        results[folder].append(model.similarity(model.encode(texts), model.encode(files)).tolist())
assert not {"modeling_collap", "processing"} & set(sys.modules)
print(json.dumps(results))
""" % (TEXTS,)  # noqa: UP031 (braces belong to the script)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("published")
    return {variant: str(save_published(variant, folder / f"collap-{variant}.v1.0")) for variant in VARIANTS}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    return write_files(tmp_path_factory.mktemp("songs"))


@pytest.fixture(scope="module")
def models(published) -> dict[str, SentenceTransformer]:
    return {
        variant: SentenceTransformer(folder, trust_remote_code=True, device="cpu")
        for variant, folder in published.items()
    }


def cosines(variant: str) -> torch.Tensor:
    """(B, A) cosines of the mean-pooled baseline, from the model itself."""
    found = model_outputs(variant, TEXTS)
    return mean_pooled_scores(found.text_embeds, found.audio_embeds, found.audio_token_mask).T


@pytest.mark.parametrize("variant", VARIANTS)
def test_cosines_are_those_of_the_mean_pooled_score(models, files, variant):
    model = models[variant]
    texts = model.encode(TEXTS, batch_size=1)
    np.testing.assert_allclose(texts, model_outputs(variant, TEXTS).text_embeds, atol=1e-6)
    for batch_size in (1, 3, 32):
        songs = model.encode(files, batch_size=batch_size)
        assert songs.shape == (4, 32) and songs.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(songs, axis=1), 1, atol=1e-6)
        torch.testing.assert_close(model.similarity(texts, songs), cosines(variant), atol=1e-5, rtol=0)


def test_every_form_of_audio_is_the_same_song(models, files, tmp_path):
    model, expected = models["gpt2"], models["gpt2"].encode(files)
    other_name = tmp_path / "song.m4a"  # not an ending that sentence-transformers takes for audio
    other_name.write_bytes(Path(files[1]).read_bytes())
    rate = {"processing_kwargs": {"audio": {"sampling_rate": RATE}}}
    dicts = [{"array": waveform, "sampling_rate": RATE} for waveform in waveforms()]
    forms = [
        (dicts, {}),
        ([{"audio": one} for one in dicts], {}),
        ([{"audio": file} for file in files], {}),
        (waveforms(), rate),
        ([torch.from_numpy(waveform) for waveform in waveforms()], rate),
        ([{"audio": Decoder(torch.from_numpy(waveform).repeat(2, 1), RATE)} for waveform in waveforms()], {}),
        ([Decoder(torch.from_numpy(waveform), RATE) for waveform in waveforms()], {}),
        ([{"array": waveform.tolist(), "sampling_rate": RATE} for waveform in waveforms()], {}),
        ([waveform.tolist() for waveform in waveforms()], rate),
        (
            Dataset.from_list([{"audio": {"array": one["array"].tolist(), "sampling_rate": RATE}} for one in dicts])[
                "audio"
            ],
            {},
        ),
        (Dataset.from_dict({"audio": files}).cast_column("audio", Audio(decode=False))["audio"], {}),
        ([{"bytes": Path(file).read_bytes(), "path": None} for file in files], {}),
        ([{"audio": BytesIO(Path(file).read_bytes())} for file in files], {}),
        ([dicts[0], {"audio": str(other_name)}, dicts[2], files[3]], {}),
    ]
    for songs, arguments in forms:
        np.testing.assert_allclose(model.encode(songs, **arguments), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode(files[0]), expected[0], atol=1e-5)


def test_songs_of_different_rates_share_a_batch(models):
    low, high = ({"array": waveforms()[0], "sampling_rate": rate} for rate in (8000, 44100))
    both = models["gpt2"].encode([low, high])
    np.testing.assert_allclose(both[0], models["gpt2"].encode(low), atol=1e-5)
    np.testing.assert_allclose(both[1], models["gpt2"].encode(high), atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_prompts_are_put_before_texts_and_not_before_songs(published, models, files):
    model = SentenceTransformer(
        published["gpt2"], trust_remote_code=True, device="cpu", prompts={"query": "a song with "}
    )
    plain = models["gpt2"].encode(["a song with piano"])
    np.testing.assert_allclose(model.encode_query(["piano"]), plain, atol=1e-6)
    np.testing.assert_allclose(models["gpt2"].encode(["piano"], prompt="a song with "), plain, atol=1e-6)
    assert np.abs(model.encode(["piano"]) - plain).max() > 1e-3
    np.testing.assert_array_equal(model.encode_query(files), models["gpt2"].encode(files))


def test_moments_and_settings_of_the_model(models, files):
    model, expected = models["gpt2"], model_outputs("gpt2", TEXTS)
    assert model.get_embedding_dimension() == 32 and model.max_seq_length == 128
    assert model.supports("text") and model.supports("audio") and not model.supports("image")
    moments = model.encode(files, output_value="token_embeddings")
    for found, embeds, mask in zip(moments, expected.audio_embeds, expected.audio_token_mask, strict=True):
        torch.testing.assert_close(found, embeds[mask], atol=1e-4, rtol=0)
    long = " ".join(300 * ["piano"])
    np.testing.assert_allclose(model.encode(long), model.encode(long + " piano"), atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_token_embeddings_of_texts_are_the_tower_s_hidden_states_in_the_shared_space(models, variant):
    """One unit vector for every token, without padding; that which the tower pools is the vector of the text."""
    model, texts = models[variant], [*TEXTS, "a"]
    found = model.encode(texts, output_value="token_embeddings")
    pooled = model.encode(texts, convert_to_tensor=True)
    place = {"gpt2": -1, "roberta": 0}[variant]
    for text, tokens, vector in zip(texts, found, pooled, strict=True):
        assert tokens.shape == (len(model.tokenizer(text)["input_ids"]), 32)
        torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(len(tokens)))
        torch.testing.assert_close(tokens[place], vector, atol=1e-5, rtol=0)
    with torch.no_grad():
        tower, inputs = model[0].model.text_tower, model.tokenizer(texts[0], return_tensors="pt")
        expected = F.normalize(tower.projection(tower.encoder(**inputs).last_hidden_state[0]), dim=-1)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


def test_texts_are_cut_at_max_seq_length(published, tmp_path):
    model = SentenceTransformer(published["gpt2"], trust_remote_code=True, device="cpu")
    assert model.max_seq_length == model.get_max_seq_length() == 128
    long = TEXTS[0] + " piano" * 9
    ids = model.tokenizer(long)["input_ids"]
    whole = model.encode(long)
    model.max_seq_length = 5
    np.testing.assert_allclose(model.encode(long), model.encode(model.tokenizer.decode(ids[:5])), atol=1e-6)
    assert np.abs(model.encode(long) - whole).max() > 1e-3
    assert model.encode([long], output_value="token_embeddings")[0].shape[0] == 5
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert again.max_seq_length == 5
    np.testing.assert_array_equal(again.encode(long), model.encode(long))
    model.max_seq_length = None  # all that the tower reads
    assert model.max_seq_length == 128
    np.testing.assert_array_equal(model.encode(long), whole)
    for length in (0, -1, 129):
        with pytest.raises(ValueError, match=f"max_seq_length must be from 1 to the 128 tokens of .*, found {length}"):
            model.max_seq_length = length


def test_arguments_of_the_processor_for_one_call(models):
    model, long = models["gpt2"], TEXTS[0] + " piano" * 9
    short = model.tokenizer.decode(model.tokenizer(long)["input_ids"][:4])
    found = model.encode(long, processing_kwargs={"text": {"max_length": 4, "truncation": True}})
    np.testing.assert_allclose(found, model.encode(short), atol=1e-6)
    with pytest.raises(TypeError, match="text_kwargs has max_tokens; expected only max_length"):
        model.encode(long, processing_kwargs={"text": {"max_tokens": 4}})
    assert model.max_seq_length == 128


def test_what_a_folder_says_of_its_modalities(published, models, tmp_path):
    """mteb reads there that audio is embedded, too; the same stands in what is published and in what is saved again."""
    models["gpt2"].save_pretrained(str(tmp_path))
    contents = [(Path(folder) / "sentence_bert_config.json").read_text() for folder in (published["gpt2"], tmp_path)]
    published_config, saved_config = map(json.loads, contents)
    assert published_config == saved_config and list(saved_config["modality_config"]) == ["text", "audio"]
    for settings in saved_config["modality_config"].values():
        assert callable(getattr(models["gpt2"][0].model, settings["method"]))


def test_training_reaches_both_towers(published):
    model = SentenceTransformer(published["gpt2"], trust_remote_code=True, device="cpu")
    songs = [{"array": waveform, "sampling_rate": RATE} for waveform in waveforms()[:2]]
    texts, audio = (model(model.preprocess(inputs))["sentence_embedding"] for inputs in (TEXTS, songs))
    F.cross_entropy(texts @ audio.T, torch.arange(2)).backward()
    found = model[0].model
    for projection in (found.text_tower.projection, found.audio_tower.adapter):
        assert projection.weight.grad.abs().sum() > 0


def test_bfloat16(published, files):
    model = SentenceTransformer(
        published["gpt2"], trust_remote_code=True, device="cpu", model_kwargs={"dtype": "bfloat16"}
    )
    assert model.dtype == torch.bfloat16
    found = model.similarity(model.encode(TEXTS), model.encode(files))
    torch.testing.assert_close(found, cosines("gpt2"), atol=0.02, rtol=0)


def test_what_cannot_be_encoded_is_refused(published, models, files, tmp_path):
    model = models["gpt2"]
    cut = tmp_path / "cut.wav"
    cut.write_bytes(Path(files[0]).read_bytes()[:20])
    cases = [
        ([*TEXTS, files[0]], "mixes multiple modalities"),
        (waveforms(), "sampling_rate is missing"),
        (["piano", ""], "is empty; expected a description"),
        ([files[0], str(cut)], "cut.wav.*not an audio file"),
    ]
    for inputs, message in cases:
        with pytest.raises(ValueError, match=message):
            model.encode(inputs)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(published["gpt2"])
    with pytest.raises(ValueError, match="backend='torch' only, found 'onnx'"):
        SentenceTransformer(published["gpt2"], trust_remote_code=True, backend="onnx")


def test_a_file_that_would_be_read_as_text_is_refused(models, files, tmp_path):
    """sentence-transformers takes any other name, and any path without a file, for a text."""
    model = models["gpt2"]
    other_name, no_suffix = tmp_path / "a song.m4a", tmp_path / "a song"
    for path in (other_name, no_suffix):
        path.write_bytes(Path(files[0]).read_bytes())
    for text in (str(other_name), str(no_suffix), "gone.flac", "songs/Gone.WEBM", "https://a.b/gone.opus"):
        with pytest.raises(ValueError, match=rf"{re.escape(repr(text))} .*give \{{\"audio\": path\}}"):
            model.encode(["piano", text])
    np.testing.assert_allclose(model.encode({"audio": str(other_name)}), model.encode(files[0]), atol=1e-6)
    with pytest.raises(ValueError, match="gone.flac.*cannot be opened"):
        model.encode({"audio": str(tmp_path / "gone.flac")})
    for text in ("the sound of an old mp3", "it ends like take one.mp3", "piano " * 2000, "flac"):
        assert np.isfinite(model.encode(text)).all()


def test_a_model_saved_by_sentence_transformers_is_a_whole_folder(models, tmp_path, files):
    models["roberta"].save_pretrained(str(tmp_path / "saved"))
    modules = json.loads((tmp_path / "saved" / "modules.json").read_text())
    assert [module["type"] for module in modules] == ["sentence_collap.CoLLAPEmbedder"]
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    np.testing.assert_array_equal(again.encode(files), models["roberta"].encode(files))
    saved = type(tiny_model("roberta")).from_pretrained(tmp_path / "saved")
    for name, value in tiny_model("roberta").state_dict().items():
        assert torch.equal(saved.state_dict()[name], value), name


def test_where_the_packages_are_not_installed(published, files, tmp_path):
    places = []
    for path in published.values():
        places += [path, f"some.one/{Path(path).name}"]
        publish(Path(path), tmp_path / "hf_home", places[-1])
    found = run_fresh(tmp_path, FRESH_PROCESS, Path(files[0]).parent, tmp_path / "again", *places)
    for variant, path in published.items():
        expected = cosines(variant)
        for similarity in found[path]:
            torch.testing.assert_close(torch.tensor(similarity), expected, atol=1e-5, rtol=0)
