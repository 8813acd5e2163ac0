"""Predict what a training run costs: parameters, tokens, FLOP, memory per device and time.

FLOP are counted by torch on the meta device, which knows shapes and no numbers: forward and backward pass of one text,
one segment, one song's structure layers and one score, with what is frozen, adapted and checkpointed; a step is as many
of them as it has. (In its backward pass a fused attention kernel repeats a product that is not counted: 4 % of the
paper's step.) Memory is a formula, whose constants [`KEPT`] were fitted to all tensors that are alive in forward and
backward passes with a GPU's kernels and autocast; docs/performance.md says how, and how far the formula is off.

Dimensions: `A = B` songs and texts of a batch over all ranks, `K` tokens of a segment, `T` tokens of a song, `L` text
tokens, `D` shared width, `M` width of music and speech.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoTokenizer, GPT2Config, PreTrainedConfig, RobertaConfig, WhisperConfig

from collap.data.lengths import song_seconds
from collap.data.rows import row_texts
from collap.data.sources import open_dataset
from collap.files import write_json
from collap.models import check_vocabulary, load_config
from collap.training.settings import TrainSettings
from collap.training.summary import PLAN_FILE
from collap.training.trainable import add_lora, enable_gradient_checkpointing, freeze
from modeling_collap import BeatsConfig, CoLLAPConfig, CoLLAPModel
from modeling_collap.configuration_collap import AUDIO_ENCODERS, MUSIC_FRAMES_PER_SECOND, audio_settings
from modeling_collap.scoring_collap import CELLS_AT_A_TIME, attention_pooled_scores, cells_of_pair

PLANNED_TEXTS = 256  # rows whose texts are counted
FLOAT32_BYTES = 4
# Sustained, not peak. An assumption to place a run by, not a measurement: the first logged steps tell the truth.
TYPICAL_TFLOPS = {
    20: "a small or older GPU",
    50: "one 24 GB consumer GPU of 2022",
    100: "one A100-class GPU",
    200: "one H100-class GPU, well tuned",
}


@dataclass(frozen=True)
class Kept:
    """Hold what a transformer layer keeps for the backward pass, in bytes for each token."""

    width: float  # times the width of the layer
    feed_forward: float  # times that of its feed-forward part
    around: float  # times the width, once: what the tower keeps before and after its layers
    moment: float  # times what a layer keeps: needed on top at the worst moment
    position_bias: float = 0.0  # times heads and tokens: the bias that BEATs adds to its attention


# In float32, and with autocast to 16 bits. "text" is RoBERTa and its kin, and stands for all that is no GPT-2.
KEPT = {
    "gpt2": (Kept(36.8, 20.0, 5.0, 1.3), Kept(20.4, 16.8, 5.3, 1.4)),
    "text": (Kept(36.8, 8.0, 5.0, 1.3), Kept(24.4, 4.8, 5.3, 1.6)),
    "music": (Kept(42.0, 8.0, 22.4, 1.8, 4.0), Kept(29.1, 4.3, 19.0, 3.2, 2.0)),
    "speech": (Kept(32.0, 8.0, 28.0, 1.3), Kept(23.1, 4.3, 19.0, 1.3)),
    "structure": (Kept(32.0, 8.0, 0.0, 1.4), Kept(20.0, 4.3, 0.0, 1.6)),
}
TOKENS_KEEP = (8.0, 12.0)  # bytes for each token of a song and its width: what scaling it to unit norm keeps
SCORE_KEEPS, SCORE_PEAK = 12, 28  # bytes for each of the cells of songs and texts; always in float32


@dataclass(frozen=True)
class Workload:
    """A training run, as far as it decides the cost; a ValueError for what cannot be."""

    songs: int  # rows of the training split
    mean_seconds: float
    max_seconds: float  # of the songs, or of the crops
    batch_size: int = 50  # songs contrasted with one another, over all ranks
    num_processes: int = 1
    micro_batch_size: int | None = None  # songs encoded at a time on a rank; None for all of them
    segment_batch_size: int = 8  # segments that pass the audio encoders at a time
    text_tokens: int = 512  # L, that the texts of a batch are padded to; of all sentences together
    epochs: int = 20
    mixed_precision: str = "no"  # or bf16 or fp16, by autocast; the weights stay float32
    frozen: tuple[str, ...] = ()  # names as in collap/training/trainable.py
    lora: tuple[str, ...] = ()
    lora_rank: int = 8
    gradient_checkpointing: tuple[str, ...] = ()
    precomputed_tokens: bool = False  # train from stored encoder outputs; neither audio encoder runs

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise ValueError(f"{name} must be positive, found {value}")
        if self.mean_seconds > self.max_seconds:
            raise ValueError(f"mean_seconds ({self.mean_seconds}) is above max_seconds ({self.max_seconds})")
        if self.batch_size % self.num_processes:
            raise ValueError(f"batch_size ({self.batch_size}) is no multiple of num_processes ({self.num_processes})")
        if self.songs < self.batch_size:
            raise ValueError(f"songs ({self.songs}) are fewer than batch_size ({self.batch_size})")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision must be no, bf16 or fp16, found {self.mixed_precision!r}")

    @property
    def songs_per_process(self) -> int:
        return self.batch_size // self.num_processes

    @property
    def songs_at_a_time(self) -> int:
        return min(self.micro_batch_size or self.songs_per_process, self.songs_per_process)

    @property
    def is_cached(self) -> bool:  # one more forward pass, and the activations of a micro-batch only
        return self.songs_at_a_time < self.songs_per_process

    @property
    def steps_per_epoch(self) -> int:
        return self.songs // self.batch_size  # the last, incomplete batch is dropped

    def segments(self, segment_seconds: float) -> tuple[float, int]:
        """Return the segments of a song: expected ones (half of the last is empty on average), and of the longest."""
        longest = math.ceil(self.max_seconds / segment_seconds)
        if self.mean_seconds == self.max_seconds:
            return longest, longest
        return min(self.mean_seconds / segment_seconds + 0.5, longest), longest


# arXiv 2410.02271: 51.3k songs, 4,109 hours, at most 5 minutes each, two GPUs. Its texts have 256.94 words on average,
# some 334 tokens at 1.3 tokens per word (an assumption: usual for English and byte-level BPE); a batch is padded to
# its longest text, so the limit of RoBERTa, 512, is planned for.
PAPER = Workload(51_300, 4_109 * 3_600 / 51_300, 300.0, num_processes=2, mixed_precision="bf16")
WHISPER_SMALL = {"d_model": 768, "encoder_layers": 12, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072}
# Its encoders by the names that train.py knows them by; "" is BEATs, which everybody has to convert.
PAPER_PARTS = {
    "gpt2": GPT2Config(),
    "roberta-base": RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    "": BeatsConfig(),
    "openai/whisper-small": WhisperConfig(**WHISPER_SMALL),
}


def paper_config(text: str = "gpt2") -> CoLLAPConfig:
    """Return the paper's model, with "gpt2" or "roberta-base", without reading any of its parts."""
    music, speech = PAPER_PARTS[""], PAPER_PARTS["openai/whisper-small"]
    return CoLLAPConfig(text_config=PAPER_PARTS[text], music_config=music, speech_config=speech)


