"""What a training run costs, before it runs: parameters, tokens, FLOP, memory per device and time.

Nothing is guessed that can be measured. The model is built on torch's meta device, which knows shapes and no numbers,
and its real forward and backward passes run there, with checkpointing, frozen towers and adapters as they will be.
FLOP are those of torch's counter, memory is the sum of the tensors alive at the worst moment. Two laws extrapolate:
the encoders are linear in the number of segments, the score is linear in songs, texts and tokens.

The meta device has no autocast and no fused kernels of its own; [`AcceleratorKernels`] puts those of CUDA in place.
A process that trains on a CPU needs more for BEATs: its attention there keeps all attention weights.

Dimensions: `A = B` songs and texts of a batch over all processes, `a` songs of a micro-batch, `S` segments of a song,
`K` tokens of a segment, `T = S K` tokens of a song, `D` shared width.
"""

import math
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from transformers import GPT2Config, RobertaConfig, WhisperConfig

from collap.training.step import TEXTS_AT_A_TIME
from collap.training.trainable import TOWERS, add_lora, enable_gradient_checkpointing, freeze
from modeling_collap import BeatsConfig, CoLLAPConfig, CoLLAPModel
from modeling_collap.configuration_collap import MUSIC_FRAMES_PER_SECOND
from modeling_collap.scoring_collap import attention_pooled_scores
from modeling_collap.towers_collap import SEGMENT_BATCH_SIZE

FLOAT32_BYTES = 4
AUTOCAST_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# Sustained, not peak. An assumption to place a run by, not a measurement: the first logged steps tell the truth.
TYPICAL_TFLOPS = {
    20: "a small or older GPU",
    50: "one 24 GB consumer GPU of 2022",
    100: "one A100-class GPU",
    200: "one H100-class GPU, well tuned",
}


@dataclass(frozen=True)
class Workload:
    """A training run, as far as it decides the cost.

    Attributes:
        songs: rows of the training split.
        mean_seconds, max_seconds: length of the songs (or of the crops).
        batch_size: songs contrasted with one another, over all processes.
        micro_batch_size: songs encoded at a time on a process; None for all of them. Fewer than the process holds
            means gradient caching: one more forward pass, and the activations of a micro-batch only.
        text_tokens: length that the texts of a batch are padded to.
        mixed_precision: "no", "bf16" or "fp16", by autocast; the weights stay float32.
        frozen, lora, gradient_checkpointing: names as in `collap/training/trainable.py`.
        precomputed_tokens: train from stored encoder outputs; neither audio encoder runs.
        segment_batch_size: segments that pass the audio encoders at a time.

    Raises:
        ValueError: for sizes that are not positive or do not divide, and for an unknown precision.
    """

    songs: int
    mean_seconds: float
    max_seconds: float
    batch_size: int = 50
    num_processes: int = 1
    micro_batch_size: int | None = None
    text_tokens: int = 512
    epochs: int = 20
    mixed_precision: str = "no"
    frozen: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    lora_rank: int = 8
    gradient_checkpointing: tuple[str, ...] = ()
    precomputed_tokens: bool = False
    segment_batch_size: int = SEGMENT_BATCH_SIZE

    def __post_init__(self):
        sizes = ("songs", "mean_seconds", "max_seconds", "batch_size", "num_processes", "text_tokens", "epochs")
        for name in (*sizes, "lora_rank", "micro_batch_size", "segment_batch_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, found {value}")
        if self.mean_seconds > self.max_seconds:
            raise ValueError(f"mean_seconds ({self.mean_seconds}) is above max_seconds ({self.max_seconds})")
        if self.batch_size % self.num_processes:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of num_processes ({self.num_processes}): "
                "every process holds as many songs"
            )
        if self.songs < self.batch_size:
            raise ValueError(f"songs ({self.songs}) are fewer than batch_size ({self.batch_size})")
        if self.mixed_precision not in AUTOCAST_DTYPES:
            raise ValueError(f"mixed_precision must be no, bf16 or fp16, found {self.mixed_precision!r}")

    @property
    def songs_per_process(self) -> int:
        return self.batch_size // self.num_processes

    @property
    def songs_at_a_time(self) -> int:
        """a: songs whose activations a process holds at once."""
        return min(self.micro_batch_size or self.songs_per_process, self.songs_per_process)

    @property
    def is_cached(self) -> bool:
        return self.songs_at_a_time < self.songs_per_process

    @property
    def steps_per_epoch(self) -> int:
        return self.songs // self.batch_size  # the last, incomplete batch is dropped


