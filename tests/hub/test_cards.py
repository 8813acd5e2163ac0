"""Cards of models and corpora: every figure survives, nothing is invented, and what users wrote is kept."""

import copy
import json
import re
import shlex

import pytest
from huggingface_hub import EvalResult, ModelCard
from tiny import tiny_config, tiny_model, tiny_processor

from collap.card_text import hub_id, without_local_paths
from collap.cli import run_command
from collap.corpora.card import size_category
from collap.corpora.synthetic import songs as synthetic_songs
from collap.evaluation.results import read_results
from collap.evaluation.songs import RetrievalSet
from collap.hub.cards import ModelFacts, model_card
from collap.hub.corpus import dataset_card
from collap.hub.merge_cards import lost_sections, merge_cards, parse_card
from collap.hub.records import stage_evaluations
from collap.models import save_model_folder

NAMES = {"R@1": 1, "R@5": 5, "R@10": 10, "median_rank": 50.5, "mAP": 5.1}  # and their chance levels
COMMAND = "python evaluate_retrieval.py --model /home/alice/runs/best --dataset data/my_songs --split test"


def make_results(first: float = 20.0, **changes) -> dict:
    """What evaluate_retrieval.py writes; every figure is another number, counted up from `first`."""
    numbers = iter(range(1000))
    scores = {
        kind: {
            direction: {
                **{
                    name: {"value": value, "low": value - 3.456, "high": value + 4, "chance": chance}
                    for (name, chance), value in zip(NAMES.items(), (first + next(numbers) for _ in NAMES), strict=True)
                },
                "pool_size": pool,
                "num_queries": 400 - pool,
                "num_songs": 100,
                "num_bootstrap": 1000,
                "seed": 0,
                "confidence": 0.95,
            }
            for direction, pool in (("text_to_audio", 100), ("audio_to_text", 300))
        }
        for kind in ("collap", "mean_pooled")
    }
    about = {"model": "runs/best", "dataset": "data/my_songs", "split": "test", "text_column": "captions"}
    return {**about, "num_audios": 100, "num_texts": 300, "command": COMMAND, "seed": 7, "scores": scores, **changes}


def make_summary(**settings) -> dict:
    """summary.json of a run, as train.py writes it."""
    chosen = {"model": None, "text": "gpt2", "music": "/home/alice/beats", "speech": "openai/whisper-small"}
    chosen |= {"dataset": "/home/alice/music/my_songs", "train_split": "train", "eval_split": "validation"}
    return {
        "started": "2026-11-20T12:54:08+00:00",
        "finished": True,
        "steps": 450,
        "epochs": 9.0,
        "songs": 7200,
        "hours_of_audio": 219.98,
        "wall_seconds": 8280.0,
        "peak_memory_gb": 6.4507,
        "best": {"metric": "mean mAP of both directions, %", "value": 42.91, "step": 450},
        "hardware": {"cpus": 2, "torch": "2.11", "transformers": "5", "accelerate": "1", "devices": ["NVIDIA A100"]},
        "settings": {**chosen, "text_column": "captions", "output_dir": "/home/alice/runs", **settings},
    }


def make_facts(**changes) -> ModelFacts:
    on_hub = {("gpt2", "model"), ("openai/whisper-small", "model"), ("beats", "model"), ("you/songs", "dataset")}
    known = {"config": tiny_config(), "max_text_tokens": 128, "num_parameters": 123456}
    return ModelFacts("you/collap-tiny", is_on_hub=lambda *name: name in on_hub, **known | changes)


def make_card(**changes) -> ModelCard:
    return model_card(make_facts(**changes))


def reread(card, tmp_path) -> ModelCard:
    card.save(tmp_path / "README.md")
    return ModelCard.load(tmp_path / "README.md")


# --------------------------------------------------------------------------------------------------------------------
# Figures


