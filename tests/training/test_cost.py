"""The plan of a run against what real steps on the CPU count, keep and take."""

import json
import os
import subprocess
import sys
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_beats_config, tiny_config, tiny_text_config, tiny_whisper_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from collap.training.cost import (
    PAPER,
    SCORE_KEEPS,
    SCORE_PEAK,
    RunCost,
    Workload,
    build_meta_model,
    paper_config,
    part_flops,
    planned_model,
    run_cost,
)
from collap.training.settings import parse_settings
from collap.training.summary import compare
from modeling_collap import CoLLAPConfig, CoLLAPModel, scoring_collap

REPOSITORY = Path(__file__).parents[2]
SONGS, SEGMENTS, TEXT_TOKENS = 4, 2, 40


def config_without_dropout(attention: str = "eager", text: str = "gpt2", **overrides) -> CoLLAPConfig:
    """With "eager" attention a CPU and a GPU build the same graph."""
    text_config = tiny_text_config(text)
    text_config.update({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    music = tiny_beats_config(hidden_dropout=0.0, attention_dropout=0.0)
    parts = {"text_config": text_config, "music_config": music, "speech_config": tiny_whisper_config()}
    config = tiny_config(**{**parts, **overrides})
    for part in (config.text_config, config.music_config, config.speech_config):
        part._attn_implementation = attention
    return config


def workload(config: CoLLAPConfig, **overrides) -> Workload:
    seconds = SEGMENTS * config.segment_seconds
    settings = {"songs": 2 * SONGS, "batch_size": SONGS, "text_tokens": TEXT_TOKENS, "epochs": 3}
    return Workload(**{**settings, "mean_seconds": seconds, "max_seconds": seconds, **overrides})


def real_model(config: CoLLAPConfig) -> CoLLAPModel:
    torch.manual_seed(0)
    return CoLLAPModel(config).train()


def batch(config: CoLLAPConfig, songs: int = SONGS) -> dict[str, torch.Tensor]:
    frames = round(100 * config.segment_seconds)
    mask = torch.ones(songs, TEXT_TOKENS, dtype=torch.long)
    mask[0, -1] = 0  # one text is shorter, as in a real batch
    return {
        "input_ids": torch.randint(config.text_config.vocab_size, (songs, TEXT_TOKENS)),
        "attention_mask": mask,
        "music_features": torch.randn(songs, SEGMENTS, frames - 2, config.music_config.num_mel_bins),
        "speech_features": torch.randn(songs, SEGMENTS, config.speech_config.num_mel_bins, frames),
    }


def test_forward_flops_of_a_text_tower_follow_the_closed_form():
    config = tiny_config("gpt2")
    work = workload(config)
    found, _ = part_flops(build_meta_model(config, work), work)["text"]
    width, layers = 32, 2
    weights = layers * 12 * width**2  # query, key, value, output and a feed-forward of four widths
    attention = layers * 4 * TEXT_TOKENS**2 * width
    head = 2 * width * config.projection_dim
    assert found == 2 * weights * TEXT_TOKENS + attention + head


def test_flops_of_the_paper_s_encoders_follow_the_closed_form():
    """Forward: 2 x weights x tokens, attention, and the convolutions at their inputs."""
    config, work = paper_config(), replace(PAPER, batch_size=2, mean_seconds=30.0, max_seconds=30.0)
    found, _ = part_flops(build_meta_model(config, work), work)["encoders"]
    width, layers, speech_tokens, patches = 768, 12, 1500, 187 * 8
    speech = layers * (24 * width**2 * speech_tokens + 4 * speech_tokens**2 * width)
    speech += 2 * 3 * width * (80 * 3000 + width * 1500)
    music = layers * (24 * width**2 * patches + 4 * patches**2 * width + 2 * patches * width * 8)
    music += 2 * patches * (256 * 512 + 512 * width + 128 * width * width / 16) + 2 * 128 * width * width / 16
    adapter = 2 * 187 * (2 * width) * 512
    assert found == pytest.approx(speech + music + adapter, rel=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"gradient_checkpointing": ("text", "music", "speech")},
        {"frozen": ("music", "speech")},
        {"frozen": ("text",), "gradient_checkpointing": ("music",)},
    ],
)
def test_flops_of_a_step_are_those_of_a_real_one(overrides):
    config = config_without_dropout(structure_layers=1)
    model = real_model(config)
    for tower in overrides.get("frozen", ()):
        model.encoders[tower].requires_grad_(False)
    for tower in overrides.get("gradient_checkpointing", ()):
        model.encoders[tower].activation_checkpointing_enable({"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        model(**batch(config), return_loss=True).loss.backward()
    found = run_cost(config, workload(config, **overrides))
    assert found.flops_per_step == pytest.approx(counter.get_total_flops(), rel=0.01)
    if not overrides.get("gradient_checkpointing"):
        assert found.model_flops_per_step == found.flops_per_step


def test_gradient_caching_adds_one_forward_pass():
    config = config_without_dropout()
    model = real_model(config)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            model(**batch(config))
        model(**batch(config), return_loss=True).loss.backward()
    found = run_cost(config, workload(config, micro_batch_size=1))
    assert found.flops_per_step == pytest.approx(counter.get_total_flops(), rel=0.01)
    whole = run_cost(config, workload(config))
    assert found.model_flops_per_step == pytest.approx(whole.flops_per_step)
    assert found.memory["activations of a micro-batch"] < 0.4 * whole.memory["activations of a micro-batch"]


def test_processes_share_the_work_of_a_step():
    config = config_without_dropout()
    one, two = (run_cost(config, workload(config, num_processes=number)) for number in (1, 2))
    assert two.flops_per_step == pytest.approx(one.flops_per_step / 2)
    assert one.memory["DDP buckets"] == 0
    assert two.memory["DDP buckets"] == two.memory["gradients"] == 4 * two.parameters["whole"][1]


FEW_AND_MANY = (8, 16)  # songs; few take more than the import of the libraries did at its worst moment
PEAK_SCRIPT = """
import sys
sys.path[:0] = ["{here}", "{tests}", "{repository}"]
import test_cost as t
import torch
from collap.models import peak_memory_bytes
config = t.medium_config()
model = t.real_model(config)
for songs in t.FEW_AND_MANY:
    model(**t.batch(config, songs), return_loss=True).loss.backward()
    print(peak_memory_bytes(torch.device("cpu")))
"""


def medium_config() -> CoLLAPConfig:
    """Some 20 MB of activations for each song."""
    music = tiny_beats_config(hidden_size=128, intermediate_size=512, hidden_dropout=0.0, attention_dropout=0.0)
    speech = tiny_whisper_config(d_model=128, encoder_ffn_dim=512)
    return config_without_dropout(music_config=music, speech_config=speech, segment_seconds=4)


@pytest.mark.slow
def test_peak_memory_is_that_of_a_real_process():
    """What more songs add to the peak of a process, libraries and weights aside: within a fifth."""
    script = PEAK_SCRIPT.format(
        here=str(Path(__file__).parent), tests=str(REPOSITORY / "tests"), repository=str(REPOSITORY)
    )
    # Large blocks go back to the system at once, so that the peak is that of the tensors.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    few, many = map(int, done.stdout.split())
    config = medium_config()
    plans = [run_cost(config, workload(config, batch_size=songs, songs=songs)) for songs in FEW_AND_MANY]
    predicted = plans[1].peak_memory - plans[0].peak_memory
    assert predicted > 1.2e8
    assert 0.8 < (many - few) / predicted < 1.2, (many - few) / predicted


class AliveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that live, and the most that ever did."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return found


@pytest.mark.parametrize("limit", [2**24, 200_000], ids=["kept", "scored again"])
def test_the_score_keeps_and_takes_what_the_plan_says(limit, monkeypatch):
    monkeypatch.setattr(scoring_collap, "CELLS_AT_A_TIME", limit)
    monkeypatch.setattr(scoring_collap, "TILE_CELLS", limit)  # a GPU has no tiles
    songs, tokens, grid = 20, 1870, (62, 31)
    audio, text = torch.randn(songs, tokens, 2, requires_grad=True), torch.randn(songs, 2, requires_grad=True)
    mask, cells = torch.ones(songs, tokens, dtype=torch.bool), songs**2 * scoring_collap.cells_of_pair(tokens, *grid)
    with AliveBytes() as alive:
        scores = scoring_collap.attention_pooled_scores(text, audio, mask, *grid, 7.0, 7.0)
        kept = sum(alive.sizes.values())
        scores.sum().backward()
    assert kept == pytest.approx(SCORE_KEEPS * cells, rel=0.1) if cells < limit else kept < 0.1 * SCORE_KEEPS * cells
    assert alive.peak == pytest.approx(SCORE_PEAK * min(cells, limit), rel=0.2)


def test_frozen_adapted_and_stored_towers_cost_less():
    config = tiny_config()
    full, frozen, lora, stored = (
        run_cost(config, workload(config, **overrides))
        for overrides in (
            {},
            {"frozen": ("music", "speech")},
            {"lora": ("text", "music", "speech"), "lora_rank": 2},
            {"precomputed_tokens": True},
        )
    )
    assert frozen.parameters["music"] == (full.parameters["music"][0], 0)
    assert frozen.memory["AdamW states"] == 8 * frozen.parameters["whole"][1] < full.memory["AdamW states"]
    assert frozen.flops_per_step < 0.45 * full.flops_per_step
    assert frozen.memory["activations of a micro-batch"] < 0.5 * full.memory["activations of a micro-batch"]
    assert 0 < lora.parameters["text"][1] < 0.2 * lora.parameters["text"][0]
    assert lora.flops_per_step < full.flops_per_step
    assert stored.flops_per_step < 0.3 * frozen.flops_per_step
    fused = 12 * (32 + 32) * 4  # tokens of a segment, both widths, float32
    assert stored.memory["features of a micro-batch"] == SONGS * SEGMENTS * fused


def test_the_longest_songs_decide_the_memory_and_the_mean_the_flops():
    config = tiny_config()
    long = run_cost(config, workload(config, mean_seconds=8.0, max_seconds=8.0))
    mixed = run_cost(config, workload(config, mean_seconds=3.0, max_seconds=8.0))
    assert mixed.memory == long.memory and mixed.segments_per_song == 2.0
    _, text = part_flops(build_meta_model(config, workload(config)), workload(config))["text"]
    text *= SONGS
    assert mixed.flops_per_step - text == pytest.approx((long.flops_per_step - text) / 2)


def test_structure_layers_are_counted():
    flops = []
    for layers in (0, 1):
        config = tiny_config(structure_layers=layers, structure_heads=4, alignment_frame_seconds=0.8)
        work = workload(config)  # of songs of 24 tokens, 5 frames of 5 tokens
        flops.append(part_flops(build_meta_model(config, work), work)["structure"][0])
    assert flops == [0, 5 * 24 * 32**2 + 4 * 5**2 * 32]


@pytest.fixture(scope="module")
def paper() -> RunCost:
    return run_cost(paper_config())


@pytest.mark.parametrize("text", ["gpt2", "roberta-base"])
def test_the_paper_s_run_on_one_screen(text, paper):
    found = paper if text == "gpt2" else run_cost(paper_config("roberta-base"))
    millions = {name: round(total / 1e6, 1) for name, (total, _) in found.parameters.items()}
    assert millions["text"] == {"gpt2": 124.4, "roberta-base": 124.1}[text]  # as published, without RoBERTa's pooler
    assert millions["music"] == 90.3 and millions["speech"] == 88.2
    assert found.tokens_per_song == {"music": 14960.0, "speech": 15000.0, "fused": 1870.0, "text": 512}
    assert found.workload.steps_per_epoch == 1026
    shown = found.to_text()
    assert len(shown.splitlines()) < 40 and max(map(len, shown.splitlines())) <= 120
    assert "51,300 songs, 4,109 hours, 20 epochs of 1,026 steps" in shown and "assumed, not measured" in shown


def test_checkpointing_makes_the_paper_s_batch_fit_on_two_large_gpus(paper):
    plain = paper
    checkpointed = run_cost(paper_config(), replace(PAPER, gradient_checkpointing=("text", "music", "speech")))
    assert plain.peak_memory > 4e11 and checkpointed.peak_memory < 6e10
    assert 1.2 < checkpointed.flops_per_step / plain.flops_per_step < 1.34  # one of four passes more, at most
    assert checkpointed.model_flops_per_step == pytest.approx(plain.flops_per_step)


def test_time_at_a_throughput_and_a_file_of_it():
    config = tiny_config()
    found = run_cost(config, workload(config), tflops=0.5)
    assert found.step_seconds == found.flops_per_step / 0.5e12
    assert found.epoch_hours == pytest.approx(2 * found.step_seconds / 3600)  # 8 songs in batches of 4
    assert found.run_hours == pytest.approx(3 * found.epoch_hours)
    shown = found.to_text()
    assert "0.5 TFLOP/s per device" in shown and "assumed" not in shown
    loaded = json.loads(json.dumps(asdict(found)))
    assert loaded["step_seconds"] == found.step_seconds and loaded["workload"]["batch_size"] == SONGS


def test_measured_steps_are_compared_with_the_plan():
    found = RunCost(workload(tiny_config()), {}, 1.0, {}, 8e12, 6e12, {}, 2e9, tflops=100.0)
    assert compare(asdict(found), {"step_seconds": 0.16, "peak_memory": 2.2e9}) == pytest.approx(
        {"achieved_tflops": 50, "achieved_model_tflops": 37.5, "seconds_over_plan": 2.0, "memory_over_plan": 1.1}
    )
    assert set(compare(asdict(without_tflops(found)), {"step_seconds": 1.0})) == {
        "achieved_tflops",
        "achieved_model_tflops",
    }
    with pytest.raises(ValueError, match="step_seconds"):
        compare(asdict(found), {"peak_memory": 1.0})


def without_tflops(found: RunCost) -> RunCost:
    return RunCost(found.workload, {}, 1.0, {}, 8e12, 6e12, {}, 2e9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 3, "num_processes": 2}, "no multiple of num_processes"),
        ({"micro_batch_size": 0}, "micro_batch_size must be positive, found 0"),
        ({"songs": 3}, "fewer than batch_size"),
        ({"mixed_precision": "bf8"}, "mixed_precision must be no, bf16 or fp16"),
        ({"mean_seconds": 9.0}, "above max_seconds"),
        ({"frozen": ("musik",)}, "did you mean 'music'"),
        ({"gradient_checkpointing": ("texts",)}, "did you mean 'text'"),
    ],
)
def test_impossible_workloads_are_named(overrides, message):
    config = tiny_config()
    with pytest.raises(ValueError, match=message):
        run_cost(config, workload(config, **overrides))
    with pytest.raises(ValueError, match="tflops must be positive"):
        run_cost(config, workload(config), tflops=0.0)


def planned(*arguments: str) -> tuple[CoLLAPConfig, list[str]]:
    return planned_model(parse_settings(["--plan", *arguments]))


def test_the_named_model_is_planned_or_said_to_be_unreadable(backbones):
    config, assumed = planned("--text", str(backbones["roberta"]), "--speech", str(backbones["whisper"]))
    assert (config.text_config.model_type, config.speech_config.d_model, assumed) == ("roberta", 32, ["BEATs-base"])
    config, assumed = planned()
    assert assumed == ["gpt2", "BEATs-base", "openai/whisper-small"]
    assert config.to_dict() == paper_config().to_dict()
    for name in ("text", "music", "speech"):
        with pytest.raises(ValueError, match="nowhere/at-all: its cost is that of its configuration, which cannot be"):
            planned(f"--{name}", "nowhere/at-all")
    with pytest.raises(ValueError, match="'roberta' model; expected 'whisper'"):
        planned("--speech", str(backbones["roberta"]))
