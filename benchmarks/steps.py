"""One contrastive step on random songs: gradient caching and checkpointing, memory, and the plan of the same step.

On a CPU the model is small (12 M parameters, segments of 10 s); on a GPU it is the paper's, in bfloat16.
"""

import statistics
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, WhisperConfig

from benchmarks.encode import take_turns
from collap.data.batches import AudioTextBatch
from collap.training.cost import RunCost, Workload, paper_config, run_cost
from collap.training.step import StepInputs, cached_step
from collap.training.trainable import enable_gradient_checkpointing
from modeling_collap import BeatsConfig, CoLLAPConfig, CoLLAPModel
from processing import CoLLAPFeatureExtractor

SAMPLING_RATE = 16_000
TEXT_TOKENS = 333  # the paper's mean text: 257 words, by 1.3 tokens a word


def small_config(width: int = 256, layers: int = 4, segment_seconds: float = 10.0) -> CoLLAPConfig:
    """All towers of one width and depth, at the time grid of the full size; all audio tokens are there."""
    heads = width // 64
    sizes = {"n_embd": width, "n_layer": layers, "n_head": heads}
    text = GPT2Config(vocab_size=5000, n_positions=512, bos_token_id=0, eos_token_id=0, **sizes)
    music = BeatsConfig(
        embed_dim=width,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    speech = WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        max_source_positions=round(50 * segment_seconds),
    )
    parts = {"text_config": text, "music_config": music, "speech_config": speech}
    return CoLLAPConfig(**parts, projection_dim=width, segment_seconds=segment_seconds)


def median_ratio(seconds: dict[str, list[float]], name: str, alternative: str) -> float:
    """Return the median ratio of two contestants within the same turn."""
    pairs = zip(seconds[name], seconds[alternative], strict=True)
    return round(statistics.median(one / other for one, other in pairs), 3)


def ratio_range(seconds: dict[str, list[float]], name: str, alternative: str) -> list[float]:
    """The smallest and the largest of a turn: how far the median can be trusted."""
    ratios = [one / other for one, other in zip(seconds[name], seconds[alternative], strict=True)]
    return [round(min(ratios), 3), round(max(ratios), 3)]


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(runs), 4) for name, runs in seconds.items()}


