"""Run the analyses of a suite on its pools, for every model: `collap evaluate --suite analysis`.

    collap evaluate --suite analysis --data_root data --models runs/collap-gpt2/best laion/clap-htsat-unfused random

A suite of analyses is a YAML file with `pools`, as those of tables have them, and `analyses`, each with its settings.
What is embedded is kept in `embeddings` below `--output_dir`, so that a run that was killed goes on; see `pool_run.py`.
"""

import os
import sys
from dataclasses import asdict, dataclass

import torch

from collap.files import nearest

from ..embedders import Embedder
from ..results import command_line
from ..suite import adjust_p_values, collapse_of, load_embedders, make_manifest
from ..suite_data import NothingThere, check_data_root, open_pool
from ..suite_file import Pool, read_fields, read_pools, read_yaml, suite_path
from . import ANALYSES
from .analysis import Analysis, Outcome
from .pool_run import PoolRun
from .tables import markdown_tables, write_analyses


@dataclass(frozen=True)
class AnalysisSuite:
    """Hold a suite of analyses; `analyses` gives each with the titles of the pools that it is of."""

    name: str
    title: str
    pools: tuple[Pool, ...]
    analyses: tuple[tuple[Analysis, tuple[str, ...]], ...]


def is_of_analyses(name: str) -> bool:
    """Tell whether a suite is of analyses; one of tables is read by `collap.evaluation.suite_file`.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is not YAML.
    """
    content = read_yaml(suite_path(name))
    return isinstance(content, dict) and "analyses" in content


def read_analyses(name: str) -> AnalysisSuite:
    """Read a suite of analyses.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such suite; says where and what is known.
    """
    path = suite_path(name)
    content = read_fields(read_yaml(path), AnalysisSuite, path, ("name",))
    pools = read_pools(content["pools"], f"{path}: pools")
    for pool in pools:
        if pool.window_seconds is not None:
            raise ValueError(f"{path}: {pool.title}: window_seconds: analyses hear whole recordings; leave it out")
    if not isinstance(content["analyses"], dict) or not content["analyses"]:
        raise ValueError(f"{path}: analyses: expected a mapping of {', '.join(ANALYSES)} to their settings")
    titles = tuple(pool.title for pool in pools)
    analyses = tuple(_analysis(key, given, titles, f"{path}: analyses") for key, given in content["analyses"].items())
    return AnalysisSuite(path.stem, content["title"], pools, analyses)


def _analysis(name: str, given, titles: tuple[str, ...], place: str) -> tuple[Analysis, tuple[str, ...]]:
    """Return an analysis with its settings, and the titles of the pools that it is of: all, if it names none."""
    if name not in ANALYSES:
        raise ValueError(f"{place}: no analysis is called {name!r}; {nearest(str(name), ANALYSES)}")
    given = {} if given is None else given
    named = given.pop("pools", titles) if isinstance(given, dict) else titles
    for title in named if isinstance(named, (list, tuple)) else (named,):
        if title not in titles:
            raise ValueError(f"{place}.{name}.pools: no pool is called {title!r}; {nearest(str(title), titles)}")
    settings = read_fields(given, ANALYSES[name], f"{place}.{name}")
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    try:
        return ANALYSES[name](**settings), tuple(named)
    except ValueError as error:
        raise ValueError(f"{place}.{name}.{error}") from error


def heard_by(analyses: list[Analysis], embedders: list[Embedder]) -> list[tuple]:
    """Return what the analyses hear of every song: models, or forms of them, and changes, each once."""
    pairs = [pair for embedder in embedders for analysis in analyses for pair in analysis.hears(embedder)]
    return list({(one.name, change): (one, change) for one, change in pairs}.values())


def measure_analysis(analysis: Analysis, run: PoolRun, title: str, embedders: list[Embedder], options) -> dict:
    """Measure all models on a pool; what results.json holds of it."""
    found = {"title": title, "missing": None, "rows": {}, "comparisons": [], "notes": list(run.notes)}
    for embedder in embedders:
        outcome: Outcome = analysis.measure(run, embedder)
        manifest = make_manifest(embedder, run, options) | {"analysis": analysis.name, "settings": asdict(analysis)}
        if outcome.figures:
            found["rows"][embedder.name] = {"manifest": manifest, "figures": outcome.figures}
        found["comparisons"] += [{"model": embedder.name, **one} for one in outcome.comparisons]
        found["notes"] += outcome.notes
    found["notes"] = list(dict.fromkeys(found["notes"]))
    return found


def measure_analyses(suite: AnalysisSuite, embedders: list[Embedder], options) -> dict:
    """Measure a suite, pool by pool; what results.json holds."""
    results = {
        one.name: {
            "name": one.name,
            "title": one.title,
            "question": one.question,
            "is_curve": one.is_curve,
            "settings": asdict(one),
            "measures": [asdict(measure) for measure in one.measures()],
            "pools": [],
        }
        for one, _ in suite.analyses
    }
    for pool in suite.pools:
        wanted = [analysis for analysis, titles in suite.analyses if pool.title in titles]
        try:
            run = PoolRun(open_pool(pool, options.data_root), options.output_dir / "embeddings", options.seed)
            run.prepare(heard_by(wanted, embedders), pool.title)
        except NothingThere as error:
            print(f"{pool.title}: not measured: {error}", file=sys.stderr)
            missing = {"title": pool.title, "missing": str(error), "rows": {}, "comparisons": [], "notes": []}
            for analysis in wanted:
                results[analysis.name]["pools"].append(missing)
            continue
        for analysis in wanted:
            results[analysis.name]["pools"].append(measure_analysis(analysis, run, pool.title, embedders, options))
    for one in results.values():
        adjust_p_values(one["pools"])
    facts = {"suite": suite.name, "title": suite.title, "command": command_line(), "seed": options.seed}
    return {
        **facts,
        "models": [{"name": one.name, "collapsed": collapse_of(one)} for one in embedders],
        "analyses": list(results.values()),
    }


def run(options) -> int:
    """Do `collap evaluate --suite SUITE` for a suite of analyses; return its exit code, 1 if nothing was measured."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            f"--suite {options.suite}: analyses run in one process; start it without accelerate or torchrun"
        )
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    suite = read_analyses(options.suite)
    check_data_root(options.data_root)
    results = measure_analyses(suite, load_embedders(options), options)
    if not any(pool["rows"] for one in results["analyses"] for pool in one["pools"]):
        raise ValueError(f"{options.data_root}: nothing of the suite can be measured; see above what is missing")
    paths = write_analyses(results, options.output_dir)
    print(markdown_tables(results))
    print("\n".join(str(path) for path in paths.values()))
    return 0
