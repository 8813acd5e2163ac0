"""The checks of the doctor: of the files, of the weights and the processor, and of what the model makes of the
built-in set."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from collap.evaluation.probes import load_probes
from collap.evaluation.spread import spread_of
from collap.files import flat
from collap.hub.golden import GOLDEN_FILE, golden_drift, probe_vectors, read_golden
from collap.hub.merge_cards import parse_card
from collap.models import vocabulary_problem
from modeling_collap.configuration_collap import TEXT_POOLING
from modeling_collap.loading_collap import some_names
from modeling_collap.weighting_collap import MIN_TEMPERATURE

# Files of which one holds the vocabulary of a tokenizer.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FBANK = {"fbank_mean": 15.41663, "fbank_std": 6.55582}  # that BEATs was trained with
PROJECTIONS = ("text_tower.projection", "audio_tower.adapter")
# Of golden vectors computed again (`relative_drift`). At the size of GPT-2, BEATs and Whisper-small (12 layers of 768,
# random weights) another number of threads gave 0, eager attention 2e-6, and bfloat16 0.035. The float32 bound leaves
# room for a GPU, whose convolutions round to 11 bits (TF32) by default; a damaged part drifted by 0.4 to 2.
FLOAT32_DRIFT, LOW_PRECISION_DRIFT = 5e-3, 0.1
DEPENDS_ON = {
    "tokenizer": (),
    "text tower": ("tokenizer",),
    "audio front end": (),
    "audio tower": ("audio front end",),
    "score": ("tokenizer", "text tower", "audio front end", "audio tower"),
}
# Of the 40320 ways to give the clips the texts. The demo's models reach 0.0002; by chance 1 model in 100 is below.
MAX_P = 0.01


@dataclass(frozen=True)
class Check:
    """Hold one finding; `status` is "ok", "warning" or "failed", and `detail` says what was found and what it means."""

    name: str
    status: str
    detail: str


def attempted(name: str, check: Callable, *arguments) -> list[Check]:
    """Return what a check, or several, find; whatever a damaged folder makes them raise is a finding too."""
    try:
        found = check(*arguments)
    except Exception as error:
        return [Check(name, "failed", f"something in it is damaged: {error_line(error)}")]
    return [found] if isinstance(found, Check) else found


# --------------------------------------------------------------------------------------------------------------------
# Pure functions of what the built-in set gives


def matching_p_value(scores: np.ndarray) -> float:
    """Return the chance that random pairs of clips and texts fit as well as the right ones: a permutation test.

    A clip or a text that scores high with everything counts for nothing: it adds the same to every assignment.

    Args:
        scores: (A, B), the B / A texts of each clip in a row; every one of the A! assignments is tried.

    Returns:
        At least 1 / A!.
    """
    count = len(scores)
    by_clip = scores.astype(np.float64).reshape(count, count, -1).mean(-1)  # (A, A)
    assignments = np.array(list(itertools.permutations(range(count))))  # (A!, A), the right one first
    fits = by_clip[np.arange(count), assignments].sum(1)  # (A!,)
    rounding = 1e-5 * np.abs(by_clip).sum()  # what is equal but for float32 must not look better
    return float((fits >= fits[0] - rounding).mean())


# --------------------------------------------------------------------------------------------------------------------
# The folder


def _read_json(path: Path) -> dict:
    """Read a JSON object; empty if it cannot be read, because loading says why."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _needed_code(folder: Path) -> set[str]:
    """Return the Python files that the configuration and the processor name, with what these import."""
    entries = {}
    for settings in (_read_json(folder / "config.json"), _read_json(folder / "processor_config.json")):
        entries |= settings.get("auto_map", {}) | settings.get("feature_extractor", {}).get("auto_map", {})
    waiting, needed = [f"{entry.split('.')[0]}.py" for entry in entries.values()], set()
    while waiting:
        file = waiting.pop()
        if file not in needed:
            needed.add(file)
            waiting += (
                [f"{module}.py" for module in get_relative_imports(folder / file)] if _is_file(folder, file) else []
            )
    return needed


def _is_file(folder: Path, name: str) -> bool:
    return Path(name).name == name and (folder / name).is_file()