class _NoValues(TorchFunctionMode):
    """Answers a question about the values of a meta tensor ("is nothing padded?") with no, the general case."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            return False
        return func(*args, **(kwargs or {}))


def count_flops(forward: Callable[[], torch.Tensor]) -> tuple[int, int]:
    """Count the FLOP of `forward` on meta tensors, and of it with its backward pass; a product and a sum are two."""
    with FlopCounterMode(display=False) as counter, _NoValues():
        output = forward()
        forward_flops = counter.get_total_flops()
        if output.requires_grad:
            output.backward(torch.empty_like(output))
    return forward_flops, counter.get_total_flops()


def build_meta_model(config: CoLLAPConfig, workload: Workload) -> CoLLAPModel:
    """Build the model of a run without its weights, frozen and adapted as the workload says, in training mode; a
    ValueError for towers that are unknown, or both frozen and adapted."""
    stored = set(config.built_encoders) if workload.precomputed_tokens else set()
    with torch.device("meta"):
        model = CoLLAPModel(config)
        freeze(model, sorted(stored.union(workload.frozen)))
        if workload.lora:
            add_lora(model, list(workload.lora), workload.lora_rank, base_model="")
    return model.train()


def segment_inputs(config: CoLLAPConfig, precomputed_tokens: bool) -> list[torch.Tensor]:
    """Return one segment on the meta device: its features and a mask, or its stored tokens (1, K, M)."""
    if precomputed_tokens:
        return [torch.empty(1, config.tokens_per_segment, config.fused_width, device="meta")]  # (1, K, M)
    columns = round(MUSIC_FRAMES_PER_SECOND * config.segment_seconds)
    music = torch.empty(1, columns - 2, config.music_config.num_mel_bins, device="meta")  # (1, fbank frames, bins)
    speech = torch.empty(1, config.speech_config.num_mel_bins, columns, device="meta")  # (1, bins, columns)
    return [music, speech, torch.ones(1, columns - 2, dtype=torch.bool, device="meta")]


def part_flops(model: CoLLAPModel, workload: Workload) -> dict[str, tuple[int, int]]:
    """Count the FLOP, without and with the backward pass, of one of the longest songs and its text by their parts."""
    config, segments = model.config, workload.segments(model.config.segment_seconds)[1]
    tokens, grid = segments * config.tokens_per_segment, (config.kernel_size, config.stride)
    hidden = torch.empty(1, tokens, config.projection_dim, device="meta", requires_grad=True)  # (1, T, D)
    embeds = torch.empty(1, config.projection_dim, device="meta", requires_grad=True)  # (1, D)
    mask = torch.ones(1, tokens, dtype=torch.bool, device="meta")  # (1, T)
    texts = math.ceil(workload.text_tokens / (config.text_positions or math.inf)) or 1  # more than 1 only by sentences
    input_ids = torch.zeros(texts, math.ceil(workload.text_tokens / texts), dtype=torch.long, device="meta")  # (1, L)
    segment = segment_inputs(config, workload.precomputed_tokens)
    encode = model.audio_tower.adapter if workload.precomputed_tokens else model.audio_tower
    counted = {
        "text": (1, lambda: model.get_text_features(input_ids, torch.ones_like(input_ids))),
        "encoders": (segments, lambda: encode(*segment)),
        "structure": (1, lambda: model.normalize_tokens(hidden, mask)),
        "score": (workload.batch_size, lambda: attention_pooled_scores(embeds, hidden, mask, *grid, 1.0, 1.0)),
    }
    return {name: tuple(times * one for one in count_flops(run)) for name, (times, run) in counted.items()}


def step_flops(parts: dict[str, tuple[int, int]], workload: Workload, segment_share: float, cached: bool) -> float:
    """Return the FLOP of a step of one rank: of all its songs; with gradient caching of one more forward pass."""
    flops = {name: both + (forward if cached else 0) for name, (forward, both) in parts.items()}
    return workload.songs_per_process * (flops.pop("text") + segment_share * sum(flops.values()))


def activation_bytes(config: CoLLAPConfig, workload: Workload, parameters: dict[str, tuple[int, int]]) -> float:
    """Return the bytes of the activations of a micro-batch of the longest songs and their texts; `parameters` are
    those of [`count_parameters`]."""
    songs, longest = workload.songs_at_a_time, workload.segments(config.segment_seconds)[1]
    segments, tokens, is_half = songs * longest, config.tokens_per_segment, workload.mixed_precision != "no"
    text, music, speech = config.text_config, config.music_config, config.speech_config
    structure = PreTrainedConfig(hidden_size=config.projection_dim, num_hidden_layers=config.structure_layers)
    structure.num_attention_heads, encoded = config.structure_heads, min(segments, workload.segment_batch_size)
    # Configuration, tokens of one text or segment or frames of a song, how many of them, and how many at a time.
    parts = {
        "text": (text, workload.text_tokens, songs, songs),
        "music": (music, tokens * music.frequency_patches, segments, encoded),
        "speech": (speech, speech.max_source_positions, segments, encoded),
        "structure": (structure, math.ceil(longest * tokens / config.alignment_frame_size), songs, songs),
    }
    held, moment = {}, {}
    for name, (part, length, count, at_a_time) in parts.items():
        if name in AUDIO_ENCODERS and (workload.precomputed_tokens or name not in config.built_encoders):
            continue
        kept = KEPT["gpt2" if part.model_type == "gpt2" else name][is_half]
        layer, entry = length * layer_bytes(kept, part, length), FLOAT32_BYTES * length * part.hidden_size
        total, trainable = parameters.get(name, (0, 1))
        checkpointed = bool({name, "all"} & set(workload.gradient_checkpointing))
        all_layers = part.num_hidden_layers * (entry if checkpointed else layer)
        copies = 2 * total if is_half and not checkpointed else 0  # of the weights, by autocast
        around = kept.around * length * part.hidden_size * (name not in workload.lora)  # which begins in the layers
        held[name] = (count * (all_layers + around) + copies) * (trainable > 0)
        moment[name] = at_a_time * kept.moment * layer * (part.num_hidden_layers > 0)
    held["adapter"] = FLOAT32_BYTES * segments * tokens * config.fused_width
    held["tokens"] = TOKENS_KEEP[is_half] * segments * tokens * config.projection_dim
    cells = songs * workload.batch_size * cells_of_pair(longest * tokens, config.kernel_size, config.stride)
    held["score"] = SCORE_KEEPS * cells * (cells <= CELLS_AT_A_TIME)  # of more nothing is kept
    moment["score"] = SCORE_PEAK * min(cells, CELLS_AT_A_TIME) - held["score"]
    text_bytes, text_moment = held.pop("text"), moment.pop("text")
    audio_bytes, audio_moment = sum(held.values()), max(moment.values())
    if workload.is_cached:  # songs and texts one after the other
        return max(text_bytes + text_moment, audio_bytes + audio_moment)
    return text_bytes + audio_bytes + max(text_moment, audio_moment)


def layer_bytes(kept: Kept, part: PreTrainedConfig, length: int) -> float:
    """Return what a layer keeps for each of the `length` tokens that attend to one another, in bytes."""
    names = ("intermediate_size", "encoder_ffn_dim", "n_inner")
    inner = next((size for name in names if (size := getattr(part, name, None))), 4 * part.hidden_size)
    bias = kept.position_bias * part.num_attention_heads * length
    return kept.width * part.hidden_size + kept.feed_forward * inner + bias


def memory_bytes(config: CoLLAPConfig, workload: Workload, parameters: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Return the bytes of a device by what they are for."""
    (total, trainable), batch = parameters["whole"], workload.batch_size
    segments = workload.songs_at_a_time * workload.segments(config.segment_seconds)[1]
    features = sum(tensor.nbytes for tensor in segment_inputs(config, workload.precomputed_tokens))
    embeds_and_scores = 2 * FLOAT32_BYTES * batch * (config.projection_dim + batch)  # and gradients
    return {
        "weights (float32)": FLOAT32_BYTES * total,
        "gradients": FLOAT32_BYTES * trainable,
        "AdamW states": 2 * FLOAT32_BYTES * trainable,
        "DDP buckets": FLOAT32_BYTES * trainable if workload.num_processes > 1 else 0,
        "features of a micro-batch": segments * features,
        "activations of a micro-batch": activation_bytes(config, workload, parameters),
        "text embeddings, scores of the batch": embeds_and_scores,
    }


