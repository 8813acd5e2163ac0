"""Measure what each part of the score in time is worth: a training run for each row of a table, on held-out songs.

    python benchmarks/ablation.py configs/ablation_small.yaml  # two cores
    python benchmarks/ablation.py configs/structure_gpt2.yaml configs/ablation_crops.yaml --dataset FOLDER \
        --text_column captions --music BEATS --jobs 1  # a GPU

Takes the settings files and options of train.py, which all rows share; configs/ablation.yaml holds the rows, each with
what it changes. Every row is trained by train.py and measured by `collap evaluate --suite temporal`, `--jobs` at a
time; what is there is not done again, so a killed run goes on. Writes ablation.md and ablation.json to `--output_dir`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from collap.files import nearest, replace_text, write_json

ROOT = Path(__file__).parent.parent
# Columns of the table: figures of the suite, the first that a model has.
FIGURES = {
    "order": ("order, shuffled, untimed",),
    "neighbours": ("order, neighbours, untimed",),
    "pointing": ("pointing, a sentence alone",),
    "IoU 0.5": ("IoU at least 0.5, path", "IoU at least 0.5, a sentence alone, level of other songs"),
    "R@1": ("R@1, whole song, whole description",),
    "one missing": ("R@1, whole song, one sentence missing",),
    "two left": ("R@1, whole song, two sentences left",),
    "shuffled": ("R@1, whole song, sentences shuffled",),
    "untrue": ("R@1, whole song, one sentence untrue",),
    "overview": ("R@1, whole song, overview alone",),
}


@dataclass
class Row:
    """Hold a row of the table.

    Attributes:
        name: of the row.
        settings: of train.py, that it changes; those of `model_config` are added to the shared ones.
        seeds: so many runs, with seeds from 0 on; the median is reported. Rows of several are also measured on
            longer songs and in a larger pool.
    """

    name: str
    settings: dict
    seeds: int = 1


def read_rows(path: Path, chosen: list[str] | None, most_seeds: int | None = None) -> list[Row]:
    """Read rows from a YAML file: `name: {settings..., like: another row, seeds: 3}`, with at most `most_seeds` seeds.

    Raises:
        ValueError: `chosen`, or a `like`, names a row that is not there.
    """
    rows: dict[str, Row] = {}
    for name, given in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        changes = dict(given or {})
        like, seeds = changes.pop("like", None), changes.pop("seeds", 1)
        if like is not None and like not in rows:
            raise ValueError(f"{path}: {name!r} is like {like!r}, which is no row above it; {nearest(like, rows)}")
        seeds = min(seeds, most_seeds or seeds)
        rows[name] = Row(name, merged(rows[like].settings if like else {}, changes), seeds)
    for name in chosen or ():
        if name not in rows:
            raise ValueError(f"{path} has no row {name!r}; {nearest(name, rows)}")
    return [row for row in rows.values() if not chosen or row.name in chosen]


def merged(settings: dict, changes: dict) -> dict:
    """Return settings of train.py with changes; the two `model_config` are joined."""
    joined = {**settings, **changes}
    if "model_config" in settings and "model_config" in changes:
        joined["model_config"] = {**settings["model_config"], **changes["model_config"]}
    return joined


@dataclass
class Ablation:
    """Hold what all rows share: the settings files and options of train.py, and what is measured where."""

    files: list[str]
    settings: dict
    options: argparse.Namespace

    def train_command(self, row: Row, seed: int) -> list[str]:
        """Return the command of a training run."""
        settings = merged(self.settings, row.settings) | {"seed": seed, "output_dir": str(self.folder(row, seed))}
        settings["eval_every"] = settings.get("epochs", 20)  # the model of the end is measured
        path = self.folder(row, seed) / "settings.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, yaml.safe_dump(settings))
        return [sys.executable, str(ROOT / "train.py"), str(path), "--resume", "latest"]

    def folder(self, row: Row, seed: int) -> Path:
        """Return the folder of a run."""
        name = "".join(letter if letter.isalnum() else "-" for letter in row.name)
        return self.options.runs / f"{name}-{seed}"

    def evaluate_commands(self, row: Row, seed: int) -> dict[str, list[str]]:
        """Return the commands that measure a trained model, by the part of the table that they are for."""
        options, folder, shared = self.options, self.folder(row, seed), merged(self.settings, row.settings)
        command = [sys.executable, "-m", "collap", "evaluate", "--suite", "temporal", "--model", str(folder / "last")]
        command += ["--split", options.split, "--text_column", shared.get("text_column", "text")]
        command += ["--sections_column", options.sections_column]
        own, others = ["--dataset", shared["dataset"]], ["--parts", "order", "place", "retrieval"]
        commands = {"measured": [*own, "--songs", str(options.songs), *others]}
        if row.seeds > 1 and options.pool > options.songs:
            commands["pool"] = [*own, "--songs", str(options.pool), "--parts", "retrieval"]
        if row.seeds > 1 and options.long is not None:
            commands["long"] = ["--dataset", options.long, *others]
        return {part: [*command, *words, "--output_dir", str(folder / part)] for part, words in commands.items()}

    def measure(self, row: Row, seed: int) -> dict:
        """Train and measure one run; return its figures, and seconds of computing."""
        done = self.folder(row, seed) / "ablation.json"
        if done.exists():
            return json.loads(done.read_text(encoding="utf-8"))
        log, found = self.folder(row, seed).with_suffix(".log"), {}
        found["seconds"] = run(self.train_command(row, seed), log, self.options.jobs)
        for part, command in self.evaluate_commands(row, seed).items():
            run(command, log, self.options.jobs)
            figures = json.loads((self.folder(row, seed) / part / "temporal.json").read_text(encoding="utf-8"))
            found[part] = {name: one["mean"] for name, one in figures["figures"].items()}
        write_json(done, found)
        print(f"{row.name}, seed {seed}: {summary(found)}", flush=True)
        return found


def run(command: list[str], log: Path, jobs: int) -> float:
    """Run a command on its share of the cores; return the seconds of computing that it took.

    Raises:
        RuntimeError: it failed; names its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(log, "ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... failed; {log} says why")
    return usage.ru_utime + usage.ru_stime


