"""train.py on data sets by name: a process as a user starts it."""

import json

from runs import settings, train


def test_a_run_on_captions_with_sections(real, backbones, tmp_path):
    named = {"dataset": f"futga:{real['futga']}?window_seconds=30", "text_column": "text", "song_column": None}
    splits = {"train_split": "all", "eval_split": None}
    sections = {"sections_column": "sections", "crop_sections": 2}
    config = settings(named["dataset"], backbones, epochs=1, batch_size=2)
    done = train(tmp_path, {**config, **named, **splits, **sections})
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["hours_of_audio"] > 0
