"""Write a CoLLAP model as three graphs that run without this package: ONNX, or archives of `torch.export`.

    collap export you/collap-gpt2 exported                           # text, audio, score .onnx
    collap export runs/x/best exported --format torch_export         # text, audio, score .pt2

Numbers of texts, audios, segments and text tokens are free in each graph; the length of a segment is that of the model.
Every graph is run with less and with more of each than it was traced with, and compared to the model, before the
command says it is done.

Dimensions: those of `modeling_collap.py`.
"""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F
from transformers.utils import cached_file

from collap.models import load_model
from modeling_collap.configuration_collap import CoLLAPConfig
from modeling_collap.modeling_collap import CoLLAPModel, unit_tokens
from modeling_collap.towers_collap import token_spans
from modeling_collap.weighting_collap import score_embeddings
from processing import CoLLAPProcessor

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXPORT_FILE = "export.json"
TOLERANCE = 1e-4  # of float32 in another runtime, relative to 1 + the size of the number
# Texts, and lengths of noise in segments, on which a graph is compared to the model. Of every free dimension one case
# has less and the other has more than the graph was traced with; texts, sentences, audios, whole segments are padded.
COMPARED = (
    (["a", "piano", "a\ndrum\nsolo"], [3.4]),
    (["a slow song with piano and drums, then a choir over strings, and at the end a loud guitar"], [1.3, 0.4, 0.7]),
)


class JointTextGraph(nn.Module):
    """Compute `get_sentence_features` of a model that reads the sentences of a text in one pass: the same numbers, for
    texts whose sentences, as many as there may be and each as long as the longest, are within the tower's positions."""

    def __init__(self, model: CoLLAPModel):
        super().__init__()
        self.tower = model.text_tower

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Map (B, Q, L) and (B, Q, L) to (B, Q, D)."""
        encoded, _ = self.tower.encode(input_ids.flatten(1), attention_mask.flatten(1))
        lengths = attention_mask.sum(-1)  # (B, Q)
        starts = lengths.cumsum(1) - lengths  # (B, Q)
        texts = torch.arange(lengths.shape[0]).unsqueeze(1).expand_as(lengths)  # (B, Q)
        spans = token_spans(encoded.last_hidden_state, texts, starts, lengths, input_ids.shape[2])
        embeds = self.tower.pool(*(one.flatten(0, 1) for one in spans)).unflatten(0, lengths.shape)  # (B, Q, D)
        return embeds.masked_fill((lengths == 0).unsqueeze(-1), 0.0)


class AudioGraph(nn.Module):
    """Compute `get_audio_features` as a graph: the same numbers, but segments without audio are encoded, too, and then
    dropped, because the sizes in a graph cannot depend on a mask."""

    def __init__(self, model: CoLLAPModel):
        super().__init__()
        self.tower = model.audio_tower
        self.structure = model.structure

    def forward(
        self,
        music_features: torch.Tensor,
        speech_features: torch.Tensor,
        music_attention_mask: torch.Tensor,
        segment_mask: torch.Tensor,
        audio_token_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Map (A, S, F, mel bins), (A, S, mel bins, 100 per second), (A, S, F), (A, S) and (A, T) to (A, T, D)."""
        # A segment with every frame masked would be NaN.
        frame_mask = music_attention_mask | ~segment_mask.unsqueeze(-1)  # (A, S, F)
        features = (music_features, speech_features, frame_mask)
        fused = self.tower.fuse_at_once(*(feature.flatten(0, 1) for feature in features))  # (A S, K, M)
        tokens = self.tower.adapter(fused).unflatten(0, segment_mask.shape)  # (A, S, K, D)
        tokens = tokens.masked_fill(~segment_mask[..., None, None], 0.0).flatten(1, 2)  # (A, T, D)
        return unit_tokens(self.structure(tokens, audio_token_mask), audio_token_mask)