@dataclass
class Bench:
    """Models and batches of one kind.

    Attributes:
        song_seconds: length of every song.
        text_tokens: of every text.
    """

    accelerator: Accelerator
    config: CoLLAPConfig
    song_seconds: float
    text_tokens: int = TEXT_TOKENS

    @property
    def device(self) -> str:
        return self.accelerator.device.type

    def model(self, checkpointing: bool = False) -> CoLLAPModel:
        """The same weights every time, in training mode."""
        torch.manual_seed(0)
        model = CoLLAPModel(self.config).train()
        if checkpointing:
            enable_gradient_checkpointing(model, ["all"])
        return self.accelerator.prepare_model(model)

    def batch(self, songs: int) -> AudioTextBatch:
        """As the loader gives it: features where the CPU trains, waveforms where a GPU computes the features."""
        torch.manual_seed(1)
        waveform = torch.randn(round(self.song_seconds * SAMPLING_RATE)) * 0.1
        if self.device == "cpu":
            audio = self.extractor().segment_features(waveform)
        else:
            audio = {"waveform": waveform.pin_memory()}
        ids = torch.randint(self.config.text_config.vocab_size, (songs, self.text_tokens))
        return AudioTextBatch(
            text={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            audios=[audio] * songs,  # the same song each time: numbers do not change the time
            names=[f"song {number}" for number in range(songs)],
            seconds=[self.song_seconds] * songs,
            skipped=[],
        )

    def extractor(self) -> CoLLAPFeatureExtractor:
        return CoLLAPFeatureExtractor.from_model_config(self.config)

    def step(self, model, batch: AudioTextBatch, micro_batch_size: int | None = None, optimizer=None) -> Callable:
        """A step to be timed: forward and backward pass, and the optimizer's part if there is one."""
        extractor = self.extractor()

        def run():
            inputs = StepInputs(self.accelerator, batch, extractor)
            if micro_batch_size is not None and micro_batch_size < len(batch):
                cached_step(self.accelerator, model, inputs, micro_batch_size)
            else:
                output = model(**inputs.texts(), **inputs.audios(), return_loss=True, gather_negatives=True)
                self.accelerator.backward(output.loss)
            if optimizer is not None:
                self.accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            model.zero_grad()

        return run

    def plan(
        self, songs: int, micro_batch_size: int | None, checkpointing: bool, tflops: float | None = None
    ) -> RunCost:
        """Return what `train.py --plan` would say of such a step."""
        workload = Workload(
            songs=songs,
            mean_seconds=self.song_seconds,
            max_seconds=self.song_seconds,
            batch_size=songs,
            micro_batch_size=micro_batch_size,
            text_tokens=self.text_tokens,
            mixed_precision=self.accelerator.mixed_precision,
            gradient_checkpointing=("all",) if checkpointing else (),
        )
        return run_cost(self.config, workload, tflops)


def build_bench(full: bool, song_seconds: float = 20.0, **size) -> Bench:
    """The paper's model on a GPU in bfloat16, or a small one of this size ([`small_config`]) on the CPU in float32."""
    accelerator = Accelerator(mixed_precision="bf16" if full else "no", cpu=not full)
    if full:
        return Bench(accelerator, paper_config(), song_seconds)
    return Bench(accelerator, small_config(**size), song_seconds, text_tokens=128)


class Meter(TorchDispatchMode):
    """Bytes of the tensors made within the block that are still alive. Storages are counted, so views are free.

    Attributes:
        peak_bytes: at the worst moment so far.
    """

    def __init__(self):
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given:  # else a view, perhaps of a parameter
                self._sizes[storage._cdata] = storage.nbytes()
                self.live_bytes += storage.nbytes()
                self.peak_bytes = max(self.peak_bytes, self.live_bytes)
                weakref.finalize(storage, self._remove, storage._cdata)
        return result

    def _remove(self, key: int):
        self.live_bytes -= self._sizes.pop(key)


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def peak_bytes(bench: Bench, run: Callable) -> int:
    """Most bytes of the tensors that a step makes, gradients of the parameters included: by torch's allocator on a GPU;
    on a CPU by following every tensor, because the size of a process also tells what it once held."""
    if bench.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with Meter() as meter:
        run()
    return meter.peak_bytes


def measure_caching(bench: Bench, songs: int, micro_batch_size: int, repeats: int) -> dict:
    """Gradient caching over the plain step on the same batch, with and without gradient checkpointing."""
    batch = bench.batch(songs)
    plain, recomputing = bench.model(), bench.model(checkpointing=True)
    contestants = {
        "plain": bench.step(plain, batch),
        "cached": bench.step(plain, batch, micro_batch_size),
        "checkpointed": bench.step(recomputing, batch),
        "checkpointed and cached": bench.step(recomputing, batch, micro_batch_size),
    }
    seconds = take_turns(contestants, repeats, bench.device)
    flops = {
        name: bench.plan(songs, micro if micro < songs else None, checkpointing).flops_per_step
        for name, micro, checkpointing in (
            ("plain", songs, False),
            ("cached", micro_batch_size, False),
            ("checkpointed", songs, True),
            ("checkpointed and cached", micro_batch_size, True),
        )
    }
    pairs = {"cached": "plain", "checkpointed": "plain", "checkpointed and cached": "checkpointed"}
    return {
        "songs": songs,
        "micro_batch_size": micro_batch_size,
        "step_seconds": medians(seconds),
        "time_over": {f"{name} / {other}": median_ratio(seconds, name, other) for name, other in pairs.items()},
        "range": {f"{name} / {other}": ratio_range(seconds, name, other) for name, other in pairs.items()},
        "flop_over": {f"{name} / {other}": round(flops[name] / flops[other], 3) for name, other in pairs.items()},
    }


def measure_caching_memory(bench: Bench, songs: int, micro_batch_size: int) -> dict:
    """Peak of a step for N and 4 N songs; with caching it should hardly grow."""
    found = {}
    for name, micro, checkpointing in (
        ("plain", None, False),
        ("cached", micro_batch_size, False),
        ("checkpointed", None, True),
        ("checkpointed and cached", micro_batch_size, True),
    ):
        model = bench.model(checkpointing)
        peaks = [peak_bytes(bench, bench.step(model, bench.batch(size), micro)) for size in (songs, 4 * songs)]
        found[name] = {"mb": [round(peak / 1e6, 1) for peak in peaks], "growth": round(peaks[1] / peaks[0], 3)}
    return {"songs": [songs, 4 * songs], "micro_batch_size": micro_batch_size, "peak": found}


def measure_plan(bench: Bench, songs: int, micro_batch_size: int) -> dict:
    """FLOP and activations of real steps over those of the plan, on a CPU.

    Attention is spelled out ("eager"), because torch does not count the FLOP of its fused kernel on a CPU.
    """
    for part in (bench.config.text_config, bench.config.music_config, bench.config.speech_config):
        part._attn_implementation = "eager"
    found = {}
    for name, micro, checkpointing in (
        ("plain", None, False),
        ("cached", micro_batch_size, False),
        ("checkpointed", None, True),
    ):
        planned = bench.plan(songs, micro, checkpointing)
        run = bench.step(bench.model(checkpointing), bench.batch(songs), micro)
        with Meter() as meter:
            run()
        with FlopCounterMode(display=False) as counter:
            run()
        activations = planned.memory["activations of a micro-batch"] + planned.memory["gradients"]
        found[name] = {
            "flop_over_plan": round(counter.get_total_flops() / planned.flops_per_step, 3),
            "memory_over_plan": round(meter.peak_bytes / activations, 3),
        }
    return {"songs": songs, "micro_batch_size": micro_batch_size, "measured": found}
