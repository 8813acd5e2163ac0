"""`collap corpus build` with models: one that hears, a stand-in for one, one that rewrites, one that scores."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hearing_models import save_tiny_chat_model, save_tiny_qwen2_audio
from other_models import tiny_clap_folder

from collap.cli import run_command
from collap.corpora import asking
from collap.corpora.scores import load_scorer
from collap.evaluation.load_embedders import load_embedder
from processing import load_audio

STAND_IN = '''
class StandIn:
    """Answers in FUTGA's two dialects, in prose, and, before it is asked twice, in noise."""

    name, licence = "stand-in@1", "apache-2.0"

    def write(self, prompts, audios, seeds, temperature, max_tokens):
        return [self.answer(*one, temperature) for one in zip(prompts, audios)]

    def answer(self, prompt, audio, temperature):
        if audio is None:
            return "In other words: " + prompt.splitlines()[-1]
        seconds = len(audio) / 16000
        if f"lasts {seconds:.0f} seconds" not in prompt:
            return str(abs(audio).sum())  # the probe for how much is heard
        with open(r"FOLDER/asked", "a") as file:
            file.write(f"{seconds:.6f} {temperature}\\\\n")
        kind = open(r"FOLDER/kinds").read().split()[int(prompt_number(seconds))]
        if kind == "percent":
            return "A calm piece.\\\\n**0-25% - Intro:**\\\\n- soft piano\\\\n**25-100% - Verse:**\\\\n- drums come in"
        if kind == "seconds" or (kind == "retried" and temperature):
            return f"A calm piece.\\\\n**0-4 s - Intro:** soft piano\\\\n**4-{seconds:.1f} s - Verse:** drums come in"
        return "I cannot hear any audio." if kind == "retried" else "\\\\x00#!%&"

def prompt_number(seconds):
    return open(r"FOLDER/lengths").read().split().index(f"{seconds:.6f}")

def load():
    return StandIn()