class ScoreGraph(nn.Module):
    """Compute `score` as a graph; gammas and temperature are constants."""

    def __init__(self, model: CoLLAPModel):
        super().__init__()
        self.score_parameters = model.score_parameters
        # So much padding, which changes no score, that there is more than one frame however short the audios are.
        self.padding = model.config.kernel_size + model.config.stride - 1

    def forward(
        self, text_embeds: torch.Tensor, audio_embeds: torch.Tensor, audio_token_mask: torch.Tensor
    ) -> torch.Tensor:
        """Map (B, D), (A, T, D) and (A, T) to (A, B)."""
        audio_embeds = F.pad(audio_embeds, (0, 0, 0, self.padding))  # (A, T + padding, D)
        mask = F.pad(audio_token_mask, (0, self.padding))  # (A, T + padding)
        return score_embeddings(self.score_parameters, text_embeds, audio_embeds, mask)


@dataclass
class Graph:
    """Hold what is traced, and what goes in and comes out.

    Attributes:
        module: what is traced.
        inputs: dtype and shape of each, free dimensions by name.
        output, output_shape: of the only output, which is float32.
    """

    module: nn.Module
    inputs: dict[str, tuple[str, list[str | int]]]
    output: str
    output_shape: list[str | int]

    def describe(self) -> dict:
        """Describe inputs and output as [`EXPORT_FILE`] holds them."""
        inputs = {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in self.inputs.items()}
        return {"inputs": inputs, "outputs": {self.output: {"dtype": "float32", "shape": self.output_shape}}}


def free_dimensions(config: CoLLAPConfig) -> dict[str, tuple[Dim, int]]:
    """Return the dimensions that a graph leaves free, by name, each with a size to trace with."""
    segments, per_segment = Dim("segments", min=1), config.tokens_per_segment
    return {
        "texts": (Dim("texts", min=1), 2),
        "sentences": (Dim("sentences", min=1), 2),
        "text_tokens": (Dim("text_tokens", min=1, max=config.text_positions), 16),
        "audios": (Dim("audios", min=1), 2),
        "segments": (segments, 3),
        f"{per_segment}*segments": (per_segment * segments, 3 * per_segment),
        "tokens": (Dim("tokens", min=1), 3 * per_segment),
    }


def build_graphs(model: CoLLAPModel) -> dict[str, Graph]:
    """Build the graphs `text`, `audio` and `score` of a model in evaluation mode.

    Of a model that aligns sentences `text` embeds one sentence in each row, or with `sentence_encoding` "joint" all
    those of each text, and there is no `score`: its paths are a loop over the frames of a song, which no graph holds.
    """
    config = model.config
    width, frames = config.projection_dim, 2 * config.speech_config.max_source_positions
    all_tokens = f"{config.tokens_per_segment}*segments"
    text = ("int64", ["texts", "text_tokens"])
    audio = {
        "music_features": ("float32", ["audios", "segments", frames - 2, config.music_config.num_mel_bins]),
        "speech_features": ("float32", ["audios", "segments", config.speech_config.num_mel_bins, frames]),
        "music_attention_mask": ("bool", ["audios", "segments", frames - 2]),
        "segment_mask": ("bool", ["audios", "segments"]),
        "audio_token_mask": ("bool", ["audios", all_tokens]),
    }
    score = {
        "text_embeds": ("float32", ["texts", width]),
        "audio_embeds": ("float32", ["audios", "tokens", width]),
        "audio_token_mask": ("bool", ["audios", "tokens"]),
    }
    text_inputs = {"input_ids": text, "attention_mask": text}
    graphs = {
        "text": Graph(model.text_tower.eval(), text_inputs, "text_embeds", ["texts", width]),
        "audio": Graph(AudioGraph(model).eval(), audio, "audio_embeds", ["audios", all_tokens, width]),
        "score": Graph(ScoreGraph(model).eval(), score, "logits_per_audio", ["audios", "texts"]),
    }
    if config.alignment != "paper":
        del graphs["score"]
    if config.sentence_encoding == "joint":
        by_sentences = dict.fromkeys(text_inputs, ("int64", ["texts", "sentences", "text_tokens"]))
        output = "sentence_embeds", ["texts", "sentences", width]
        graphs["text"] = Graph(JointTextGraph(model).eval(), by_sentences, *output)
    return graphs