def test_every_figure_survives_the_round_trip_with_what_it_was_measured_on(tmp_path):
    results = make_results(revision="abc123", dataset_config="full")
    card = make_card(evaluations={"evaluation/a.json": results})
    found = reread(card, tmp_path).data.eval_results
    assert len(found) == 2 * 2 * len(NAMES)
    tasks = {"text_to_audio": "text-to-audio-retrieval", "audio_to_text": "audio-to-text-retrieval"}
    for kind, by_direction in results["scores"].items():
        for direction, figures in by_direction.items():
            for name in NAMES:
                (one,) = (
                    result
                    for result in found
                    if result.task_type == tasks[direction]
                    and result.metric_config == kind
                    and result.metric_type == name.lower().replace("r@", "recall_at_")
                )
                assert one.metric_value == figures[name]["value"]
                args = one.metric_args
                assert args["interval"] == [round(figures[name]["low"], 2), figures[name]["high"]]
                assert (args["pool_size"], args["num_texts"], args["seed"]) == (figures["pool_size"], 300, 7)
                assert args["text_column"] == "captions" and args["confidence"] == 0.95
                assert args["command"] == COMMAND.replace("/home/alice/runs/best", ".../best")
                assert (one.dataset_split, one.dataset_revision, one.dataset_config) == ("test", "abc123", "full")
                assert one.dataset_name == one.dataset_type == "my_songs"


def test_two_caption_sets_of_one_split_keep_their_own_pools(tmp_path):
    short = make_results(50.0, text_column="short_captions", num_texts=900)
    short["scores"]["collap"]["audio_to_text"]["pool_size"] = 900
    short["scores"]["mean_pooled"]["audio_to_text"]["pool_size"] = 900
    card = make_card(evaluations={"evaluation/a.json": make_results(), "evaluation/b.json": short})
    figures = [one for one in reread(card, tmp_path).data.eval_results if one.metric_name == "R@1 (collap score)"]
    pools = {(one.metric_args["text_column"], one.metric_args["pool_size"]): one.metric_value for one in figures}
    assert pools == {
        ("captions", 100): 20.0,
        ("captions", 300): 25.0,
        ("short_captions", 100): 50.0,
        ("short_captions", 900): 55.0,
    }


def test_the_table_shows_figures_intervals_pools_and_how_to_repeat_them():
    text = make_card(evaluations={"evaluation/a.json": make_results()}).text
    assert "| score | R@1 | R@5 | R@10 | median rank | mAP |" in text
    assert "| collap | 20.0 [16.5, 24.0] | 21.0 [17.5, 25.0] |" in text
    assert "| mean-pooled | 30.0 [26.5, 34.0] |" in text and "| chance | 1.0 | 5.0 | 10.0 | 50.5 | 5.1 |" in text
    assert "300 texts searched in a pool of 100 songs" in text and "100 songs searched in a pool of 300 texts" in text
    assert "seed 7" in text and "--model .../best --dataset data/my_songs --split test" in text
    assert "revision of the data not recorded" in text


def test_results_of_the_real_evaluation_are_read(tmp_path):
    import numpy as np

    from collap.evaluation.retrieval import retrieval_figures

    scores = np.random.default_rng(0).normal(size=(6, 12))
    texts, names = [f"text {i}" for i in range(12)], [f"song {i}" for i in range(6)]
    figures = retrieval_figures(scores, RetrievalSet(list(range(6)), names, texts, [i // 2 for i in range(12)]))
    path = tmp_path / "results.json"
    path.write_text(json.dumps(make_results(scores={"collap": figures})))
    card = make_card(evaluations={"evaluation/a.json": read_results(path)})
    by_name = {(one.task_type, one.metric_type): one for one in card.data.eval_results}
    for direction in ("text_to_audio", "audio_to_text"):
        one = by_name[direction.replace("_", "-") + "-retrieval", "recall_at_5"]
        assert one.metric_value == pytest.approx(figures[direction]["R@5"]["value"], abs=0.005)
        assert one.metric_args["pool_size"] == figures[direction]["pool_size"]


def without(results: dict, *path: str) -> dict:
    results = copy.deepcopy(results)
    place = results
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return results


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "results.json"),
        ("[]", "results.json"),
        (json.dumps(without(make_results(), "scores")), "scores"),
        (json.dumps(without(make_results(), "command")), "command"),
        (json.dumps(without(make_results(), "scores", "collap", "audio_to_text")), "audio_to_text"),
        (json.dumps(without(make_results(), "scores", "collap", "text_to_audio", "pool_size")), "pool_size"),
        (json.dumps(without(make_results(), "scores", "collap", "text_to_audio", "R@5", "low")), "low"),
    ],
)
def test_what_is_no_evaluation_is_refused_by_name(tmp_path, content, named):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=named) as error:
        read_results(path)
    assert str(path) in str(error.value)


