"""transformers' `pipeline` with CoLLAP: zero-shot classification, embeddings, and retrieval; with the installed code,
and in a fresh process without it, from a folder and from the Hub's cache."""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from elsewhere import publish, run_elsewhere
from safetensors.torch import save_file
from tiny import TEXTS, Decoder, tiny_model, tiny_processor
from transformers import AutoTokenizer, pipeline

from collap.models import save_model_folder
from modeling_collap import mean_pooled_scores
from processing import AudioFileError, CoLLAPFeatureExtractor
from processing.pipeline_collap import TASK, MusicTextRetrievalPipeline, best_moments

VARIANTS = ("gpt2", "roberta")
RATE = 16000
SECONDS = (7, 2, 13, 0.2)  # segments are 2 s long
LABELS = ["a slow song with piano", "a loud guitar", "a choir over strings"]

# Arguments: the waveforms, the folder of their files, where to save again, then pairs of a model folder and its Hub id.
FRESH_PROCESS = """
import json
from safetensors.torch import load_file
from transformers import pipeline

labels, texts = %r, %r
waveforms, files, again, *places = sys.argv[1:]
waveforms = [waveform.numpy() for waveform in load_file(waveforms).values()]
files = [f"{files}/{index}.wav" for index in range(len(waveforms))]
results = {}
for folder in places[::2]:
    zero_shot = pipeline("zero-shot-audio-classification", model=folder, trust_remote_code=True)
    retrieve = pipeline("music-text-retrieval", model=folder, trust_remote_code=True)
    features = pipeline("feature-extraction", model=folder, trust_remote_code=True)
    results[folder] = {
        "zero_shot": zero_shot(waveforms, candidate_labels=labels, batch_size=2),
        "files": retrieve(texts, files, return_moments=True),
        "features": features(texts[0])[0],
    }
    for part in (retrieve, retrieve.model, retrieve.processor, zero_shot.model):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
sys.modules["av"] = None  # as where PyAV is not installed; the code of a repository is imported anew
for folder, repository in zip(places[::2], places[1::2]):
    retrieve = pipeline(model=repository, trust_remote_code=True)
    results[folder]["samples"] = retrieve(texts, waveforms, sampling_rate=16000, return_moments=True)
    try:
        retrieve(texts, files)
    except ValueError as error:
        results[folder]["without_decoder"] = str(error)
    retrieve.save_pretrained(again)
    saved = pipeline(model=again, trust_remote_code=True)
    results[folder]["again"] = saved(texts, waveforms, sampling_rate=16000, return_moments=True)
    for part in (retrieve, retrieve.model, saved, saved.processor):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
assert not {"modeling_collap", "processing"} & set(sys.modules)
print(json.dumps(results))
""" % (LABELS, TEXTS)  # noqa: UP031 (braces belong to the script)


def run_fresh(folder: Path, script: str, *arguments) -> dict:
    """What a script prints as JSON where the packages are not installed."""
    return json.loads(run_elsewhere(folder, script, *arguments).splitlines()[-1])


def waveforms() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [0.1 * random.standard_normal(round(RATE * seconds)).astype(np.float32) for seconds in SECONDS]


def write_files(folder: Path) -> list[str]:
    """The waveforms as files, without loss."""
    paths = [str(folder / f"{index}.wav") for index in range(len(SECONDS))]
    for path, waveform in zip(paths, waveforms(), strict=True):
        soundfile.write(path, waveform, RATE, subtype="FLOAT")
    return paths


def save_published(variant: str, folder: Path) -> Path:
    """A folder as it is published."""
    save_model_folder(tiny_model(variant), tiny_processor(variant), folder)
    return folder


def model_outputs(variant: str, texts: list[str]):
    """The direct call that pipelines must agree with."""
    inputs = tiny_processor(variant)(text=texts, audio=waveforms(), sampling_rate=RATE)
    with torch.no_grad():
        return tiny_model(variant)(**inputs)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("published")
    return {variant: str(save_published(variant, folder / f"collap-{variant}.v1.0")) for variant in VARIANTS}