def write_graph(graph: Graph, config: CoLLAPConfig, path: Path) -> None:
    """Trace a graph and write it: `.pt2`, or `.onnx` with its weights in `NAME.onnx.data` beside it, because an ONNX
    file holds 2 GB at most.

    Raises:
        ValueError: torch cannot trace the model.
        OSError: the file cannot be written.
    """
    free = free_dimensions(config)
    inputs, dynamic_shapes = {}, {}
    for name, (dtype, shape) in graph.inputs.items():
        sizes = [free[size][1] if size in free else size for size in shape]
        inputs[name] = torch.zeros(sizes, dtype=getattr(torch, dtype))
        dynamic_shapes[name] = {i: free[size][0] for i, size in enumerate(shape) if size in free}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself; what is written is checked
            if path.suffix == SUFFIXES["torch_export"]:
                program = torch.export.export(graph.module, (), kwargs=inputs, dynamic_shapes=dynamic_shapes)
                torch.export.save(program, path)
            else:
                names = {"input_names": list(inputs), "output_names": [graph.output]}
                torch.onnx.export(
                    graph.module, (), path, kwargs=inputs, dynamic_shapes=dynamic_shapes, verbose=False, **names
                )
    except RuntimeError as error:  # of torch.export and torch.onnx, both
        raise ValueError(f"{path.name}: torch cannot trace this model: {error}") from error


def load_graph(path: str | Path, threads: int = 0) -> Callable[..., torch.Tensor]:
    """Load a written graph as a function of its inputs by name, on the CPU: by onnxruntime `.onnx`, by torch `.pt2`.

    Args:
        threads: of onnxruntime, 0 for its own choice; those of torch are set by `torch.set_num_threads`.
    """
    path = Path(path)
    if path.suffix == SUFFIXES["torch_export"]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nothing writes to weights
            return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(**inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])

    return run