def test_a_name_cannot_break_out_of_its_part():
    evil = make_results(dataset="x/a|b <!-- collap:usage --> c", command="echo <!-- /collap:results -->\n# hi")
    text = make_card(evaluations={"evaluation/a.json": evil}).text
    clean = make_card(evaluations={"evaluation/a.json": make_results()}).text
    assert text.count("<!--") == clean.count("<!--") and "\n# hi" not in text and "a\\|b &lt;!--" in text


@pytest.mark.parametrize("key", ["dataset", "split", "text_column", "dataset_config", "revision", "command"])
def test_no_name_becomes_html_or_leaves_its_span_of_code(key):
    evil = make_results(**{key: "a`<script>alert(1)<img src=x onerror=y>"})
    text = make_card(evaluations={"evaluation/<b>.json": evil}).text
    clean = make_card(evaluations={"evaluation/a.json": make_results(**{key: "a"})}).text
    assert "&lt;script&gt;alert(1)" in text and "&lt;b&gt;.json" in text
    for sign in ("<", "`", "\n"):
        assert text.count(sign) == clean.count(sign)


@pytest.mark.parametrize("key", ["train_split", "eval_split", "text_column", "dataset", "text"])
def test_no_setting_of_the_run_becomes_html(key):
    text, clean = (
        re.sub("```json.*?```", "", make_card(summary=make_summary(**{key: value})).text, flags=re.DOTALL)
        for value in ("<script>`x`", "x")
    )
    assert "<script" not in make_card(summary=make_summary(**{key: "<script>`x`"})).text
    assert "<script" not in text and text.count("`") == clean.count("`")


# --------------------------------------------------------------------------------------------------------------------
# Facts


def test_metadata_names_what_the_run_was_made_from():
    data = make_card(summary=make_summary(dataset="you/songs"), license="mit", language=["en"]).data
    assert data.base_model == ["gpt2", "openai/whisper-small"] and data.base_model_relation == "finetune"
    assert (data.datasets, data.license, data.language) == (["you/songs"], "mit", ["en"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "feature-extraction")
    assert {"collap", "audio-text-retrieval", "music", "zero-shot-audio-classification"} <= set(data.tags)
    assert make_card(summary=make_summary(model="openai/whisper-small")).data.base_model == ["openai/whisper-small"]


def test_local_folders_are_no_hub_ids_and_paths_of_the_machine_are_not_shown():
    card = make_card(summary=make_summary(music="/home/alice/gpt2"), evaluations={"evaluation/a.json": make_results()})
    assert card.data.datasets is None and card.data.base_model == ["gpt2", "openai/whisper-small"]
    assert "alice" not in str(card) and "a local folder named `my_songs`" in card.text
    # once more from a summary that was published, whose paths are shortened
    summary = without_local_paths(make_summary(text="/home/alice/gpt2"))
    assert make_card(summary=summary).data.base_model == ["openai/whisper-small"]


def test_a_data_set_by_name_is_called_so_and_not_by_its_folder(tmp_path):
    source = "futga:/home/alice/FUTGA disk7/x?window_seconds=0"
    command = shlex.join(["collap", "evaluate", "--dataset", source, "--against", "audioset:data/mine", "--model", "m"])
    results = make_results(dataset=source, dataset_config="MusicCaps", command=command)
    card = make_card(evaluations={"evaluation/a.json": results}, summary=make_summary(dataset="vctk:d/vctk corpus"))
    for hidden in ("alice", "disk7", "mine", "corpus"):
        assert hidden not in str(card)
    figure = reread(card, tmp_path).data.eval_results[0]
    assert figure.dataset_name == figure.dataset_type == "futga?window_seconds=0"
    assert "Trained on the data set `vctk`" in card.text and "| data | the data set `vctk`" in card.text
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "staged").mkdir()
    stage_evaluations([tmp_path / "results.json"], tmp_path, "digest", tmp_path / "staged")
    (published,) = (tmp_path / "staged" / "evaluation").glob("*.json")
    assert published.name == "futga_window_seconds_0-MusicCaps-test-captions.json"
    read = json.loads(published.read_text())
    assert read["dataset"] == "futga?window_seconds=0" and "'futga:FOLDER?window_seconds=0'" in read["command"]
    assert "audioset:FOLDER --model m" in read["command"]
    again = make_card(
        evaluations={"evaluation/a.json": read}, summary=without_local_paths(make_summary(dataset=source))
    )
    assert again.data.eval_results[0].dataset_name == figure.dataset_name and "`futga?window_seconds=0`" in again.text