def check_files(folder: Path, files: list[str]) -> Check:
    """Tell whether everything is there that loads the model here and where CoLLAP is not installed."""
    weights = {SAFE_WEIGHTS_NAME}
    if SAFE_WEIGHTS_INDEX_NAME in files:
        weights = set(_read_json(folder / SAFE_WEIGHTS_INDEX_NAME).get("weight_map", {}).values()) or weights
    code = _needed_code(folder)
    needed = {"config.json", "processor_config.json", "tokenizer_config.json", *weights, *code}
    missing = sorted(name for name in needed if not _is_file(folder, name))
    if not any(_is_file(folder, name) for name in VOCABULARIES):
        missing.append("tokenizer.json (the vocabulary, without which all texts are alike)")
    pickles = [name for name in files if name.endswith(PICKLES)]
    problems = [f"lacks {', '.join(missing)}"] if missing else []
    problems += [f"holds pickles, which can run code when loaded: {', '.join(pickles)}"] if pickles else []
    if problems:
        return Check("files", "failed", "; ".join(problems) + "; save or publish the model again")
    if not code:
        return Check("files", "warning", "no code in it: it loads only where the CoLLAP package is installed")
    return Check("files", "ok", f"configuration, processor, {len(weights)} safetensors file(s) and code are there")


def check_copies(folder: Path) -> Check:
    """Tell whether the files of a snapshot are still what was published: the cache stores each under its hash, sha256
    for large files and git's for the others."""
    stored = {path: path.resolve() for path in sorted(folder.rglob("*")) if path.resolve().parent.name == "blobs"}
    damaged = [path.relative_to(folder).as_posix() for path, blob in stored.items() if _hash(blob) != blob.name]
    if damaged:
        advice = "delete the copy (`hf cache rm`), and fetch it again"
        return Check("copies", "failed", f"not what was published: {', '.join(damaged)}; {advice}")
    if not stored:
        return Check("copies", "warning", "the cache keeps no hashes here, so a damaged download is not noticed")
    return Check("copies", "ok", f"{len(stored)} files have the hash under which they were published")


def _hash(blob: Path) -> str:
    with blob.open("rb") as file:
        return sha_fileobj(file).hex() if len(blob.name) == 64 else git_hash(file.read())


def check_card(folder: Path, on_hub: bool) -> Check:
    """Tell whether the card has a licence, and says what the model was made from and how good it is.

    A folder may wait for its card, which publishing writes: that is a warning. A published model that says under which
    licence to nobody cannot be used: that is a failure.
    """
    unusable = "failed" if on_hub else "warning"
    path = folder / "README.md"
    if not path.is_file():
        return Check("card", unusable, "there is no README.md; `collap publish` writes one")
    try:
        data = parse_card(ModelCard, path.read_text(encoding="utf-8"), str(path)).data
    except ValueError as error:
        return Check("card", unusable, str(error))
    figures = data.eval_results or []
    bare = [r for r in figures if not {"pool_size", "interval"} <= set(r.metric_args or {})]
    missing = [
        text
        for text, found in {
            "license": data.license,
            "base_model": data.base_model,
            "datasets": data.datasets,
            "measured figures (model-index)": figures,
            f"pool size and interval of {len(bare)} figures": not bare,
        }.items()
        if not found
    ]
    if missing:
        return Check("card", "warning" if data.license else unusable, f"README.md does not state: {', '.join(missing)}")
    return Check("card", "ok", f"licence {data.license}, base models, data sets and {len(figures)} figures are stated")


# --------------------------------------------------------------------------------------------------------------------
# The weights and the processor


def check_weights(model, info: dict) -> Check:
    """Tell whether every weight was in the files, nothing else was, and all are numbers."""
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    problems = {
        "missing, drawn at random": info["missing_keys"],
        "of another shape, drawn at random": mismatched,
        "unknown to this configuration": info["unexpected_keys"],
        "not finite": [name for name, weight in model.named_parameters() if not _numbers(weight).isfinite().all()],
        "all zero": [f"{name}.weight" for name in PROJECTIONS if not _numbers(model.get_submodule(name).weight).any()],
    }
    found = [f"{len(names)} {what} ({some_names(sorted(names))})" for what, names in problems.items() if names]
    if not found:
        return Check("weights", "ok", f"all {sum(1 for _ in model.parameters())} are in the files, and finite")
    lost = any(problems[what] for what in list(problems)[:3])
    advice = "; config.json is not that of these weights, or they were saved by half" if lost else ""
    return Check("weights", "failed", "; ".join(found) + advice)


def _numbers(weight: torch.Tensor) -> torch.Tensor:
    """Return what a quantised weight stands for."""
    return weight if type(weight) in (torch.Tensor, torch.nn.Parameter) else weight.dequantize()


