"""A music language model describes tracks: scripted answers, and the noise of a tiny one of a real architecture."""

import shutil

import numpy as np
import pytest
import torch
from hearing_models import (
    WINDOW_SECONDS,
    Scripted,
    save_tiny_flamingo,
    save_tiny_qwen2_audio,
    save_tiny_qwen3_omni,
)
from safetensors.torch import load_file, save_file

from collap.corpora import asking, transformers_writer
from collap.corpora.asking import Asking, answer_seed
from collap.corpora.captioners import PromptedCaptioner, load_captioner, load_prompts
from collap.corpora.hearing import probe_captioner, probe_hearing
from collap.corpora.licences import allows_commerce, model_licence
from collap.corpora.listening import column_captions
from collap.corpora.tracks import RATE, Section, Track
from collap.corpora.transformers_writer import SeededSampling

PERCENT = "A calm piece for piano.\n**0-25% - Intro:**\nsoft piano\n**25-100% - Verse:**\ndrums come in"
SECONDS = "A calm piece for piano.\n**0-2 s - Intro:** soft piano\n**2-8 s - Verse:** drums come in"
SOUND = (0.1 * np.random.default_rng(0).normal(size=8 * RATE)).astype(np.float32)


def track(name: str, **fields) -> Track:
    return Track(name, f"{name}.flac", **fields)


def two_sections() -> list[Section]:
    return [Section(0.0, 2.0, "intro"), Section(2.0, 8.0, "B")]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return save_tiny_qwen2_audio(tmp_path_factory.mktemp("captioner") / "tiny-qwen2-audio")


@pytest.fixture
def tiny(tiny_folder, monkeypatch):
    """Make captioners of the tiny model, with short answers."""
    monkeypatch.setattr(asking, "MAX_TOKENS", {"overview": 12, "section": 9, "track": 20, "rewrite": 9})
    return lambda **options: load_captioner(str(tiny_folder), **{"dtype": "float32", **options})


def test_both_dialects_of_futga_give_the_same_caption_of_a_whole_track():
    writer = Scripted(PERCENT, SECONDS)
    one, other = PromptedCaptioner(writer, load_prompts()).describe([track("a"), track("b")], [SOUND, SOUND])
    assert one == other and one.captioner == "scripted" and one.licence == "cc0-1.0"
    assert [(part.start, part.end) for part in one.sections] == [(0.0, 2.0), (2.0, 8.0)]
    assert (one.raw, one.problem, one.retries) == (None, None, 0)
    assert [samples for _, samples, *_ in writer.asked] == [len(SOUND)] * 2  # the whole of it
    assert "lasts 8 seconds" in writer.asked[0][0]


def test_an_answer_that_cannot_be_read_is_asked_for_once_more_by_another_seed():
    writer = Scripted("I cannot hear any audio.", SECONDS, PERCENT)
    captioner = PromptedCaptioner(writer, load_prompts())
    first, second = captioner.describe([track("a"), track("b")], [SOUND, SOUND])
    assert first.sections == second.sections and (first.retries, second.retries) == (1, 0)
    assert first.raw is None and first.problem is None
    (_, _, seed, cold), _, (_, _, another, warm) = writer.asked
    assert seed != another and cold == 0 < warm


def test_what_cannot_be_read_twice_is_kept_word_for_word_with_the_reason():
    writer = Scripted("no", "[0:00 - 0:19] Intro: soft piano")
    [caption] = PromptedCaptioner(writer, load_prompts()).describe([track("a")], [SOUND])
    assert (caption.overview, caption.sections, caption.retries) == ("", [], 1)
    assert caption.raw == "[0:00 - 0:19] Intro: soft piano"
    assert caption.problem == "track: section 1 ends at 19.0 s, the track at 8.0 s"