@torch.no_grad()
def inputs_and_outputs(
    model: CoLLAPModel, processor: CoLLAPProcessor, texts: list[str], segments: list[float]
) -> dict[str, torch.Tensor]:
    """Make inputs of the graphs by name, texts and noise of so many segments, with what the model makes of them."""
    rate = processor.feature_extractor.sampling_rate
    generator = torch.Generator().manual_seed(0)
    lengths = [round(number * model.config.segment_seconds * rate) for number in segments]
    audio = [0.1 * torch.randn(length, generator=generator) for length in lengths]
    inputs = processor(text=texts, audio=audio, sampling_rate=rate)
    values = {**inputs, **model(**inputs)}
    config = model.config
    if (
        config.alignment != "paper" and config.sentence_encoding == "separate"
    ):  # the graph of a text embeds one sentence
        real = inputs["attention_mask"].any(-1)  # (B, Q)
        sentences = {name: inputs[name][real] for name in ("input_ids", "attention_mask")}  # (sentences, L)
        values |= {**sentences, "text_embeds": model.get_text_features(**sentences)}
    return values


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest `|found - expected| / (1 + |expected|)`; infinite for other shapes, NaN or infinity."""
    if found.shape != expected.shape or not (found - expected).isfinite().all():
        return float("inf")
    return float(((found - expected).abs() / (1 + expected.abs())).max())


def export_model(
    model: CoLLAPModel,
    processor: CoLLAPProcessor,
    folder: str | Path,
    format: str = "onnx",
    source: str | None = None,
    revision: str | None = None,
) -> dict[str, float]:
    """Write the three graphs, the processor and [`EXPORT_FILE`] to a folder, and check every graph.

    Args:
        model: float32, in evaluation mode, on the CPU.
        folder: new or empty.
        format: `"onnx"` or `"torch_export"`.
        source, revision: the Hub id (or a name) and the commit that the model comes from, to be noted.

    Returns:
        By graph, the [`largest_difference`] from the model.

    Raises:
        ImportError: packages that ONNX needs are missing.
        ValueError: torch cannot trace the model, or a graph differs from it by more than `TOLERANCE`.
        OSError: the folder is not empty or cannot be written.
    """
    check_packages(format)
    folder = Path(folder)
    check_empty(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Nobody shall run half of it; within the folder, which may be a link, or all that is writable.
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder) as staging:
            differences = _write_graphs(model, processor, Path(staging), format)
            processor.save_pretrained(staging)
            content = describe(model, processor, format, source, revision) | {"largest_difference": differences}
            (Path(staging) / EXPORT_FILE).write_text(json.dumps(content, indent=2) + "\n")
            for path in Path(staging).iterdir():
                path.rename(folder / path.name)
    except BaseException:
        if is_new:
            with suppress(OSError):  # it would hide the reason
                folder.rmdir()
        raise
    return differences


def _write_graphs(model: CoLLAPModel, processor: CoLLAPProcessor, folder: Path, format: str) -> dict[str, float]:
    cases, differences = [inputs_and_outputs(model, processor, *case) for case in COMPARED], {}
    for name, graph in build_graphs(model).items():
        path = folder / f"{name}{SUFFIXES[format]}"
        write_graph(graph, model.config, path)
        run = load_graph(path)
        with torch.no_grad():
            found = [run(**{key: values[key] for key in graph.inputs}) for values in cases]
        expected = [values[graph.output] for values in cases]
        differences[name] = max(map(largest_difference, found, expected))
        if not differences[name] <= TOLERANCE:
            raise ValueError(
                f"{path.name} differs from the model by {differences[name]:.1e}, expected at most {TOLERANCE:.0e}; "
                "nothing is exported"
            )
    return differences


def describe(
    model: CoLLAPModel, processor: CoLLAPProcessor, format: str, source: str | None, revision: str | None
) -> dict:
    """Return the content of [`EXPORT_FILE`], for those who run the graphs without the processor, too."""
    config = model.config
    files = {name: f"{name}{SUFFIXES[format]}" for name in build_graphs(model)}
    return {
        "source": source,
        "revision": revision,
        "format": format,
        "torch_version": torch.__version__,
        "sampling_rate": processor.feature_extractor.sampling_rate,
        "segment_seconds": config.segment_seconds,
        "token_seconds": config.token_seconds,
        "tokens_per_segment": config.tokens_per_segment,
        "max_text_tokens": processor.max_text_tokens,
        "graphs": {name: {"file": files[name], **graph.describe()} for name, graph in build_graphs(model).items()},
    }


def check_packages(format: str) -> None:
    """Raise an ImportError if ONNX is asked for and packages that it needs are missing."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if format == "onnx" and missing:
        raise ImportError(f"exporting to ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}")


def check_empty(folder: Path) -> None:
    """Raise an OSError unless the folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; expected a new one for the graphs")


def resolve_source(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return the Hub id and the commit that `revision` stands for; of a folder, its name and None.

    Raises:
        ValueError: a folder with a revision.
        OSError: there is no such repository, revision or connection.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"--revision {revision}: {name} is a folder, and has no revisions; leave it out")
        return Path(name).resolve().name, None
    try:
        config = cached_file(name, "config.json", revision=revision)
    except OSError as error:
        raise OSError(f"{name}: {error}") from error  # not all of them name it
    return name, Path(config).parent.name  # .../snapshots/COMMIT/config.json


def run(options) -> int:
    """Do `collap export`; return its exit code."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nothing here needs
    check_packages(options.format)
    check_empty(options.folder)
    source, revision = resolve_source(options.model, options.revision)
    model, processor = load_model(options.model, **({} if revision is None else {"revision": revision}))
    differences = export_model(model, processor, options.folder, options.format, source, revision)
    for name, difference in differences.items():
        files = options.folder.glob(f"{name}.*")
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        path = options.folder / f"{name}{SUFFIXES[options.format]}"
        print(f"{path}: {megabytes:.1f} MB, within {difference:.1e} of the model")
    return 0