# arXiv 2410.02271: 51.3k songs, 4,109 hours, at most 5 minutes each, two GPUs. Its texts have 256.94 words on average,
# some 334 tokens at 1.3 tokens per word (an assumption: usual for English and byte-level BPE); a batch is padded to
# its longest text, so the limit of RoBERTa, 512, is planned for.
PAPER = Workload(
    songs=51_300,
    mean_seconds=4_109 * 3_600 / 51_300,
    max_seconds=300,
    batch_size=50,
    num_processes=2,
    text_tokens=512,
    epochs=20,
    mixed_precision="bf16",
)


def paper_config(text: str = "gpt2") -> CoLLAPConfig:
    """The paper's model: BEATs-base, Whisper-small and GPT-2 or RoBERTa-base, without reading any of them.

    Raises:
        ValueError: for another text tower.
    """
    texts = {
        "gpt2": GPT2Config(),
        "roberta": RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    }
    if text not in texts:
        raise ValueError(f"text must be gpt2 or roberta, found {text!r}")
    whisper = WhisperConfig(d_model=768, encoder_layers=12, encoder_attention_heads=12, encoder_ffn_dim=3072)
    return CoLLAPConfig(text_config=texts[text], music_config=BeatsConfig(), speech_config=whisper)


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class Meter(TorchDispatchMode):
    """FLOP of what runs within the block, and bytes of the tensors made there that are still alive.

    The formulas are those of torch's FlopCounterMode, which itself would keep what checkpointing recomputes alive.
    Storages are counted, so views are free, and what autograd keeps is seen. Buffers inside a kernel are not.

    Attributes:
        flops: so far, a multiplication and an addition being two.
        live_bytes, peak_bytes: now, and at the worst moment so far.
    """

    def __init__(self):
        super().__init__()
        self.flops = self.live_bytes = self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        self.flops += formula(*args, **kwargs, out_val=result) if formula else 0
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given:  # else a view, perhaps of a parameter
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage):
        key = storage._cdata
        self._sizes[key] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int):
        self.live_bytes -= self._sizes.pop(key)