'''.replace("\\\\", "\\")


@pytest.fixture(scope="module")
def four(corpus, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """A list of four songs of different lengths, and those."""
    rows = [json.loads(line) for line in (corpus / "train" / "metadata.jsonl").read_text().splitlines()][:4]
    folder = tmp_path_factory.mktemp("four")
    for row in rows:
        (folder / row["file_name"]).symlink_to(corpus / "train" / row["file_name"])
    (folder / "list.jsonl").write_text("".join(json.dumps({"audio": row["file_name"]}) + "\n" for row in rows))
    lengths = {row["song_id"]: len(load_audio(str(folder / row["file_name"]))) / 16000 for row in rows}
    assert len(set(lengths.values())) == 4
    return folder / "list.jsonl", lengths


def build(listed: Path, out: Path, *more: str) -> tuple[int, dict, dict[str, dict]]:
    """Run the command in this process; return its code, the report, and the rows by their name."""
    options = ["--min_seconds", "10", "--max_seconds", "25", "--num_workers", "1", "--dtype", "float32", *more]
    code = run_command("corpus build", [str(listed), str(out), *options])
    if code:
        return code, {}, {}
    rows = [row for path in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return code, json.loads((out / "report.json").read_text()), {row["song_id"]: row for row in rows}


def test_a_stand_in_that_answers_in_futgas_dialects_makes_the_sections_it_names(four, tmp_path):
    listed, lengths = four
    kinds = dict(zip(lengths, ("percent", "seconds", "retried", "noise"), strict=True))
    (tmp_path / "kinds").write_text(" ".join(kinds.values()))
    (tmp_path / "lengths").write_text(" ".join(f"{seconds:.6f}" for seconds in lengths.values()))
    (tmp_path / "own.py").write_text(STAND_IN.replace("FOLDER", str(tmp_path)))
    own = str(tmp_path / "own.py")
    out = tmp_path / "set"
    _, report, rows = build(listed, out, "--captioner", own, "--names_sections", "--rewriter", own)
    assert set(rows) == set(list(lengths)[:3]) and report["drop_counts"] == {"no_caption": 1}
    for name, row in rows.items():
        seconds = lengths[name]
        edge = seconds / 4 if kinds[name] == "percent" else 4.0
        assert [(one["label"], one["text"]) for one in row["sections"]] == [
            ("Intro", "soft piano"),
            ("Verse", "drums come in"),
        ]
        times = [time for one in row["sections"] for time in (one["start"], one["end"])]
        assert times == pytest.approx([0, edge, edge, seconds], abs=0.06)  # it says tenths of seconds
        first, second = row["text"]
        assert first.startswith("A calm piece.\nFrom 0:00 to ") and "the intro: soft piano" in first
        assert second.startswith("In other words: A calm piece.\nFrom 0:00 to ")
    assert (report["captions"]["captions"], report["captions"]["asked_twice"]) == (6, 2)
    assert report["captions"]["unread"] == 1 and report["unread_examples"][0]["answer"] == "\x00#!%&"
    assert report["captioners"]["stand-in@1"]["tracks"] == 3
    assert report["captioners"]["stand-in@1, rewritten by stand-in@1"]["commercial_use"] is True
    assert report["hearing"]["stand-in@1"].startswith("hears all of 25 s")
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert len(asked) == 6  # each song once, two of them twice
    assert build(listed, out, "--captioner", own, "--names_sections", "--rewriter", own)[1] == report
    assert len((tmp_path / "asked").read_text().splitlines()) == 6  # nothing is asked again


def test_the_noise_of_a_real_architecture_is_counted_and_never_a_text(four, tmp_path, monkeypatch, capsys):
    listed, lengths = four
    monkeypatch.setattr(asking, "MAX_TOKENS", {"overview": 9, "section": 9, "track": 20, "rewrite": 9})
    tiny, chat = save_tiny_qwen2_audio(tmp_path / "tiny-hears"), save_tiny_chat_model(tmp_path / "tiny-chats")
    more = ["--captioner", "template", str(tiny), "--rewriter", str(chat)]
    _, report, rows = build(listed, tmp_path / "set", *more)
    assert len(rows) == 4 and all(row["captioner"] == ["template"] for row in rows.values())
    assert report["captions"]["captions"] == 4 and report["captions"]["unread"] == 8  # heard and rewritten
    said = {(one["captioner"].partition("@")[0], one["id"]) for one in report["unread_examples"]}
    assert said == {(name, song) for name in ("tiny-hears", "template, rewritten by tiny-chats") for song in lengths}
    assert all(one["answer"] for one in report["unread_examples"])
    assert str(tmp_path) not in (tmp_path / "set" / "README.md").read_text()
    capsys.readouterr()
    code, *_ = build(listed, tmp_path / "other", "--captioner", str(tiny))
    assert code == 1 and "none of 4 tracks is kept (no_caption)" in capsys.readouterr().err


def test_a_clap_model_scores_lines_with_the_mean_of_its_windows(four, tmp_path):
    listed, _ = four
    folder = tiny_clap_folder(tmp_path / "clap", fused=False)
    _, report, rows = build(listed, tmp_path / "set", "--score_model", str(folder), "--drop_worst", "0.3")
    assert report["drop_counts"] == {"no_caption": 1} and len(rows) == 3
    reference = load_embedder(f"{folder}@mean")
    for row in rows.values():
        audio = reference.embed_audio(load_audio(row["audio"]["bytes"], 48000))
        lines = reference.score(reference.embed_texts(row["text"][0].splitlines()), audio)
        assert row["score"] == [pytest.approx(float(lines.mean()), abs=2e-3)]
        assert row["score"][0] >= report["least_score"]


def test_a_model_of_another_kind_does_not_score(tmp_path):
    chat = save_tiny_chat_model(tmp_path / "chat")
    with pytest.raises(ValueError, match="a 'llama' model; expected a CoLLAP or a CLAP model"):
        load_scorer(str(chat), "cpu")
    with pytest.raises(OSError, match="cannot be read"):
        load_scorer(str(tmp_path / "gone"), "cpu")
    scorer = load_scorer(str(tiny_clap_folder(tmp_path / "clap", fused=True)), "cpu")
    assert scorer.scores(np.zeros(16000, np.float32), []) == []