def values(found: dict, part: str = "measured") -> dict[str, float]:
    """Return the columns of a run."""
    figures = found.get(part, {})
    return {
        column: next(figures[name] for name in names if name in figures)
        for column, names in FIGURES.items()
        if any(name in figures for name in names)
    }


def summary(found: dict) -> str:
    """Return the figures of a run in one line."""
    return ", ".join(f"{column} {value:.1f}" for column, value in values(found).items())


def table(rows: list[Row], found: dict[str, list[dict]], part: str) -> list[str]:
    """Return lines of Markdown: the median of every figure over the seeds, with the lowest and highest."""
    rows = [row for row in rows if part in found[row.name][0]]
    columns = [name for name in FIGURES if any(name in values(one, part) for row in rows for one in found[row.name])]
    columns += ["CPU s"] if part == "measured" else []
    lines = [f"| | seeds | {' | '.join(columns)} |", "|---|--:|" + "--:|" * len(columns)]
    for row in rows:
        runs = [values(one, part) | {"CPU s": one["seconds"]} for one in found[row.name]]
        cells = [cell([run[column] for run in runs if column in run], column) for column in columns]
        lines.append(f"| {row.name} | {len(runs)} | {' | '.join(cells)} |")
    return lines


def cell(numbers: list[float], column: str) -> str:
    """Return the median of numbers, and between which they lie."""
    if not numbers:
        return ""
    digits = 0 if column == "CPU s" else 1
    middle = f"{statistics.median(numbers):.{digits}f}"
    return middle if len(numbers) == 1 else f"{middle} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"


def parse(arguments: list[str] | None) -> Ablation:
    """Read the command line: own options, and those of train.py, which come from its settings files first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="settings files of train.py, shared by all rows")
    parser.add_argument("--rows_file", type=Path, default=ROOT / "configs/ablation.yaml")
    parser.add_argument("--rows", nargs="+", help="names of rows; default: all")
    parser.add_argument("--seeds", type=int, help="of a row, at most; default: as many as it asks for")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time")
    parser.add_argument("--split", default="test")
    parser.add_argument("--sections_column", default="sections")
    parser.add_argument("--songs", type=int, default=100, help="songs that are measured")
    parser.add_argument("--pool", type=int, default=500, help="songs of the larger pool")
    parser.add_argument("--long", help="data set of longer songs")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--output_dir", type=Path, default=Path("results/ablation"))
    options, others = parser.parse_known_args(arguments)
    settings: dict = {}
    for file in options.files:
        settings = merged(settings, yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    names, given = others[::2], others[1::2]
    if len(names) != len(given) or not all(name.startswith("--") for name in names):
        raise ValueError(f"expected pairs such as --music beats of train.py, found {' '.join(others)}")
    settings = merged(settings, {name[2:]: yaml.safe_load(value) for name, value in zip(names, given, strict=True)})
    if not settings.get("dataset"):
        raise ValueError("expected a data set: --dataset FOLDER, or in a settings file")
    return Ablation(options.files, settings, options)


def main(arguments: list[str] | None = None) -> None:
    """Train and measure all rows, and write the table."""
    ablation = parse(arguments)
    options = ablation.options
    rows = read_rows(options.rows_file, options.rows, options.seeds)
    todo = [(row, seed) for seed in range(max(row.seeds for row in rows)) for row in rows if seed < row.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda job: ablation.measure(*job), todo))
    found: dict[str, list[dict]] = {}
    for (row, _), one in zip(todo, results, strict=True):
        found.setdefault(row.name, []).append(one)
    titles = {"measured": "What each part is worth", "pool": "In a larger pool", "long": "Longer songs"}
    lines = []
    for part, title in titles.items():
        if any(part in one[0] for one in found.values()):
            lines += [f"# {title}", "", *table(rows, found, part), ""]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    replace_text(options.output_dir / "ablation.md", "\n".join(lines))
    write_json(options.output_dir / "ablation.json", found)
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