def check_processor(model, processor) -> Check:
    """Tell whether the processor makes what the model was built to read."""
    config, extractor, tokenizer = model.config, processor.feature_extractor, processor.tokenizer
    expected = {
        "segment_seconds": config.segment_seconds,
        "music_mel_bins": config.music_config.num_mel_bins,
        "speech_mel_bins": config.speech_config.num_mel_bins,
        "patch_size": config.music_config.patch_size,
    }
    problems = [
        f"{name} is {getattr(extractor, name)}, the model's {value}"
        for name, value in expected.items()
        if getattr(extractor, name) != value
    ]
    positions = config.text_positions
    if problem := vocabulary_problem(tokenizer, config.text_config):
        problems.append(problem)
    limit = processor.max_text_tokens or tokenizer.model_max_length
    if positions is not None and limit > positions:
        problems.append(f"texts of {limit} tokens are let through, the text tower reads {positions}")
    fbank = {name: getattr(extractor, name) for name in FBANK}
    swapped = fbank["fbank_mean"] == FBANK["fbank_std"] and fbank["fbank_std"] == FBANK["fbank_mean"]
    if swapped or not fbank["fbank_std"] > 0:
        problems.append(f"fbank_mean and fbank_std are swapped or impossible: {fbank}, expected {FBANK}")
    doubts = [] if fbank == FBANK or problems else [f"{fbank}, where BEATs has {FBANK}: right only if trained so"]
    special = _special_tokens(config.text_config, tokenizer)
    # Other text encoders may end a text with another token than their generation does.
    (problems if config.text_config.model_type in TEXT_POOLING else doubts).extend(special)
    if problems or doubts:
        return Check("processor", "failed" if problems else "warning", "; ".join([*problems, *doubts]))
    return Check(
        "processor",
        "ok",
        f"fits the model: {expected}, {len(tokenizer)} tokens for {config.text_config.vocab_size} embeddings",
    )


def _special_tokens(text_config, tokenizer) -> list[str]:
    """Return where the text tower and the tokenizer number their special tokens differently."""
    found = []
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        tower, own = getattr(text_config, name, None), getattr(tokenizer, name)
        if tower is not None and own is not None and own not in np.atleast_1d(tower):
            found.append(f"{name} is {own} in the tokenizer and {tower} in the text tower: it is that of another model")
    return found


# Of the scores in the equations, by the name of their weight.
SCORE_LETTERS = {"kernel": "K", "temporal": "T", "sentences": "S", "path": "M"}


def check_score_parameters(model) -> Check:
    """Tell whether gammas and temperature are numbers inside their bounds."""
    parameters, ceiling = model.score_parameters, model.config.gamma_max
    with torch.no_grad():
        logs = {name: getattr(parameters, f"log_gamma_{name}") for name in model.config.gamma_inits}
        gammas = {f"gamma_{SCORE_LETTERS[name]}": value.exp().item() for name, value in logs.items()}
        raw = [*gammas.values()]
        temperature = parameters.log_attention_temperature.exp().item()
    found = ", ".join(f"{name} {value:.4g}" for name, value in {**gammas, "temperature": temperature}.items())
    if not all(math.isfinite(value) and value > 0 for value in (*raw, temperature)):
        return Check("score parameters", "failed", f"{found}: scores cannot be computed")
    if max(raw) > 1.001 * ceiling or temperature < 0.999 * MIN_TEMPERATURE:
        bounds = f"gammas count as at most {ceiling:g}, the temperature as at least {MIN_TEMPERATURE}"
        return Check("score parameters", "warning", f"{found}: {bounds}; training ran into a bound")
    return Check("score parameters", "ok", found)


def check_execution(model, device: str, dtype: str, attn_implementation: str | None) -> Check:
    """Return what the modules say of attention, number format and device, whatever was asked for."""
    kinds = {
        name: {
            _attention(module)
            for module in encoder.modules()
            if "Attention" in type(module).__name__ and hasattr(module, "config")
        }
        for name, encoder in model.encoders.items()
    }
    weights = [p for name, p in model.named_parameters() if not name.startswith("score_parameters.")]
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in weights})
    devices = sorted({str(p.device) for p in weights})
    attention = ", ".join(f"{name} {'/'.join(sorted(kind))}" for name, kind in kinds.items())
    detail = f"attention: {attention}; weights: {', '.join(dtypes)} on {', '.join(devices)}"
    if attn_implementation and set().union(*kinds.values()) != {attn_implementation}:
        return Check("execution", "warning", f"{detail}; asked for {attn_implementation}")
    on_device = {torch.device(d).type for d in devices} == {torch.device(device).type}
    if not on_device or dtype not in ("auto", *dtypes) or len(dtypes) > 1:
        return Check("execution", "warning", f"{detail}; asked for {dtype} on {device}")
    return Check("execution", "ok", detail)