@dataclass
class RunCost:
    """Numbers of a run; everything is per device unless it says otherwise."""

    workload: Workload
    parameters: dict[str, tuple[int, int]]  # of every part: all, and trainable
    segments_per_song: float  # expected at the mean length; a last, partly filled segment counts as one
    tokens_per_song: dict[str, float]  # of every grid, at the mean length
    flops_per_step: float  # of one optimizer step, with all that is computed twice
    model_flops_per_step: float  # without recomputation, and without the pass of gradient caching
    memory: dict[str, float]  # bytes, of songs of `max_seconds`
    peak_memory: float  # bytes at the worst moment, by torch's allocator
    tflops: float | None = None  # TFLOP/s that a device sustains, if it is known; the times at it
    step_seconds: float | None = field(init=False, default=None)
    epoch_hours: float | None = field(init=False, default=None)
    run_hours: float | None = field(init=False, default=None)

    def __post_init__(self):
        if self.tflops is not None:
            self.step_seconds, self.epoch_hours, self.run_hours = self.times(self.tflops)

    def times(self, tflops: float) -> tuple[float, float, float]:
        """Return the seconds of a step, and the hours of an epoch and of the run, at TFLOP/s of each device."""
        seconds = self.flops_per_step / (tflops * 1e12)
        epoch = seconds * self.workload.steps_per_epoch / 3600
        return seconds, epoch, epoch * self.workload.epochs

    def to_text(self) -> str:
        """Return one screen for the terminal."""
        lines = ["Parameters (millions)           all   trainable"]
        for name, (total, trainable) in self.parameters.items():
            lines.append(f"  {name:<24}{total / 1e6:>9.1f}{trainable / 1e6:>12.1f}")
        lines += self._step_lines()
        lines.append(f"Memory per device (GB), songs of {self.workload.max_seconds:.0f} s")
        lines += [f"  {name:<38}{size / 1e9:>9.2f}" for name, size in self.memory.items()]
        lines.append(f"  {'peak':<38}{self.peak_memory / 1e9:>9.2f}   (keep 10 % free for context and fragmentation)")
        head = "Time" if self.tflops is not None else "Time at a sustained throughput (assumed, not measured)"
        lines.append(f"{head}; the loader is taken to keep up")
        for tflops, name in (TYPICAL_TFLOPS if self.tflops is None else {self.tflops: "given"}).items():
            times = "{:8.2f} s a step, {:7.2f} h an epoch, {:8.1f} h the run".format(*self.times(tflops))
            lines.append(f"  {tflops:>4g} TFLOP/s per device: {times}   {name}")
        return "\n".join(lines)

    def _step_lines(self) -> list[str]:
        work, twice = self.workload, self.flops_per_step - self.model_flops_per_step
        precision = "float32" if work.mixed_precision == "no" else work.mixed_precision
        part = f"{work.songs_at_a_time} at a time" + (", gradient caching" if work.is_cached else "")
        names = {"frozen": work.frozen, "LoRA": work.lora, "checkpointing": work.gradient_checkpointing}
        settings = {name: ", ".join(value) or "nothing" for name, value in names.items()}
        tokens = ", ".join(f"{name} {count:,.0f}" for name, count in self.tokens_per_song.items())
        return [
            f"Run: {work.songs:,} songs, {work.songs * work.mean_seconds / 3600:,.0f} hours, {work.epochs} epochs of "
            f"{work.steps_per_epoch:,} steps",
            f"  step: {work.batch_size} songs, {work.num_processes} process(es) of {work.songs_per_process}, {part}",
            "; ".join([f"  precision: {precision}", *(f"{name}: {value}" for name, value in settings.items())]),
            f"  tokens per song of {work.mean_seconds:.0f} s ({self.segments_per_song:.1f} segments): {tokens}",
            f"  FLOP per step and device: {self.flops_per_step / 1e12:,.1f} T, of which the model "
            f"{self.model_flops_per_step / 1e12:,.1f} T, computed twice {twice / 1e12:,.1f} T",
        ]