def test_a_folder_that_is_here_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("you/songs", lambda name: True) == "you/songs"
    (tmp_path / "you" / "songs").mkdir(parents=True)
    assert hub_id("you/songs", lambda name: True) is None


def test_what_is_not_known_is_said_to_be_unknown():
    card = make_card()
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    for sentence in (
        "No evaluation has been published",
        "How this model was trained has not been published",
        "What it was trained on is not stated",
        "No licence of the weights has been stated",
        "The language of the training texts is not stated",
    ):
        assert sentence in card.text
    assert "| energy | not measured |" in make_card(summary=make_summary()).text


def test_training_and_limits_are_those_of_this_model():
    text = make_card(summary=make_summary(), energy_kwh=1.25).text
    for cell in (
        "| hardware | NVIDIA A100; 2 CPU cores |",
        "| time | 2.30 hours |",
        "| energy | 1.25 kWh, as",
        "7,200",
    ):
        assert cell in text
    assert '"output_dir": ".../runs"' in text and "Text beyond 128 tokens is cut" in text
    assert "segments of 2 s" in text and "does not see the order" in text
    for settings in ({"structure_layers": 1}, {"alignment": "monotone"}):
        assert "does not see the order" not in make_card(config=tiny_config(**settings)).text
    assert "does not see the order" in make_card(config=tiny_config(alignment="free")).text
    text = make_card(config=tiny_config(alignment="monotone", path_blank=True)).text
    assert "laid along the song in their order, and need not cover it (`alignment: monotone`)" in text
    assert "A sentence beyond 128 tokens is cut" in text and "print(moments.path[0, 0])" in text
    assert "moments.path" not in make_card().text and "(`alignment: paper`)" in make_card().text
    assert "had not come to its end" in make_card(summary={**make_summary(), "finished": False}).text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--model /home/al/x/best --o=/tmp/a,b", "--model .../best --o=.../a,b"),
        ("'/home/my dir/a b' ~/x/y C:\\Users\\me\\z", "'.../a b' .../y .../z"),
        (
            "songs/s and/or http://a.b/c/d hf://x/y data/demo eval/R@1",
            "songs/s and/or http://a.b/c/d hf://x/y data/demo eval/R@1",
        ),
        ({"a": ["/x/y", 3, None]}, {"a": [".../y", 3, None]}),
        ("see file:///home/al/x and file:/a/b, or me@host:/home/al/y", "see .../x and .../b, or me@host:.../y"),
        ("PYTHONPATH=.:/home/al/lib ~al/x of ~5/6 in a:b", "PYTHONPATH=.:.../lib .../x of ~5/6 in a:b"),
        ("/home/al/my songs/a b", ".../a b"),
        ("http://a.b:80/c/d cuda:0", "http://a.b:80/c/d cuda:0"),
        ("song_describer:/home/al/sdd", "song_describer"),
        (
            "--dataset vctk:~/v --x wiki: folder:/a/b my-wiki:c",
            "--dataset vctk:FOLDER --x wiki: folder:.../b my-wiki:c",
        ),
    ],
)
def test_absolute_paths_are_shortened_and_nothing_else(given, expected):
    assert without_local_paths(given) == expected