class AcceleratorKernels(TorchFunctionMode):
    """On meta tensors: CUDA's autocast, fused attention and fused dropout, so sizes and dtypes are those of a GPU.

    A question about a value ("is nothing padded?") is answered with no, so that the general path is taken.

    Args:
        dtype: of autocast; None for none.
        keeps_casts: whether a weight is cast once and kept, as within one autocast block.
    """

    # torch's lists for CUDA, as far as the towers use them (torch docs, "Automatic Mixed Precision: op reference").
    LOWER_PRECISION = {
        *(F.linear, F.conv1d, F.conv2d, F.scaled_dot_product_attention, torch.conv1d, torch.conv2d, torch.addmm),
        *(torch.matmul, torch.bmm, torch.baddbmm, torch.einsum, torch.Tensor.matmul, torch.Tensor.__matmul__),
    }
    FLOAT32 = {
        *(F.layer_norm, F.softmax, torch.softmax, torch.pow, torch.sum),
        *(torch.Tensor.softmax, torch.Tensor.pow, torch.Tensor.__pow__, torch.Tensor.sum),
    }

    def __init__(self, dtype: torch.dtype | None, keeps_casts: bool = True):
        super().__init__()
        self.dtype = dtype
        self.casts: dict[int, torch.Tensor] | None = {} if keeps_casts else None

    def end_forward(self):
        """What autocast does when it is left: its copies of the weights live on only where autograd keeps them."""
        self.casts = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            return False
        if func in self.LOWER_PRECISION and self.dtype is not None:
            args, kwargs = tree_map_only(torch.Tensor, self._lower, (args, kwargs))
        elif func in self.FLOAT32 and self.dtype is not None:
            args, kwargs = tree_map_only(torch.Tensor, self._float, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        if func is F.dropout:
            return _fused_dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _float(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype == self.dtype else tensor

    def _lower(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        if self.casts is None or not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self.dtype)
        if id(tensor) not in self.casts:
            self.casts[id(tensor)] = tensor.to(self.dtype)
        return self.casts[id(tensor)]


def _fused_dropout(input, p=0.5, training=True, inplace=False):
    return torch.native_dropout(input, p, training)[0] if training and p > 0 else input


def _fused_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
) -> torch.Tensor:
    """Keeps query, key, value, mask, output and one number per query; never the attention weights."""
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])  # (N, heads, queries, keys)
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    return fused(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


@dataclass(frozen=True)
class Cost:
    """Of one part of the model, for a number of segments, texts or songs.

    Attributes:
        forward_flops, train_flops: of the forward pass, and of forward and backward pass (with recomputation).
        held: bytes that are kept from the forward to the backward pass.
        transient: bytes that the worst moment of either pass needs on top of `held`.
    """

    forward_flops: float
    train_flops: float
    held: float
    transient: float


def measure(forward: Callable[[], torch.Tensor], mixed_precision: str = "no", backward: bool = True) -> Cost:
    """Runs `forward`, and its backward pass, on meta tensors. Gradients of parameters are not part of the bytes."""
    with Meter() as meter, AcceleratorKernels(AUTOCAST_DTYPES[mixed_precision]) as kernels:
        output = forward()
        kernels.end_forward()
        forward_flops, held = meter.flops, meter.live_bytes
        if backward and output.requires_grad:
            output.backward(torch.empty_like(output))
    return Cost(forward_flops, meter.flops, held, meter.peak_bytes - held)


def build_meta_model(config: CoLLAPConfig, workload: Workload) -> CoLLAPModel:
    """The model of a run without its weights: frozen, adapted and checkpointed as the workload says, in training mode.
    The gradient of a parameter is dropped as soon as it is complete.

    Raises:
        ValueError: for towers that are unknown, or both frozen and adapted.
    """
    stored = {"music", "speech"} if workload.precomputed_tokens else set()
    with torch.device("meta"):
        model = CoLLAPModel(config)
        model.audio_tower.segment_batch_size = workload.segment_batch_size
        freeze(model, sorted(stored.union(workload.frozen)))
        if workload.lora:
            add_lora(model, list(workload.lora), workload.lora_rank, base_model="")
    enable_gradient_checkpointing(model, list(workload.gradient_checkpointing))
    dtype = AUTOCAST_DTYPES[workload.mixed_precision]
    for layer in model.modules():
        if getattr(layer, "gradient_checkpointing", False):
            # torch takes a mode away during a backward pass; what is recomputed there gets one of its own.
            contexts = partial(_recomputation_contexts, dtype)
            layer._gradient_checkpointing_func = partial(layer._gradient_checkpointing_func, context_fn=contexts)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    return model.train()


def _recomputation_contexts(dtype: torch.dtype | None):
    """Of the forward pass, and of its repetition."""
    return nullcontext(), AcceleratorKernels(dtype, keeps_casts=False)


def _drop_gradient(parameter: torch.Tensor):
    parameter.grad = None


def count_parameters(model: CoLLAPModel) -> dict[str, tuple[int, int]]:
    """(all, trainable) of every part, and of the `"whole"`."""
    counts = {name: [0, 0] for name in (*TOWERS, "adapter and score", "whole")}
    tower_of = {id(p): name for name, encoder in model.encoders.items() for p in encoder.parameters()}
    for parameter in model.parameters():
        for part in (tower_of.get(id(parameter), "adapter and score"), "whole"):
            counts[part][0] += parameter.numel()
            counts[part][1] += parameter.numel() if parameter.requires_grad else 0
    return {name: (total, trainable) for name, (total, trainable) in counts.items()}


def feature_bytes(config: CoLLAPConfig, precomputed_tokens: bool) -> int:
    """What one segment brings to the device: both spectrograms and a mask, or the stored tokens."""
    inputs = _segment_inputs(config, 1, precomputed_tokens)
    return sum(tensor.numel() * tensor.element_size() for tensor in inputs)


def _segment_inputs(config: CoLLAPConfig, segments: int, precomputed_tokens: bool) -> tuple[torch.Tensor, ...]:
    """Meta tensors as `AudioTower` takes them, or the stored tokens (N, K, music + speech width)."""
    if precomputed_tokens:
        width = config.music_config.hidden_size + config.speech_config.d_model
        return (torch.empty(segments, config.tokens_per_segment, width, device="meta"),)  # (N, K, width)
    frames = round(MUSIC_FRAMES_PER_SECOND * config.segment_seconds)
    music = torch.empty(segments, frames - 2, config.music_config.num_mel_bins, device="meta")  # (N, F, mel bins)
    speech = torch.empty(segments, config.speech_config.num_mel_bins, frames, device="meta")  # (N, mel bins, 100 L)
    return music, speech, torch.ones(segments, frames - 2, dtype=torch.bool, device="meta")


def encoder_cost(model: CoLLAPModel, segments: int, workload: Workload) -> Cost:
    """Both encoders and the adapter on `segments` segments: one call's worth is measured, the rest is linear."""
    encode = model.audio_tower.adapter if workload.precomputed_tokens else model.audio_tower

    def run(count: int, backward: bool) -> Cost:
        inputs = _segment_inputs(model.config, count, workload.precomputed_tokens)
        return measure(lambda: encode(*inputs), workload.mixed_precision, backward)

    at_a_time = min(segments, model.audio_tower.segment_batch_size)
    one = run(at_a_time, backward=True)
    if segments == at_a_time:
        return one
    factor = segments / at_a_time
    growth = run(2 * at_a_time, backward=False).held - one.held  # without the weights that autocast keeps
    held = one.held + (factor - 1) * growth
    return Cost(one.forward_flops * factor, one.train_flops * factor, held, one.transient)


def text_cost(model: CoLLAPModel, texts: int, workload: Workload) -> Cost:
    """The text tower on padded texts."""
    input_ids = torch.zeros(texts, workload.text_tokens, dtype=torch.long, device="meta")  # (b, L)
    mask = torch.ones_like(input_ids)
    return measure(lambda: model.get_text_features(input_ids, mask), workload.mixed_precision)


def structure_cost(model: CoLLAPModel, songs: int, tokens: int, workload: Workload) -> Cost:
    """Structure layers, if any, and the unit norm of every token."""
    dtype = AUTOCAST_DTYPES[workload.mixed_precision] or torch.float32
    hidden = torch.empty(songs, tokens, model.config.projection_dim, dtype=dtype, device="meta", requires_grad=True)
    mask = torch.ones(songs, tokens, dtype=torch.bool, device="meta")
    return measure(lambda: model.normalize_tokens(hidden, mask), workload.mixed_precision)


def score_cost(config: CoLLAPConfig, songs: int, texts: int, tokens: int) -> Cost:
    """Score of `songs` of a process with all texts of the batch, in float32 as the model computes it."""
    audio_embeds = torch.empty(songs, tokens, config.projection_dim, device="meta", requires_grad=True)  # (a, T, D)
    text_embeds = torch.empty(texts, config.projection_dim, device="meta", requires_grad=True)  # (B, D)
    mask = torch.ones(songs, tokens, dtype=torch.bool, device="meta")
    chunk = TEXTS_AT_A_TIME if texts > TEXTS_AT_A_TIME else None
    sizes = (config.kernel_size, config.stride)
    return measure(lambda: attention_pooled_scores(text_embeds, audio_embeds, mask, *sizes, 1.0, 1.0, chunk_size=chunk))


@dataclass
class Plan:
    """Numbers of a run; everything is per device unless it says otherwise.

    Attributes:
        parameters: name of the part -> (all, trainable).
        segments_per_song: expected at the mean length; a last, partly filled segment counts as one.
        tokens_per_song: name of the grid -> tokens at the mean length.
        flops_per_step: of one optimizer step, with all that is computed twice.
        model_flops_per_step: without it: no recomputation, no pass of gradient caching. For the utilisation.
        memory: name -> bytes, of songs of `max_seconds`.
        peak_memory: bytes at the worst moment, by torch's allocator; context and fragmentation come on top.
        tflops: sustained throughput of a device in TFLOP/s, or None.
        step_seconds, epoch_hours, run_hours: at that throughput, or None.
    """

    workload: Workload
    parameters: dict[str, tuple[int, int]]
    segments_per_song: float
    tokens_per_song: dict[str, float]
    flops_per_step: float
    model_flops_per_step: float
    memory: dict[str, float]
    peak_memory: float
    tflops: float | None = None
    step_seconds: float | None = field(init=False, default=None)
    epoch_hours: float | None = field(init=False, default=None)
    run_hours: float | None = field(init=False, default=None)

    def __post_init__(self):
        if self.tflops is not None:
            self.step_seconds, self.epoch_hours, self.run_hours = self.times(self.tflops)

    def times(self, tflops: float) -> tuple[float, float, float]:
        """Seconds of a step, hours of an epoch and of the run at `tflops` TFLOP/s of each device."""
        seconds = self.flops_per_step / (tflops * 1e12)
        epoch = seconds * self.workload.steps_per_epoch / 3600
        return seconds, epoch, epoch * self.workload.epochs

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """One screen for the terminal."""
        return "\n".join([*self._model_lines(), *self._step_lines(), *self._memory_lines(), *self._time_lines()])

    def _model_lines(self) -> list[str]:
        lines = ["Parameters (millions)           all   trainable"]
        for name, (total, trainable) in self.parameters.items():
            lines.append(f"  {name:<24}{total / 1e6:>9.1f}{trainable / 1e6:>12.1f}")
        return lines

    def _step_lines(self) -> list[str]:
        work = self.workload
        part = f"{work.songs_at_a_time} at a time" + (", gradient caching" if work.is_cached else "")
        settings = {
            "precision": work.mixed_precision if work.mixed_precision != "no" else "float32",
            "frozen": ", ".join(work.frozen) or "nothing",
            "LoRA": ", ".join(work.lora) or "nothing",
            "checkpointing": ", ".join(work.gradient_checkpointing) or "nothing",
        }
        tokens = ", ".join(f"{name} {count:,.0f}" for name, count in self.tokens_per_song.items())
        return [
            f"Run: {work.songs:,} songs, {work.songs * work.mean_seconds / 3600:,.0f} hours, {work.epochs} epochs of "
            f"{work.steps_per_epoch:,} steps",
            f"  step: {work.batch_size} songs, {work.num_processes} process(es) of {work.songs_per_process}, {part}",
            "  " + "; ".join(f"{name}: {value}" for name, value in settings.items()),
            f"  tokens per song of {work.mean_seconds:.0f} s ({self.segments_per_song:.1f} segments): {tokens}",
            f"  FLOP per step and device: {self.flops_per_step / 1e12:,.1f} T, of which the model "
            f"{self.model_flops_per_step / 1e12:,.1f} T, computed twice "
            f"{(self.flops_per_step - self.model_flops_per_step) / 1e12:,.1f} T",
        ]

    def _memory_lines(self) -> list[str]:
        lines = [f"Memory per device (GB), songs of {self.workload.max_seconds:.0f} s"]
        lines += [f"  {name:<38}{size / 1e9:>9.2f}" for name, size in self.memory.items()]
        lines.append(f"  {'peak':<38}{self.peak_memory / 1e9:>9.2f}   (keep 10 % free for context and fragmentation)")
        return lines

    def _time_lines(self) -> list[str]:
        if self.tflops is not None:
            head, rows = "Time", {self.tflops: "given"}
        else:
            head, rows = "Time at a sustained throughput (assumed, not measured)", TYPICAL_TFLOPS
        lines = [f"{head + '; the loader is taken to keep up':<32}"]
        for tflops, name in rows.items():
            seconds, epoch, run = self.times(tflops)
            lines.append(
                f"  {tflops:>4g} TFLOP/s per device: {seconds:8.2f} s a step, {epoch:7.2f} h an epoch, "
                f"{run:8.1f} h the run   {name}"
            )
        return lines


def expected_segments(config: CoLLAPConfig, workload: Workload) -> tuple[float, int]:
    """Segments of a song: on average, and of the longest. Half of the last segment is empty on average."""
    longest = math.ceil(workload.max_seconds / config.segment_seconds)
    if workload.mean_seconds == workload.max_seconds:
        return longest, longest
    return min(workload.mean_seconds / config.segment_seconds + 0.5, longest), longest


def measure_parts(config: CoLLAPConfig, model: CoLLAPModel, workload: Workload) -> dict[str, Cost]:
    """Costs of a micro-batch of the longest songs and its texts."""
    songs, segments = workload.songs_at_a_time, expected_segments(config, workload)[1]
    tokens = segments * config.tokens_per_segment
    return {
        "text": text_cost(model, songs, workload),
        "encoders": encoder_cost(model, songs * segments, workload),
        "structure": structure_cost(model, songs, tokens, workload),
        "score": score_cost(config, songs, workload.batch_size, tokens),
    }


def step_flops(parts: dict[str, Cost], workload: Workload, segment_share: float, cached: bool) -> float:
    """Of one step of one process: all of its songs; with gradient caching one more forward pass."""
    total = 0.0
    for name, part in parts.items():
        flops = part.train_flops + (part.forward_flops if cached else 0)
        total += flops * (1.0 if name == "text" else segment_share)
    return total * workload.songs_per_process / workload.songs_at_a_time


def activation_bytes(parts: dict[str, Cost], cached: bool) -> float:
    """What a backward pass needs at its worst moment; gradient caching takes songs and texts one after the other."""

    def peak(*names: str) -> float:
        return sum(parts[name].held for name in names) + max(parts[name].transient for name in names)

    audio = ("encoders", "structure", "score")
    return max(peak(*audio), peak("text")) if cached else peak("text", *audio)


def memory_bytes(config: CoLLAPConfig, workload: Workload, counts: tuple[int, int], parts: dict[str, Cost]) -> dict:
    """Bytes of a device by what they are for; `counts` are all and trainable parameters."""
    total, trainable = counts
    segments = workload.songs_at_a_time * expected_segments(config, workload)[1]
    batch = workload.batch_size
    return {
        "weights (float32)": FLOAT32_BYTES * total,
        "gradients": FLOAT32_BYTES * trainable,
        "AdamW states": 2 * FLOAT32_BYTES * trainable,
        "DDP buckets": FLOAT32_BYTES * trainable if workload.num_processes > 1 else 0,
        "features of a micro-batch": segments * feature_bytes(config, workload.precomputed_tokens),
        "activations of a micro-batch": activation_bytes(parts, workload.is_cached),
        # Both with their gradients.
        "text embeddings, scores of the batch": 2 * FLOAT32_BYTES * batch * (config.projection_dim + batch),
    }


def plan(config: CoLLAPConfig, workload: Workload = PAPER, tflops: float | None = None) -> Plan:
    """Measures a run on the meta device; takes seconds and next to no memory.

    Args:
        config: of the model.
        workload: the run; by default the paper's.
        tflops: TFLOP/s that a device sustains; None for a table of typical ones.

    Raises:
        ValueError: if `tflops` is not positive.
    """
    if tflops is not None and not tflops > 0:
        raise ValueError(f"tflops must be positive, found {tflops}")
    model = build_meta_model(config, workload)
    parameters = count_parameters(model)
    parts = measure_parts(config, model, workload)
    once = parts
    if workload.gradient_checkpointing:
        kept = replace(workload, gradient_checkpointing=())
        once = measure_parts(config, build_meta_model(config, kept), kept)
    mean_segments, longest = expected_segments(config, workload)
    share = mean_segments / longest
    memory = memory_bytes(config, workload, parameters["whole"], parts)
    resident = sum(size for name, size in memory.items() if "micro-batch" not in name)
    # The optimizer of torch keeps one more copy of the parameters while it takes a step.
    peak = max(sum(memory.values()), resident + FLOAT32_BYTES * parameters["whole"][1])
    return Plan(
        workload=workload,
        parameters=parameters,
        segments_per_song=mean_segments,
        tokens_per_song=tokens_per_song(config, mean_segments, workload),
        flops_per_step=step_flops(parts, workload, share, cached=workload.is_cached),
        model_flops_per_step=step_flops(once, workload, share, cached=False),
        memory=memory,
        peak_memory=peak,
        tflops=tflops,
    )


def tokens_per_song(config: CoLLAPConfig, segments: float, workload: Workload) -> dict[str, float]:
    """Tokens of each tower at the mean length of a song."""
    fused = segments * config.tokens_per_segment
    return {
        "music": fused * config.music_config.frequency_patches,
        "speech": segments * config.speech_config.max_source_positions,
        "fused": fused,
        "text": workload.text_tokens,
    }


COMPARED = ("flops_per_step", "model_flops_per_step", "step_seconds", "peak_memory")


def compare(plan: dict, measured: dict[str, float]) -> dict[str, float]:
    """Measured steps next to their prediction, for the run summary.

    Args:
        plan: from `Plan.to_dict`, of which the entries `COMPARED` are read.
        measured: `"step_seconds"`, mean or median of the steps after the first ones, and `"peak_memory"`, bytes of the
            worst device (`torch.cuda.max_memory_allocated`), if known.

    Returns:
        `achieved_tflops` and `achieved_model_tflops` of a device in TFLOP/s (the second without what is computed twice:
        divided by the peak of the device it is the model FLOP utilisation), `seconds_over_plan` if the plan had a
        throughput, and `memory_over_plan`.

    Raises:
        ValueError: if `step_seconds` is missing or not positive.
    """
    seconds = measured.get("step_seconds")
    if seconds is None or not seconds > 0:
        raise ValueError(f"measured['step_seconds'] must be positive, found {seconds}")
    result = {
        "achieved_tflops": plan["flops_per_step"] / seconds / 1e12,
        "achieved_model_tflops": plan["model_flops_per_step"] / seconds / 1e12,
    }
    if plan["step_seconds"] is not None:
        result["seconds_over_plan"] = seconds / plan["step_seconds"]
    if measured.get("peak_memory"):
        result["memory_over_plan"] = measured["peak_memory"] / plan["peak_memory"]
    return result