def count_parameters(model: CoLLAPModel) -> dict[str, tuple[int, int]]:
    """Count the (all, trainable) parameters of every tower, of the rest, and of the whole."""

    def count(module) -> tuple[int, int]:
        return module.num_parameters(), module.num_parameters(only_trainable=True)

    counts, whole = {name: count(encoder) for name, encoder in model.encoders.items()}, count(model)
    rest = tuple(total - sum(each) for total, *each in zip(whole, *counts.values(), strict=True))
    return counts | {"adapter and score": rest, "whole": whole}


def run_cost(config: CoLLAPConfig, workload: Workload = PAPER, tflops: float | None = None) -> RunCost:
    """Work out what a run of a model costs, in seconds and with next to no memory; `tflops` are TFLOP/s that a device
    sustains, if that is known. A ValueError if they are not positive, or for towers as in [`build_meta_model`]."""
    if tflops is not None and not tflops > 0:
        raise ValueError(f"tflops must be positive, found {tflops}")
    model = build_meta_model(config, workload)
    once = part_flops(model, workload)
    enable_gradient_checkpointing(model, list(workload.gradient_checkpointing))
    parts = part_flops(model, workload) if workload.gradient_checkpointing else once
    segments, longest = workload.segments(config.segment_seconds)
    parameters, fused = count_parameters(model), segments * config.tokens_per_segment
    memory = memory_bytes(config, workload, parameters)
    resident = sum(size for name, size in memory.items() if "micro-batch" not in name)
    music, speech = fused * config.music_config.frequency_patches, segments * config.speech_config.max_source_positions
    encoded = {name: {"music": music, "speech": speech}[name] for name in config.built_encoders}
    return RunCost(
        workload=workload,
        parameters=parameters,
        segments_per_song=segments,
        tokens_per_song={**encoded, "fused": fused, "text": workload.text_tokens},
        flops_per_step=step_flops(parts, workload, segments / longest, cached=workload.is_cached),
        model_flops_per_step=step_flops(once, workload, segments / longest, cached=False),
        memory=memory,
        # The optimizer of torch keeps one more copy of the parameters while it takes a step.
        peak_memory=max(sum(memory.values()), resident + FLOAT32_BYTES * parameters["whole"][1]),
        tflops=tflops,
    )