# --------------------------------------------------------------------------------------------------------------------
# Publishing again

NEW = {"summary": make_summary(), "evaluations": {"evaluation/a.json": make_results(70.0)}}


def edited(card: ModelCard, old: str, new: str) -> ModelCard:
    """The card as a user saved it: text that is read again."""
    assert old in str(card)
    return ModelCard(str(card).replace(old, new, 1))


def test_handwritten_text_is_kept_and_generated_parts_are_refreshed():
    old = edited(make_card(), "## Results\n", "## Our story\n\nWe like it.\n\n## Results\n\nRead with care.\n")
    text = merge_cards(make_card(**NEW), [old]).text
    assert "## Our story\n\nWe like it.\n" in text and "## Results\n\nRead with care.\n" in text
    assert "70.0 [66.5, 74.0]" in text and "NVIDIA A100" in text and "No evaluation has been" not in text
    assert text == merge_cards(make_card(**NEW), [ModelCard(str(merge_cards(make_card(**NEW), [old])))]).text


def test_where_a_marker_was_deleted_the_users_text_wins():
    own = edited(make_card(), "<!-- collap:training -->", "My own words.")
    text = merge_cards(make_card(**NEW), [own]).text
    assert "My own words." in text and "NVIDIA A100" not in text and "70.0 [66.5, 74.0]" in text
    whole = ModelCard("---\nlicense: mit\n---\n# Mine\n\nAll my own.\n")
    assert merge_cards(make_card(**NEW), [whole]).text == "# Mine\n\nAll my own.\n"


def test_a_card_without_text_gets_all_of_it():
    merged = merge_cards(make_card(**NEW), [ModelCard("---\nlicense: mit\n---\n")])
    assert merged.text == make_card(**NEW).text and merged.data.license == "mit"


def test_the_first_card_leads_and_sections_that_only_the_other_has_are_added():
    hub = edited(make_card(), "## Cite", "## Notes\n\nhub notes\n\n## Cite")
    hub = edited(hub, "<!-- /collap:usage -->", "<!-- /collap:usage -->\n\nhub usage")
    local = edited(make_card(), "## Cite", "## Notes\n\nlocal notes\n\n## Thanks\n\n```\n## code\n```\n\n## Cite")
    text = merge_cards(make_card(**NEW), [hub, local]).text
    assert "hub notes" in text and "hub usage" in text and "local notes" not in text
    assert "## Thanks\n\n```\n## code\n```\n" in text
    assert text.count("## Cite") == text.count("## Thanks") == text.count("<!-- collap:usage -->") == 1
    assert lost_sections(hub.text, local.text) == ["## Notes"] and lost_sections(text, hub.text) == []
    assert lost_sections(hub.text, edited(local, "# collap-tiny", "# Mine").text) == ["the text at its top", "## Notes"]


def test_metadata_of_users_is_kept_and_what_is_measured_is_refreshed():
    old = make_card(evaluations={"evaluation/a.json": make_results()})
    old.data["co2_eq_emissions"] = {"emissions": 5}
    old.data["pipeline_tag"] = "text-to-audio"
    old.data.tags.append("jazz")
    old.data.license, old.data.base_model = "mit", ["you/beats"]
    other = EvalResult(
        task_type="Retrieval", dataset_type="a/b", dataset_name="b", metric_type="ndcg", metric_value=0.5
    )
    old.data.eval_results.append(other)
    data = merge_cards(make_card(**NEW), [ModelCard(str(old))]).data
    assert data["co2_eq_emissions"] == {"emissions": 5} and data.pipeline_tag == "text-to-audio"
    assert "jazz" in data.tags and "collap" in data.tags and len(set(data.tags)) == len(data.tags)
    assert data.license == "mit" and data.base_model == ["you/beats", "gpt2", "openai/whisper-small"]
    assert other in data.eval_results and len(data.eval_results) == 1 + 4 * len(NAMES)
    assert {one.metric_value for one in data.eval_results if one.metric_type == "recall_at_1"} == {70, 75, 80, 85}
    assert merge_cards(make_card(license="apache-2.0"), [old], ["license"]).data.license == "apache-2.0"


