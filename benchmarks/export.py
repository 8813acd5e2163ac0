"""Sizes of exported graphs and their speed on a CPU: onnxruntime and `torch.export` against the model itself.

    python -m benchmarks.export                             # GPT-2 and RoBERTa of base size, BEATs-base, Whisper-small
    python -m benchmarks.export --variant gpt2 --repeats 9

A graph and the model it was made from take turns, as in `benchmarks.encode`; what is reported is the median of the
seconds, and the median of the ratios within a turn. The seconds are those of the processor, on one thread: time that
other programs take does not count. Weights are random: they do not change the time.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.encode import take_turns
from benchmarks.steps import median_ratio, medians, ratio_range
from collap.hub.export import SUFFIXES, Graph, build_graphs, load_graph, write_graph
from collap.training.cost import paper_config
from modeling_collap import CoLLAPConfig, CoLLAPModel

VARIANTS = {"gpt2": "gpt2", "roberta": "roberta-base"}
# One segment of 30 s; texts of a long description; a song of five minutes scored with a hundred texts.
SIZES = {
    "text": {"texts": 1, "text_tokens": 128},
    "audio": {"audios": 1, "segments": 1},
    "score": {"texts": 100, "audios": 1, "tokens": 1870},
}


def example_inputs(graph: Graph, sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    """Random features, tokens and unit vectors of these sizes, nothing masked."""
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for name, (dtype, shape) in graph.inputs.items():
        shape = [sizes.get(size, size) for size in shape]
        inputs[name] = torch.ones(shape, dtype=getattr(torch, dtype))
        if dtype == "float32":
            inputs[name] = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
    return inputs


def measure_graph(model: CoLLAPModel, name: str, folder: Path, repeats: int) -> dict:
    """Megabytes on disk, seconds of the processor for a run, and their ratios to the model's."""
    graph, per_segment = build_graphs(model)[name], model.config.tokens_per_segment
    sizes = SIZES[name] | {f"{per_segment}*segments": per_segment * SIZES["audio"]["segments"]}
    inputs = example_inputs(graph, sizes)
    methods = {"text": model.get_text_features, "audio": model.get_audio_features, "score": model.score}
    contestants, megabytes = {"model": lambda: methods[name](**inputs)}, {}
    for format, suffix in SUFFIXES.items():
        path = folder / f"{name}{suffix}"
        write_graph(graph, model.config, path)
        megabytes[format] = round(sum(file.stat().st_size for file in folder.glob(f"{path.name}*")) / 1e6, 1)
        run = load_graph(path, threads=1)
        contestants[format] = lambda run=run: run(**inputs)
    seconds = take_turns(contestants, repeats, "cpu", clock=time.process_time)
    return {
        "graph": name,
        "sizes": SIZES[name],
        "megabytes": megabytes,
        "seconds": medians(seconds),
        "over_model": {format: median_ratio(seconds, format, "model") for format in SUFFIXES},
        "range": {format: ratio_range(seconds, format, "model") for format in SUFFIXES},
    }


@torch.no_grad()
def measure(config: CoLLAPConfig, graphs: list[str], repeats: int) -> list[dict]:
    """A report for each of the named graphs of a model of random weights."""
    torch.manual_seed(0)
    model, reports = CoLLAPModel(config).eval(), []
    for name in graphs:
        with tempfile.TemporaryDirectory() as folder:
            reports.append(measure_graph(model, name, Path(folder), repeats))
    return reports


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"CPU, 1 thread, float32, {options.repeats} turns")
    for i, variant in enumerate(options.variant):
        graphs = list(SIZES) if i == 0 else ["text"]  # the variants differ in the text tower only
        for report in measure(paper_config(VARIANTS[variant]), graphs, options.repeats):
            print(json.dumps({"variant": variant, **report}), flush=True)


if __name__ == "__main__":
    main()