def read_part(name: str, kind: str | None, assumed: list[str]) -> PreTrainedConfig:
    """Read the configuration of an encoder by its folder or Hub id; of the paper's, what cannot be read is known, and
    named in `assumed`. A ValueError for any other that cannot be read, or is of another kind."""
    try:
        found = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=name in PAPER_PARTS)
        if kind not in (None, found.model_type):
            raise ValueError(f"it is of a {found.model_type!r} model; expected {kind!r}")
        return found
    except (OSError, ValueError, KeyError) as error:
        if name not in PAPER_PARTS:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{name}: its cost is that of its configuration, which cannot be read ({reason})"
            ) from error
    assumed.append(name or "BEATs-base")
    return PAPER_PARTS[name]


def planned_model(settings: TrainSettings) -> tuple[CoLLAPConfig, list[str]]:
    """Return the configuration of the model that would be trained, and the parts of it that were not read."""
    chosen, assumed = settings.model, []
    if chosen.model is not None:
        return load_config(chosen.model), assumed
    parts = ((chosen.text, None), (chosen.music, "beats"), (chosen.speech, "whisper"))
    text, *audio = (None if name is None else read_part(name, kind, assumed) for name, kind in parts)
    return CoLLAPConfig(text_config=text, **{**audio_settings(*audio), **chosen.model_config}), assumed