def test_each_section_is_described_by_its_own_sound():
    said = {2: "A soft piano alone.", 6: "Then drums come in.", 8: "A calm piece of music."}
    writer = Scripted(*[lambda samples: said[samples // RATE]] * 3)
    whole = track("a", sections=two_sections())
    [caption] = PromptedCaptioner(writer, load_prompts()).describe([whole], [SOUND])
    assert caption.overview == said[8] and [one.text for one in caption.sections] == [said[2], said[6]]
    asked = {samples // RATE: prompt for prompt, samples, *_ in writer.asked}
    assert "music, its intro." in asked[2] and "music." in asked[6]  # a letter says nothing to a listener
    assert whole.sections == two_sections()  # the track is as it was


def test_a_model_that_names_sections_itself_is_not_given_those_of_the_track():
    writer = Scripted(PERCENT)
    captioner = PromptedCaptioner(writer, load_prompts(), names_sections=True)
    [caption] = captioner.describe([track("a", sections=[Section(0.0, 8.0)])], [SOUND])
    assert len(caption.sections) == 2 and len(writer.asked) == 1


def test_noise_of_a_real_architecture_is_kept_and_counted(tiny):
    captioner = tiny()
    tracks = [track("a", sections=two_sections()), track("b")]
    by_section, whole = captioner.describe(tracks, [SOUND, SOUND])
    assert by_section.raw and whole.raw and "no section" in whole.problem and whole.retries == 1
    assert [(one.start, one.end) for one in by_section.sections] == [(0.0, 2.0), (2.0, 8.0)]
    name, _, digest = by_section.captioner.rpartition("@")
    assert name.endswith("tiny-qwen2-audio") and len(digest) == 16
    assert by_section.licence == "tiny-noncommercial"


@pytest.mark.parametrize("kind", ["AudioFlamingo3", "MusicFlamingo", "Qwen3Omni"])
def test_other_architectures_write_by_their_own_chat_template_and_hear_to_the_end(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "MAX_TOKENS", {"track": 20})
    if kind == "Qwen3Omni":
        pytest.importorskip("torchvision", reason="its processor needs it")
        save_tiny_qwen3_omni(tmp_path)
    else:
        save_tiny_flamingo(tmp_path, kind)
    captioner = load_captioner(str(tmp_path), dtype="float32")
    found = captioner.describe([track("a"), track("b")], [SOUND, SOUND[: 5 * RATE]])
    assert all(one.raw and one.says_nothing for one in found) and found[0].raw != found[1].raw
    alone = load_captioner(str(tmp_path), dtype="float32", asking=Asking(batch_size=1))
    assert alone.describe([track("b")], [SOUND[: 5 * RATE]]) == found[1:]
    assert probe_captioner(captioner, 15.0).is_whole


def test_weights_that_are_missing_are_not_drawn_at_random(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    del weights[next(name for name in weights if "q_proj.weight" in name)]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has no weights for 1 parts of the model, such as .*q_proj.weight"):
        load_captioner(str(tmp_path / "model"), dtype="float32")


def test_a_drawn_answer_depends_on_its_track_and_the_seed_not_on_order_or_batch(tiny):
    tracks, sounds = [track("a", sections=two_sections()[:1]), track("b")], [SOUND, SOUND[: 5 * RATE]]
    whole = tiny(asking=Asking(temperature=1.0)).describe(tracks, sounds)
    alone = tiny(asking=Asking(temperature=1.0, batch_size=1))
    assert alone.describe(tracks[::-1], sounds[::-1])[::-1] == whole
    [other] = tiny(asking=Asking(temperature=1.0, seed=1)).describe(tracks[1:], sounds[1:])
    assert other.raw != whole[1].raw


def test_seeded_sampling_draws_from_the_softmax():
    logits = torch.tensor([[2.0, 1.0, 0.0, -30.0]])
    drawn = torch.zeros(4)
    for seed in range(2000):
        drawn[SeededSampling([answer_seed(seed)], 2.0)(None, logits).argmax()] += 1
    wanted = torch.softmax(logits[0] / 2.0, 0)  # the most likely 0.9 of it, which is three words
    assert torch.allclose(drawn / 2000, wanted, atol=0.04) and drawn[3] == 0


def test_a_long_recording_is_heard_to_its_end_in_pieces_and_the_probe_tells_where_hearing_stops(tiny, monkeypatch):
    captioner = tiny()
    assert str(probe_captioner(captioner, 15.0)).startswith("hears all of 15 s")
    monkeypatch.setattr(transformers_writer, "CUT_AT_WINDOW", set())  # as the processor is by itself
    hearing = probe_captioner(captioner, 15.0)
    assert not hearing.is_whole and abs(hearing.heard_seconds - WINDOW_SECONDS) <= 1
    assert "stops at about 4 s of 15 s" in str(hearing)


@pytest.mark.parametrize("limit", [0.0, 29.0, 200.0, 240.0])
def test_the_probe_finds_any_limit_by_answers_in_words_too(limit):
    class Deaf(Scripted):
        def write(self, prompts, audios, seeds, temperature, max_tokens):
            return [f"{audio[: int(limit * RATE)].sum():.6f}" for audio in audios]

    hearing = probe_captioner(PromptedCaptioner(Deaf(), load_prompts()), 240.0)
    assert hearing.heard_seconds == pytest.approx(limit, abs=1.0) and hearing.is_whole == (limit == 240.0)


def test_the_probe_allows_for_a_device_that_does_not_always_add_up_the_same():
    noise = np.random.default_rng(0)

    def listen(samples: np.ndarray) -> np.ndarray:
        heard = samples[: 30 * RATE]
        return np.array([float(np.abs(heard).sum()), float(heard[::7].sum())]) + noise.normal(scale=1e-4, size=2)

    assert probe_hearing(listen, 60.0).heard_seconds == pytest.approx(30.0, abs=1.0)


def test_captions_that_a_list_has_enter_by_the_same_schema():
    listed = track("a", texts=[SECONDS, "A calm piece,\nfor piano.", PERCENT])
    first, plain, percent = column_captions(listed, 8.0, window_seconds=0)
    assert [one.label for one in first.sections] == ["Intro", "Verse"] and first.captioner == "columns"
    assert plain.overview == "A calm piece, for piano." and not plain.sections
    assert percent == first and column_captions(track("b"), 8.0, 0) == []


def test_the_times_of_listed_captions_move_with_the_crop_and_percents_are_of_what_was_heard():
    cropped = track("a", texts=[PERCENT, SECONDS], listed_seconds=16.0, crop=(2.0, 10.0))
    for window, starts in ((0, [0.0, 2.0]), (8.0, [0.0])):  # 25 % of 16 s, and of 8 s
        percent, seconds = column_captions(cropped, 8.0, window)
        assert [one.start for one in percent.sections] == starts
        assert [(one.start, one.end) for one in seconds.sections] == [(0.0, 6.0)]


def test_a_file_of_ones_own_prompts_and_what_is_wrong_with_them(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "class Mine:\n    name, licence = 'mine', None\n    def write(self, *questions):\n"
        f"        return [{SECONDS!r}]\n\ndef load():\n    return Mine()\n"
    )
    (tmp_path / "track.txt").write_text("Where are the sections of these {seconds} s?")
    captioner = load_captioner(str(own), prompts=tmp_path)
    assert captioner.prompts["track"] == "Where are the sections of these {seconds} s?"
    assert len(captioner.describe([track("a")], [SOUND])[0].sections) == 2
    own.write_text("x = 1")
    (tmp_path / "trak.txt").write_text("?")
    (tmp_path / "none").mkdir()
    for spec, folder, message in [
        (str(own), None, "expected a function load"),
        (str(tmp_path / "gone.py"), None, "no such file"),
        ("templates", None, "templates: no such folder"),
        (str(own), tmp_path, "did you mean 'track'"),
        (str(own), tmp_path / "none", "holds no prompt"),
    ]:
        with pytest.raises((OSError, ValueError), match=message):
            load_captioner(spec, prompts=folder)


def test_a_model_that_cannot_write_is_refused(model_folder):
    with pytest.raises((OSError, ValueError), match="collap-gpt2"):
        load_captioner(str(model_folder))


def test_licences_are_those_of_the_card_then_of_the_table(tmp_path):
    assert model_licence(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert model_licence(str(tmp_path)) == "mit"
    (tmp_path / "README.md").write_text("No header at all.\n")
    assert model_licence(str(tmp_path)) is None
    assert model_licence("OpenMOSS-Team/MOSS-Music-8B-Instruct") == "apache-2.0"
    assert model_licence("nvidia/music-flamingo-hf") == "nvidia-oneway-noncommercial"
    assert [allows_commerce(one) for one in ("mit", "cc-by-nc-4.0", "qwen-research (check)", None)] == [
        True,
        False,
        False,
        None,
    ]
    assert allows_commerce(model_licence("Qwen/Qwen3-Omni-30B-A3B-Instruct")) is None  # no card of it was seen