def _attention(module) -> str:
    """Return what a module computes with; BEATs has no other kernel than these two, whatever its configuration says."""
    asked = module.config._attn_implementation
    return asked if asked == "eager" or type(module).__name__ != "BeatsAttention" else "sdpa"


# --------------------------------------------------------------------------------------------------------------------
# What the model makes of the built-in set


def check_golden(folder: Path, vectors: dict[str, torch.Tensor], model) -> Check:
    """Tell whether the model still gives the vectors that were stored with it, and if not, which part changed."""
    try:
        golden = read_golden(folder)
    except ValueError as error:
        return Check("golden vectors", "failed", str(error))
    if golden is None:
        advice = "collap.hub.golden.write_golden stores them, and publishing does"
        return Check("golden vectors", "warning", f"no {GOLDEN_FILE}: a later change would go unseen; {advice}")
    is_quantised = getattr(model.config, "quantization_config", None) is not None
    exact = not is_quantised and {str(model.dtype).removeprefix("torch."), golden.metadata["dtype"]} == {"float32"}
    tolerance = FLOAT32_DRIFT if exact else LOW_PRECISION_DRIFT
    drifts = golden_drift(vectors, golden)
    allowed = {part: 0.0 if part == "tokenizer" else tolerance for part in drifts}
    drifted = [part for part in drifts if drifts[part] > allowed[part]]
    if not drifted:
        worst = max(drifts.values())
        return Check(
            "golden vectors", "ok", f"reproduced; largest drift {worst:.1e} of {tolerance:g} ({_origin(golden)})"
        )
    causes = [part for part in drifted if not set(DEPENDS_ON[part]) & set(drifted)]
    first = ", ".join(f"{part} drifted by {drifts[part]:.2g} (allowed: {allowed[part]:g})" for part in causes)
    behind = ", ".join(f"{part} {drifts[part]:.2g}" for part in drifted if part not in causes)
    detail = first + (f"; what depends on it did too: {behind}" if behind else "")
    return Check("golden vectors", "failed", f"{detail}. This is not the model that was stored ({_origin(golden)})")


def _origin(golden) -> str:
    return "stored with torch {torch}, transformers {transformers}, {dtype}".format(**golden.metadata)


def check_spread(side: str, embeds: torch.Tensor) -> Check:
    """Tell whether a tower tells the texts, or the clips, of the built-in set apart.

    Args:
        side: "text" or "audio".
        embeds: (N, D).
    """
    found = spread_of(embeds)
    return Check(f"{side} tower spread", found.status, found.detail)


def check_chance(scores: np.ndarray) -> Check:
    """Tell whether the clips of the built-in set find their texts better than by chance; scores (A, B)."""
    p = matching_p_value(scores) if np.isfinite(scores).all() else 1.0
    found = f"the 8 clips fit their texts, p = {p:.2g}" if p <= MAX_P else f"p = {p:.2g} (expected at most {MAX_P})"
    if p <= MAX_P:
        return Check("built-in set", "ok", found)
    meaning = (
        "at chance: clips of single instruments fit the texts of other clips as well as their own. A trained music "
        "model passes; one that is untrained, broken, or made for quite other audio or another language does not"
    )
    return Check("built-in set", "failed", f"{found}; {meaning}")


def check_probes(folder: Path, model, processor) -> list[Check]:
    """Run every check that needs the built-in set to be embedded."""
    try:
        vectors = probe_vectors(model, processor)
    except Exception as error:  # whatever a wrong processor makes the model do is the finding
        return [Check("built-in set", "failed", f"cannot be embedded: {error_line(error)}")]
    num_clips = len(load_probes())  # the row after them is all clips joined into one
    return [
        *attempted("golden vectors", check_golden, folder, vectors, model),
        check_spread("text", vectors["text_embeds"]),
        check_spread("audio", vectors["audio_embeds"][:num_clips]),
        check_chance(vectors["scores"][:num_clips].numpy()),
    ]


def error_line(error: Exception) -> str:
    return f"{type(error).__name__}: {flat(error, 400)}"