def planned_workload(settings: TrainSettings, config: CoLLAPConfig) -> Workload:
    """Return the run that the settings describe; without a data set, over the paper's songs."""
    data, model, optimisation = settings.data, settings.model, settings.optimisation
    processes, precision = PartialState().num_processes, optimisation.mixed_precision
    names = ("batch_size", "micro_batch_size", "segment_batch_size", "epochs")
    chosen = {name: getattr(optimisation, name) for name in names} | {"precomputed_tokens": bool(data.precomputed)}
    chosen |= {"frozen": tuple(model.freeze), "lora": tuple(model.lora), "lora_rank": model.lora_rank}
    chosen["gradient_checkpointing"] = tuple(model.gradient_checkpointing)
    if not data.dataset:
        processes = processes if processes > 1 else PAPER.num_processes
        precision = precision or PAPER.mixed_precision
        return dataclasses.replace(PAPER, **chosen, num_processes=processes, mixed_precision=precision)
    if data.streaming:
        raise ValueError("a stream does not tell how many songs it has: plan without --streaming, or without --dataset")
    place = (data.audio_column, data.text_column, data.dataset_config, data.revision)
    rows = open_dataset(data.dataset, data.train_split, *place)
    seconds = song_seconds(rows, data.audio_column, data.duration_column, data.num_workers)
    seconds = [min(one, data.crop_seconds or math.inf) for one in seconds if one > 0]
    if not seconds:
        raise ValueError(f"{data.dataset}: none of the {len(rows)} files of {data.train_split} can be read")
    tokenizer = AutoTokenizer.from_pretrained(model.model or model.text, trust_remote_code=False)
    check_vocabulary(tokenizer, config.text_config, model.model or model.text)
    sample = rows.select(range(min(PLANNED_TEXTS, len(rows))))[data.text_column]
    texts = [text for row, entry in enumerate(sample) for text in row_texts(entry, row)]
    longest = max(len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"])
    limit = config.text_positions if config.alignment == "paper" else None  # longer texts are cut
    chosen |= {"text_tokens": min(limit or math.inf, longest), "mixed_precision": precision or "no"}
    return Workload(len(rows), sum(seconds) / len(seconds), max(seconds), num_processes=processes, **chosen)


def plan_run(settings: TrainSettings) -> str:
    """Return what `--plan` prints; kept in `output_dir` too, where a run's summary compares itself with it."""
    config, assumed = planned_model(settings)
    cost = run_cost(config, planned_workload(settings, config), settings.output.plan_tflops)
    if PartialState().is_main_process:
        Path(settings.output.output_dir).mkdir(parents=True, exist_ok=True)
        write_json(Path(settings.output.output_dir) / PLAN_FILE, dataclasses.asdict(cost))
    note = [f"Assumed to be the paper's, and not read: {', '.join(assumed)}"] if assumed else []
    return "\n".join([*note, cost.to_text()])