@pytest.fixture(scope="module")
def retrieve(published) -> dict[str, MusicTextRetrievalPipeline]:
    """The installed class; a folder that names its own pipeline asks for trust otherwise."""
    return {
        variant: pipeline(TASK, model=folder, pipeline_class=MusicTextRetrievalPipeline)
        for variant, folder in published.items()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    return write_files(tmp_path_factory.mktemp("songs"))


def assert_ranked(found: list[list[dict]], logits: torch.Tensor, atol: float = 1e-4):
    """Rankings for each text as the scores (A, B) of the model give them."""
    assert len(found) == logits.shape[1]
    for text, hits in enumerate(found):
        assert [hit["index"] for hit in hits] == logits[:, text].argsort(descending=True).tolist()
        for hit in hits:
            assert hit["score"] == pytest.approx(logits[hit["index"], text].item(), abs=atol)


def assert_zero_shot(found: list[list[dict]], variant: str, labels: list[str], atol: float = 1e-5):
    expected = model_outputs(variant, [f"This is a sound of {label}." for label in labels]).logits_per_audio
    for answers, probabilities in zip(found, expected.softmax(-1), strict=True):
        scores = {answer["label"]: answer["score"] for answer in answers}
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert [scores[label] for label in labels] == pytest.approx(probabilities.tolist(), abs=atol)


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_shot_classification_is_the_softmax_of_the_scores(published, variant):
    classify = pipeline("zero-shot-audio-classification", model=published[variant])
    labels = [*LABELS, "piano " * 40]  # padded to different lengths
    assert_zero_shot(classify(waveforms(), candidate_labels=labels), variant, labels)
    assert_zero_shot(classify(waveforms(), candidate_labels=labels, batch_size=3), variant, labels)
    one = classify(waveforms()[2], candidate_labels=labels)
    assert [answer["label"] for answer in one] == [
        answer["label"] for answer in classify(waveforms(), candidate_labels=labels)[2]
    ]


def test_zero_shot_classification_in_bfloat16(published):
    classify = pipeline("zero-shot-audio-classification", model=published["gpt2"], dtype="bfloat16")
    assert classify.model.dtype == torch.bfloat16
    found = classify(waveforms(), candidate_labels=LABELS, batch_size=2)
    assert_zero_shot(found, "gpt2", LABELS, atol=0.02)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_label_longer_than_the_text_tower_is_refused_with_both_lengths(published, variant):
    classify = pipeline("zero-shot-audio-classification", model=published[variant])
    with pytest.raises(ValueError, match=r"a text of \d+ tokens; the text tower reads 128"):
        classify(waveforms()[1], candidate_labels=["piano " * 300])


@pytest.mark.parametrize("variant", VARIANTS)
def test_feature_extraction_returns_the_text_vectors(published, variant):
    extract = pipeline("feature-extraction", model=published[variant])
    found = torch.cat(extract(TEXTS, return_tensors=True, batch_size=2))
    torch.testing.assert_close(found, model_outputs(variant, TEXTS).text_embeds)
    with_states = pipeline("feature-extraction", model=published[variant], model_kwargs={"output_hidden_states": True})
    assert with_states.model.config.output_hidden_states
    again = torch.cat(with_states(TEXTS, return_tensors=True))
    torch.testing.assert_close(again, model_outputs(variant, TEXTS).text_embeds)


@pytest.mark.parametrize("variant", VARIANTS)
def test_retrieval_ranks_by_the_score_of_the_model(retrieve, files, variant):
    logits = model_outputs(variant, TEXTS).logits_per_audio
    pairs = [{"array": waveform, "sampling_rate": RATE} for waveform in waveforms()]
    raw = [{"raw": torch.from_numpy(waveform), "sampling_rate": RATE} for waveform in waveforms()]
    contents = [Path(file).read_bytes() for file in files]
    for audio in (files, list(map(Path, files)), contents, pairs, raw):
        assert_ranked(retrieve[variant](TEXTS, audio), logits)
    assert_ranked(retrieve[variant](TEXTS, waveforms(), sampling_rate=RATE), logits)
    assert_ranked([retrieve[variant](TEXTS[1], files)], logits[:, 1:])
    assert_ranked(retrieve[variant](TEXTS, files[2]), logits[2:3])
    best = retrieve[variant](TEXTS, files, top_k=2)
    assert [[hit["index"] for hit in hits] for hits in best] == logits.argsort(0, descending=True)[:2].T.tolist()


def test_retrieval_takes_columns_rows_and_open_files(retrieve, files):
    """As `datasets` hands songs over, with and without decoding, and as a web server or a zip archive does."""
    call, expected = retrieve["gpt2"], model_outputs("gpt2", TEXTS).logits_per_audio
    named = Dataset.from_dict({"audio": files}).cast_column("audio", Audio(decode=False))
    contents = [{"bytes": Path(file).read_bytes(), "path": Path(file).name} for file in files]
    held = Dataset.from_dict({"audio": contents}).cast_column("audio", Audio(decode=False))
    samples = Dataset.from_list(
        [{"audio": {"array": waveform.tolist(), "sampling_rate": RATE}} for waveform in waveforms()]
    )
    decoders = [Decoder(torch.from_numpy(waveform), RATE) for waveform in waveforms()]
    columns = [named["audio"], held["audio"], samples["audio"], samples.with_format("numpy")["audio"]]
    for column in (*columns, decoders, [BytesIO(content["bytes"]) for content in contents], iter(files), tuple(files)):
        assert_ranked(call(TEXTS, column), expected)
    for row in (named[2]["audio"], held[2]["audio"], samples[2]["audio"], decoders[2]):
        assert_ranked(call(TEXTS, row), expected[2:3])
    with open(files[2], "rb") as file:
        assert_ranked(call(TEXTS, file), expected[2:3])
    mixed = [files[0], decoders[1], held[2]["audio"], waveforms()[3].tolist()]
    assert_ranked(call(TEXTS, mixed, sampling_rate=RATE), expected)
    batch = np.stack([waveforms()[0], waveforms()[2][: 7 * RATE]])
    found = call(audio=batch, sampling_rate=RATE)["pooled_audio_embeds"]
    torch.testing.assert_close(found, call(audio=list(batch), sampling_rate=RATE)["pooled_audio_embeds"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_retrieval_returns_embeddings_that_the_model_scores(retrieve, files, variant):
    expected = model_outputs(variant, TEXTS)
    texts = retrieve[variant](TEXTS, batch_size=2)["text_embeds"]
    torch.testing.assert_close(texts, expected.text_embeds)
    torch.testing.assert_close(retrieve[variant](TEXTS[0])["text_embeds"], expected.text_embeds[:1])
    songs = retrieve[variant](audio=files, return_tokens=True)
    model = retrieve[variant].model
    with torch.no_grad():
        scores = model.score(texts, songs["audio_embeds"], songs["audio_token_mask"])
    torch.testing.assert_close(scores, expected.logits_per_audio, atol=1e-4, rtol=0)
    cosines = mean_pooled_scores(expected.text_embeds, expected.audio_embeds, expected.audio_token_mask)
    torch.testing.assert_close(songs["pooled_audio_embeds"] @ texts.T, cosines, atol=1e-5, rtol=0)
    assert set(retrieve[variant](audio=files)) == {"pooled_audio_embeds"}
    assert_ranked(retrieve[variant](TEXTS, songs), expected.logits_per_audio)


def test_retrieval_says_where_each_song_fits_best(retrieve, files):
    expected = model_outputs("gpt2", TEXTS)
    located = tiny_model("gpt2").localize(expected.text_embeds, expected.audio_embeds, expected.audio_token_mask)
    scores = located.scores.masked_fill(~located.frame_mask[:, None], -torch.inf)  # (A, B, W)
    for text, hits in enumerate(retrieve["gpt2"](TEXTS, files, return_moments=True)):
        assert {hit["index"] for hit in hits} == set(range(len(SECONDS)))
        for hit in hits:
            start, end = located.frame_seconds[scores[hit["index"], text].argmax()].tolist()
            if hit["index"] == 3:  # shorter than a frame: two tokens of 0.16 s
                end = 0.32
            assert (hit["start"], hit["end"]) == (round(start, 2), round(end, 2))


def test_options_of_the_pipeline_are_the_defaults_of_its_calls(retrieve, published, monkeypatch):
    options = {"sampling_rate": RATE, "return_tokens": True, "return_moments": True, "top_k": 2, "batch_size": 2}
    call = pipeline(TASK, model=published["gpt2"], pipeline_class=MusicTextRetrievalPipeline, **options)
    in_call = {"sampling_rate": RATE, "return_moments": True, "top_k": 2, "batch_size": 2}
    expected = retrieve["gpt2"](TEXTS, waveforms(), **in_call)
    assert call(TEXTS, waveforms()) == expected and all(len(hits) == 2 for hits in expected)
    assert set(call(audio=waveforms())) == {"pooled_audio_embeds", "audio_embeds", "audio_token_mask"}
    other = {"return_moments": False, "top_k": 1}
    expected = [[{name: hits[0][name] for name in ("index", "score")}] for hits in expected]
    assert call(TEXTS, waveforms(), **other) == expected
    assert set(call(audio=waveforms(), return_tokens=False)) == {"pooled_audio_embeds"}
    sizes, embed = [], call.model.get_sentence_features
    monkeypatch.setattr(
        call.model, "get_sentence_features", lambda ids, mask: (sizes.append(len(ids)), embed(ids, mask))[1]
    )
    call(LABELS)
    assert sizes == [2, 1]


def test_options_that_the_pipeline_does_not_have_are_refused(published):
    for options, error, message in (
        ({"topk": 2}, TypeError, "topk"),
        ({"top_k": 0}, ValueError, "top_k must be a whole number of at least 1, found 0"),
    ):
        with pytest.raises(error, match=message):
            pipeline(TASK, model=published["gpt2"], pipeline_class=MusicTextRetrievalPipeline, **options)


def test_the_best_moment_is_where_the_text_is_heard():
    model = tiny_model()
    texts = torch.eye(32)[:2]  # (B, D)
    song = torch.eye(32)[5].repeat(60, 1)  # (T, D): five segments of 2 s
    song[27:33] = texts[0]  # third segment, 3 tokens after its start
    song[48:54] = texts[1]  # fifth segment, at its start
    found = best_moments(model, texts, song.unsqueeze(0), torch.ones(1, 60, dtype=torch.bool))
    torch.testing.assert_close(found, torch.tensor([[4.48, 5.44], [8.0, 8.96]]))


def test_a_file_is_embedded_block_by_block(retrieve, files, monkeypatch):
    seen = []
    whole = CoLLAPFeatureExtractor.segment_features
    monkeypatch.setattr(
        CoLLAPFeatureExtractor, "segment_features", lambda self, wave: (seen.append(len(wave)), whole(self, wave))[1]
    )
    monkeypatch.setattr(retrieve["gpt2"].model.audio_tower, "segment_batch_size", 2)
    found = retrieve["gpt2"](TEXTS, files[2])
    assert max(seen) == 2 * 2 * RATE and sum(seen) == 13 * RATE
    assert_ranked(found, model_outputs("gpt2", TEXTS).logits_per_audio[2:3])


def test_retrieval_in_bfloat16(published, files):
    model = pipeline(
        TASK, model=published["gpt2"], pipeline_class=MusicTextRetrievalPipeline, dtype="bfloat16", device_map="cpu"
    )
    assert model.model.dtype == torch.bfloat16
    assert_ranked(model(TEXTS[:1], files), model_outputs("gpt2", TEXTS[:1]).logits_per_audio, atol=0.1)


def test_retrieval_refuses_what_it_cannot_embed(retrieve, files, tmp_path):
    call = retrieve["gpt2"]
    short = {"array": np.zeros(100, np.float32), "sampling_rate": RATE}
    song = {"array": waveforms()[1], "sampling_rate": RATE}
    library = call(audio=song, return_tokens=True)
    del library["audio_token_mask"]
    cases = [
        ({}, "neither text nor audio"),
        ({"text": TEXTS, "audio": files, "top_k": 0}, "top_k must be a whole number of at least 1, found 0"),
        ({"text": TEXTS, "audio": files, "top_k": 1.5}, "top_k must be a whole number of at least 1, found 1.5"),
        ({"text": ["piano", " "]}, r"text\[1\] is empty"),
        ({"audio": []}, "empty list of audios"),
        ({"audio": [song, short]}, r"audio\[1\] is 0.006 s long; expected at least 0.1 s"),
        ({"audio": [song, {"file": "a.wav"}]}, r"audio\[1\] is a dict of file; expected array .or raw. and sampling_"),
        ({"audio": [song, {"path": "a.wav", "bytes": None}]}, r"a.wav.*cannot be opened"),
        ({"audio": [song, {"path": None, "bytes": None}]}, r"audio\[1\] is a dict of path, bytes; expected array"),
        ({"audio": np.zeros((2, 3, 4000), np.float32)}, r"audio has shape \(2, 3, 4000\); expected"),
        ({"audio": waveforms()}, "sampling_rate is missing"),
        ({"text": TEXTS, "audio": call(audio=song)}, "without audio_embeds, audio_token_mask.*return_tokens=True"),
        ({"text": TEXTS, "audio": library}, "without audio_token_mask.*return_tokens=True"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            call(**arguments)
    with pytest.raises(AudioFileError, match=r"gone.mp3.*cannot be opened"):
        call(audio=[files[0], str(tmp_path / "gone.mp3")])


def test_the_pipeline_is_registered_for_models_in_memory_and_folders_without_its_code(model_folder, files):
    logits = model_outputs("gpt2", TEXTS).logits_per_audio
    assert_ranked(pipeline(TASK, model=str(model_folder))(TEXTS, files), logits)
    in_memory = pipeline(TASK, model=tiny_model("gpt2"), processor=tiny_processor("gpt2"))
    assert_ranked(in_memory(TEXTS, files), logits)


def test_code_of_a_folder_needs_trust(published):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline(model=published["gpt2"], trust_remote_code=None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_can_be_saved_twice(published, tmp_path, variant):
    before = {path.name: path.read_bytes() for path in Path(published[variant]).iterdir()}
    folder = shutil.copytree(published[variant], tmp_path / "model")
    save_published(variant, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert AutoTokenizer.from_pretrained(folder).pad_token_id is not None


@pytest.fixture(scope="module")
def elsewhere(published, files, tmp_path_factory) -> dict[str, dict]:
    """Results of a process without the installed packages, by folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    songs = {f"audio_{index}": torch.from_numpy(waveform) for index, waveform in enumerate(waveforms())}
    save_file(songs, folder / "audio.safetensors")
    places = []
    for path in published.values():
        places += [path, f"some.one/{Path(path).name}"]
        publish(Path(path), folder / "hf_home", places[-1])
    songs_folder = Path(files[0]).parent
    return run_fresh(folder, FRESH_PROCESS, folder / "audio.safetensors", songs_folder, folder / "again", *places)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pipelines_where_the_package_is_not_installed(elsewhere, published, variant):
    found, expected = elsewhere[published[variant]], model_outputs(variant, TEXTS)
    assert_zero_shot(found["zero_shot"], variant, LABELS)
    assert found["features"] == pytest.approx(expected.text_embeds[0].tolist(), abs=1e-5)
    assert_ranked(found["files"], expected.logits_per_audio)
    assert_ranked(found["samples"], expected.logits_per_audio)
    assert found["again"] == found["samples"]
    starts = [[[hit["start"] for hit in hits] for hits in found[kind]] for kind in ("files", "samples")]
    assert starts[0] == starts[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_need_no_decoder_and_files_say_which(elsewhere, published, files, variant):
    message = elsewhere[published[variant]]["without_decoder"]
    assert "pip install av" in message and files[0] in message