def test_figures_that_are_no_longer_published_leave_the_index():
    old = make_card(evaluations={"evaluation/a.json": make_results()})
    merged = merge_cards(make_card(), [ModelCard(str(old))])
    assert set(merged.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}


@pytest.mark.parametrize("head", ["license: [", "- a", "model-index: 3"])
def test_a_card_whose_metadata_cannot_be_read_is_named(head):
    with pytest.raises(ValueError, match="some/README.md: the metadata"):
        parse_card(ModelCard, f"---\n{head}\n---\ntext", "some/README.md")


# --------------------------------------------------------------------------------------------------------------------
# Corpora


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs") / "my_songs"
    return synthetic_songs.build_corpus(folder, {"train": 2, "test": 1}, 5, 12.0, 14.0, num_workers=1)


def test_the_card_of_a_corpus_says_what_is_in_it(songs):
    card = dataset_card(songs, "you/my-songs", "cc0-1.0")
    rows = [json.loads(line) for line in (songs / "train" / "metadata.jsonl").read_text().splitlines()]
    hours = sum(row["seconds"] for row in rows) / 3600
    assert f"| train | 2 | {hours:.2f} |" in card.text and "| test | 1 |" in card.text
    assert card.data.license == "cc0-1.0" and card.data.size_categories == ["n<1K"]
    (config,) = card.data.to_dict()["configs"]
    assert config["data_files"][0] == {"split": "train", "path": "data/train-*.parquet"}
    for column in ("audio", *rows[0]):
        assert f"| `{column}` |" in card.text or column == "file_name", column
    assert "No licence has been stated" in dataset_card(songs, "you/my-songs").text


def test_the_command_on_the_card_makes_the_same_corpus(songs, tmp_path):
    text = dataset_card(songs, "you/my-songs").text
    (command,) = (line for line in text.splitlines() if line.startswith("collap corpus render"))
    arguments = shlex.split(command.replace("FOLDER", str(tmp_path / "again")))[3:]
    assert run_command("corpus render", [*arguments, "--num_workers", "1"]) == 0
    files = sorted(path.relative_to(songs) for path in songs.rglob("*") if path.is_file())
    assert len(files) == 6
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (songs / name).read_bytes()


def test_a_damaged_corpus_is_refused(songs, tmp_path):
    with pytest.raises(ValueError, match="corpus.json: not found"):
        dataset_card(tmp_path, "you/x")
    (tmp_path / "corpus.json").write_text((songs / "corpus.json").read_text())
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        lines = (songs / split / "metadata.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / split / "metadata.jsonl").write_text(lines[0])
    with pytest.raises(ValueError, match="'train' has 1 songs"):
        dataset_card(tmp_path, "you/x")


@pytest.mark.parametrize(
    ("rows", "category"),
    [(3, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**11, "100B<n<1T"), (10**12, "n>1T")],
)
def test_size_categories(rows, category):
    assert size_category(rows) == category


def test_the_usage_block_of_a_model_that_reads_sentences_runs(tmp_path, capsys):
    settings = {"alignment": "monotone", "path_blank": True, "alignment_frame_seconds": 0.5}
    save_model_folder(tiny_model(**settings), tiny_processor(**settings), tmp_path / "model")
    text = make_card(config=tiny_config(**settings)).text
    block = re.search(r"```python\n(.*?)```", text, re.S)[1]
    exec(re.sub(r'name = "[^"]*"', f"name = {str(tmp_path / 'model')!r}", block), {})
    *_, spans = capsys.readouterr().out.split("tensor(")
    assert spans.count("[") == 3  # of two sentences
