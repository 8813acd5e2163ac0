"""The command `collap`: one sub-command for each thing that is done with a model, a data set or a corpus.

Arguments are described here, with one vocabulary for all; the module that does the work, and torch with it, is imported
only when a command runs. So help and mistakes are answered at once.
"""

import argparse
import gc
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from collap.files import nearest

TOKEN_DTYPES = ("float16", "int8")  # that stored tokens can have
TEMPORAL_PARTS = ("order", "equal_lengths", "place", "detail", "retrieval")  # of the suite of time
INDEX_DTYPES = ("float32", "bfloat16", "int8")
SEARCH_MODES = ("fixed", "calibrated", "exact")
HELP = ("-h", "--help")
DATASET_HELP = "local folder, table file or Hub id, or NAME:FOLDER such as musiccaps:data/musiccaps"


class Parser(argparse.ArgumentParser):
    """Parse the arguments of a command; an unknown option is refused with the nearest known one."""

    def __init__(self, **settings):
        self.known_options: set[str] = set()
        super().__init__(allow_abbrev=False, **settings)

    def add_argument(self, *names, **settings):
        action = super().add_argument(*names, **settings)
        self.known_options.update(action.option_strings)
        return action

    def parse_known_args(self, args=None, namespace=None):
        """Look at unknown options first: argparse would ask for what is missing beside them, and not name the slip."""
        args = sys.argv[1:] if args is None else list(args)
        for word in args[: args.index("--")] if "--" in args else args:
            name = word.split("=")[0]
            if name.startswith("--") and " " not in name and name not in self.known_options:
                known = sorted(option for option in self.known_options if option.startswith("--"))
                self.error(f"unknown option {name!r}; {nearest(name, known)}")
        return super().parse_known_args(args, namespace)


def _add_data_options(parser: Parser) -> None:
    """Add the options that say where a data set lies and which columns to read, the same for every command."""
    parser.add_argument("--dataset_config", help="configuration of a Hub data set, or of a named one")
    parser.add_argument("--revision", help="revision of a Hub data set")
    parser.add_argument("--audio_column", default="audio")


def _add_text_column(parser: Parser) -> None:
    parser.add_argument("--text_column", default="text", help="one text or a list of texts for each audio")


def _evaluate(parser: Parser) -> None:
    parser.add_argument("--model", help="folder or Hub id of a CoLLAP model")
    parser.add_argument("--dataset", help=DATASET_HELP)
    parser.add_argument("--split", default="test")
    _add_data_options(parser)
    _add_text_column(parser)
    parser.add_argument("--song_column", help="rows with the same value are one song; default: every row is one")
    parser.add_argument(
        "--suite",
        default="retrieval",
        help="what to measure: retrieval, temporal, paper (the paper's tables), analysis, or a .yaml file of tables or "
        "of analyses",
    )
    parser.add_argument("--models", nargs="+", help="with tables: models, such as runs/best laion/clap@first random")
    parser.add_argument("--data_root", type=Path, help="with tables: folder in which the data sets lie")
    parser.add_argument("--songs", type=int, help="with --suite temporal: so many songs; default: all")
    parser.add_argument(
        "--pool", type=int, help="with --suite temporal: songs in which descriptions are searched; default: --songs"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        default=TEMPORAL_PARTS,
        choices=(*TEMPORAL_PARTS, "moments"),
        help="with --suite temporal: of it; default: all but moments, which are of queries that have their own times",
    )
    parser.add_argument(
        "--segments", help="with --suite temporal: folder of files such as song.txt, lines of seconds and label"
    )
    parser.add_argument("--sections_column", help="draw the first song's score over its {label, start, end} sections")
    parser.add_argument("--output_dir", type=Path, default=Path("results"))
    parser.add_argument("--chunk_size", type=int, help="texts scored at a time; default: by the length of the song")
    parser.add_argument("--device", help="where the model runs; default: cuda if there is one, else cpu")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the encoders"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")


def _not_evaluated(options: argparse.Namespace) -> list[str]:
    """Return which options are missing: tables are of several models, anything else is of one."""
    needed = ("model", "dataset") if options.suite in ("retrieval", "temporal") else ("models", "data_root")
    return [f"--{name}" for name in needed if getattr(options, name) is None]


def _precompute(parser: Parser) -> None:
    parser.add_argument("--dataset", required=True, help=DATASET_HELP)
    _add_data_options(parser)
    parser.add_argument("--splits", nargs="+", default=["train", "validation"])
    parser.add_argument("--model", help="folder or Hub id of a CoLLAP model, for its encoders")
    parser.add_argument("--music", help="converted BEATs: folder or Hub id, or none; instead of --model")
    parser.add_argument(
        "--speech", default="openai/whisper-small", help="Whisper: folder or Hub id, or none; with --music"
    )
    parser.add_argument("--segment_seconds", type=float, help="with --music; default: all that Whisper reads")
    parser.add_argument("--segment_batch_size", type=int, help="segments encoded at a time; default: the model's")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of the stored tokens")
    parser.add_argument("--dtype", default="float16", choices=TOKEN_DTYPES, help="of the stored tokens")
    parser.add_argument("--shard_songs", type=int, default=64, help="songs of a file")
    parser.add_argument("--max_bad_share", type=float, default=0.01, help="of files that may be unreadable")


def _publish(parser: Parser) -> None:
    parser.add_argument("folder", help="of a model (runs/.../best), a corpus or a metric")
    parser.add_argument("repo_id", help="owner/name")
    parser.add_argument("--repo_type", choices=("model", "dataset", "space"), default="model")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is new")
    parser.add_argument("--revision", help="branch to publish to, made if there is none")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request")
    parser.add_argument("--license", help="of the weights or the data, e.g. apache-2.0")
    parser.add_argument("--language", nargs="+", help="of the texts, e.g. en")
    parser.add_argument("--base_model", nargs="+", help="Hub ids; default: those of the training run")
    parser.add_argument("--datasets", nargs="+", help="Hub ids; default: that of the training run")
    parser.add_argument("--results", nargs="+", help="results.json files of `collap evaluate`")
    parser.add_argument("--energy_kwh", type=float, help="that the training took")
    parser.add_argument("--max_shard_size", default="5GB", help="weights above it are split")
    parser.add_argument("--anyway", action="store_true", help="publish even what the doctor finds unhealthy")


def _doctor(parser: Parser) -> None:
    parser.epilog = (
        "Exit code: 0 healthy (there may be warnings), 1 a check failed, 2 no such model or a wrong command."
    )
    parser.add_argument("model", help="folder, or Hub id")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--device", default="cpu", help="where the model runs (cpu)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "auto"))
    parser.add_argument("--attn_implementation", choices=("eager", "sdpa"), help="what transformers chooses by default")


def _export(parser: Parser) -> None:
    parser.add_argument("model", help="folder or Hub id of a CoLLAP model")
    parser.add_argument("folder", type=Path, help="new folder for the graphs, the processor and export.json")
    parser.add_argument("--format", choices=("onnx", "torch_export"), default="onnx")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")


def _convert_beats(parser: Parser) -> None:
    parser.add_argument("checkpoint", help="BEATs checkpoint of the original release (.pt)")
    parser.add_argument("folder", type=Path, help="where config.json and model.safetensors are written")


def _convert_model(parser: Parser) -> None:
    parser.add_argument("folder", type=Path, help="model folder of an earlier release")
    parser.add_argument("target", type=Path, help="new folder")


def _corpus_render(parser: Parser) -> None:
    parser.add_argument("folder", type=Path, help="folder to create")
    for split, count in (("train", 400), ("validation", 50), ("test", 100)):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"songs in this split, 0 for none ({count})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min_seconds", type=float, default=60.0)
    parser.add_argument("--max_seconds", type=float, default=300.0)
    parser.add_argument("--sampling_rate", type=int, default=16000)
    parser.add_argument("--captions_per_song", type=int, default=3)
    parser.add_argument("--num_workers", type=int, default=2)


def _corpus_build(parser: Parser) -> None:
    parser.epilog = "A run that was killed goes on with the same command. OUT is read by train.py and load_dataset."
    parser.add_argument("source", help="folder of audio, list (.csv, .jsonl, .parquet), .tar, Hub id, or NAME:FOLDER")
    parser.add_argument("out", type=Path, help="folder of the data set")
    parser.add_argument("--split", help="of the source; default: train, or all of a named data set")
    parser.add_argument("--dataset_config", help="configuration of a Hub data set, or of a named one")
    _add_limits(parser)
    _add_captioning(parser)
    parser.add_argument("--audio", choices=("embed", "reference"), default="embed", help="in the shards, or as links")
    parser.add_argument("--validation", type=float, default=0.05, help="share of the artists or sources for that split")
    parser.add_argument("--license", help="of the data set, for its card")
    parser.add_argument(
        "--tokenizer", nargs="+", default=["roberta-base", "gpt2"], help="to count tokens, if they are on this machine"
    )
    parser.add_argument("--shard", metavar="i/n", help="do this part of the tracks only: 0/4, 1/4, 2/4 or 3/4")
    parser.add_argument("--num_workers", type=int, help="processes that decode and measure; default: all cores")
    parser.add_argument("--seed", type=int, default=0, help="of wording, of a model's sampling, and of the split")


def _add_limits(parser: Parser) -> None:
    """Add what decides which tracks are kept."""
    parser.add_argument("--min_seconds", type=float, default=120.0, help="of a track")
    parser.add_argument("--max_seconds", type=float, default=300.0, help="of a track")
    parser.add_argument("--longer", default="crop", help="what of longer tracks: crop, drop or keep")
    parser.add_argument("--crop_from", default="start", help="start or middle")
    parser.add_argument("--max_silent", type=float, default=0.5, help="share of a track below -60 dB")
    parser.add_argument("--max_clipped", type=float, default=0.02, help="share of samples at full scale")
    parser.add_argument("--music_only", action="store_true", help="leave out what holds no notes and has no pulse")
    parser.add_argument("--against", nargs="+", default=[], help="evaluation sets whose recordings are left out")
    parser.add_argument("--score_model", help="CoLLAP model that scores captions, for --drop_worst")
    parser.add_argument("--drop_worst", type=float, default=0.0, help="share of captions with the lowest scores")


def _add_captioning(parser: Parser) -> None:
    """Add what finds sections and describes them."""
    parser.add_argument("--annotations", type=Path, help="folder of annotation files; those beside the audio are found")
    parser.add_argument(
        "--captioner",
        nargs="+",
        default=["template"],
        help="template (by tags and measures), columns (texts of the list), a transformers model, or FILE.py",
    )
    parser.add_argument("--prompts", type=Path, help="folder of prompts, in place of the package's own")
    parser.add_argument("--rewriter", help="a language model that says every caption once more, in other words")
    parser.add_argument("--names_sections", action="store_true", help="let the model name the sections of the track")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the model; 0 takes the likeliest words")
    parser.add_argument("--window_seconds", type=float, default=180.0, help="what percents in texts are of; 0: all")
    parser.add_argument("--batch_size", type=int, default=4, help="questions to a model at a time")
    parser.add_argument("--device", help="where models run; default: cuda if there is one, else cpu")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"), help="of a captioner"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="let code in the captioner's folder run")


def _data_check(parser: Parser) -> None:
    parser.add_argument("dataset", help="local folder, table file or Hub id; or a data set's name, such as musiccaps")
    parser.add_argument("folder", nargs="?", help="with a name: where that data set lies; its layout is found")
    _add_data_options(parser)
    _add_text_column(parser)
    parser.add_argument(
        "--tokenizer", nargs="+", default=["roberta-base", "gpt2"], help="to count tokens, if they are on this machine"
    )
    parser.add_argument("--against", nargs="+", default=[], help="NAME:FOLDER of data sets, for ids in common")
    parser.add_argument("--similar_to", nargs="+", default=[], help="data sets, for recordings that sound the same")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def _index(parser: Parser) -> None:
    parser.epilog = (
        "A run that was killed goes on with the same command. What is not said the second time is as it was the first."
    )
    parser.add_argument("folder", nargs="?", help="of the library; all audio files in it and below are indexed")
    parser.add_argument("--index", required=True, type=Path, help="folder of the index; made if it is not there")
    parser.add_argument("--model", help="folder or Hub id of a CoLLAP or CLAP model")
    parser.add_argument("--device", help="where the model runs; default: cuda if there is one, else cpu")
    parser.add_argument("--dtype", choices=INDEX_DTYPES, help="of the encoders; default: float32")
    parser.add_argument("--stride", type=int, help="embed every so many segments; 2 is twice as fast and finds less")
    parser.add_argument("--threads", type=int, help="of the processor; default: one for each core")
    parser.add_argument("--nice", type=int, default=0, help="lower the priority, up to 19, so that others go first")
    parser.add_argument("--retry_broken", action="store_true", help="try files again that could not be read")
    parser.add_argument("--shard", metavar="i/n", help="index this part of the library only: 0/4, 1/4, 2/4 or 3/4")
    parser.add_argument("--shard_tracks", type=int, help="tracks of a file, published when it is full; default: 256")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="PART", help="put indexes of parts into --index")
    parser.add_argument("--verify", action="store_true", help="compare every file of the index with its checksum")
    parser.add_argument("--engine", help="LanceDB that is to hold the vectors, too; --verify and --stats only read it")
    parser.add_argument("--calibrate", action="store_true", help="measure what collap search --mode calibrated needs")
    parser.add_argument("--stats", action="store_true", help="say what the index holds, and how well it is searched")
    parser.add_argument("--json", action="store_true", help="with --stats: print one JSON object instead of lines")


def _not_indexed(options: argparse.Namespace) -> list[str]:
    others = options.merge, options.verify, options.calibrate, options.engine, options.stats
    return [] if options.folder or any(others) else ["folder"]


def _search(parser: Parser) -> None:
    parser.epilog = "Exit code: 0 something was found, 1 nothing, or an error of one line, 2 a wrong command."
    parser.add_argument("text", nargs="?", help="description of music, a sentence or many; or --like")
    parser.add_argument("--index", required=True, type=Path, help="folder that `collap index` has made")
    parser.add_argument("--like", metavar="TRACK[@TIME]", help="id, path or title; 83.5 or 1:23.5 for a moment of it")
    parser.add_argument("--not", dest="not_text", metavar="TEXT", help="rank by score(text) - score(TEXT)")
    parser.add_argument("--filter", help='which tracks, such as "year >= 1970 and (genre = jazz or artist ~ davis)"')
    parser.add_argument("--min_seconds", "--min-seconds", type=float, help="length of a track")
    parser.add_argument("--max_seconds", "--max-seconds", type=float, help="length of a track")
    parser.add_argument("-k", type=int, default=10, help="tracks to return (10)")
    parser.add_argument("--mode", choices=SEARCH_MODES, default="fixed", help="how many tracks are scored exactly")
    parser.add_argument("--candidates", type=int, help="of the mode fixed: so many; default: by score and tracks")
    parser.add_argument("--engine", help="LanceDB that collap index --engine has filled, which proposes the tracks")
    parser.add_argument("--curve", action="store_true", help="with --json: the score over the time of each track")
    parser.add_argument("--all_copies", action="store_true", help="list copies of one recording as tracks of their own")
    parser.add_argument("--model", help="that the index was made with, if it is no longer where it was")
    parser.add_argument("--device", help="where the model runs (cpu)")
    formats = parser.add_mutually_exclusive_group()
    for name, what in (
        ("json", "one JSON object"),
        ("webvtt", "cues of the best track: which sentence is heard when"),
        ("m3u", "a playlist; VLC begins where a track matches best"),
    ):
        formats.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=f"write {what}")
        parser.known_options.add(f"--{name}")
    parser.set_defaults(format="table")


def _not_searched(options: argparse.Namespace) -> list[str]:
    return [] if options.text is not None or options.like is not None else ["text"]


def _duplicates(parser: Parser) -> None:
    parser.add_argument("--index", required=True, type=Path, help="folder of an index that collap index has made")
    parser.add_argument("--json", action="store_true", help="print one JSON list of groups instead of lines")


def _serve(parser: Parser) -> None:
    parser.add_argument("--index", required=True, type=Path, help="folder of the index")
    parser.add_argument("--library", type=Path, help="where its songs lie now; default: where they were indexed")
    parser.add_argument("--model", help="folder or Hub id, if it is not where it was; default: that of the index")
    parser.add_argument("--device", help="where the model runs; default: cuda if there is one, else cpu")
    parser.add_argument("--engine", help="LanceDB that collap index --engine has filled, which proposes the tracks")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: other machines may ask")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument(
        "--allow_host", nargs="+", default=[], help="names that the server is asked by, if not localhost"
    )
    parser.add_argument("--embedded_in", help="site that may show the page in a frame, such as https://huggingface.co")
    parser.add_argument("--max_upload_mb", type=float, default=50.0, help="of a clip that others are to sound like")


@dataclass(frozen=True)
class Command:
    """A sub-command: what it does, the module whose `run(options)` does it, and what adds its arguments."""

    summary: str
    module: str
    add_arguments: Callable[[Parser], None]
    missing: Callable[[argparse.Namespace], list[str]] = lambda options: []


COMMANDS = {
    "evaluate": Command(
        "measure retrieval of a model on a data set", "collap.evaluation.retrieval", _evaluate, _not_evaluated
    ),
    "precompute": Command(
        "store what the frozen audio encoders make of every song", "collap.data.precompute", _precompute
    ),
    "publish": Command("publish a model, a corpus or a metric on the Hub", "collap.hub.publish", _publish),
    "doctor": Command("say whether a model is healthy", "collap.hub.doctor", _doctor),
    "export": Command("write a model as ONNX graphs or torch.export archives", "collap.hub.export", _export),
    "convert-beats": Command("convert an original BEATs checkpoint", "collap.hub.convert_beats", _convert_beats),
    "convert-model": Command(
        "convert a model folder of an earlier release", "collap.hub.convert_model", _convert_model
    ),
    "corpus render": Command(
        "render songs with captions and section times", "collap.corpora.synthetic.songs", _corpus_render
    ),
    "corpus build": Command(
        "make a data set with sections and long captions of tracks", "collap.corpora.build", _corpus_build
    ),
    "index": Command(
        "index a library of music, to be searched by descriptions", "collap.search.indexing", _index, _not_indexed
    ),
    "search": Command(
        "find music, and its seconds, by a description", "collap.search.searching", _search, _not_searched
    ),
    "duplicates": Command(
        "list tracks of an index that are copies of one recording", "collap.search.duplicates", _duplicates
    ),
    "serve": Command("serve a page and an HTTP API to search an index with", "collap.search.serve.serving", _serve),
    "data check": Command("say what a data set holds, and what of it cannot be used", "collap.data.check", _data_check),
}


def usage(group: str = "") -> str:
    """Return what `collap --help` prints, or of a group of commands, `collap GROUP --help`."""
    named = {name: one for name, one in COMMANDS.items() if not group or name.startswith(f"{group} ")}
    lines = [f"  {name:15} {one.summary}" for name, one in named.items()]
    return "\n".join(["usage: collap COMMAND ...", "", *lines, "", "collap COMMAND --help says what it takes."])


def parser_of(name: str) -> Parser:
    """Return the parser of a command."""
    command = COMMANDS[name]
    parser = Parser(prog=f"collap {name}", description=f"{command.summary[0].upper()}{command.summary[1:]}.")
    command.add_arguments(parser)
    return parser


def parse(name: str, arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command."""
    parser = parser_of(name)
    options = parser.parse_args(arguments)
    if missing := COMMANDS[name].missing(options):
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return options


def _import_module(name: str) -> ModuleType:
    """Import the module of a command, and torch with it. All of that stays, so that no garbage is looked for in it, now
    or later: it took a third of the time until a command begins."""
    module, collects = COMMANDS[name].module, gc.isenabled()
    if module in sys.modules:
        return sys.modules[module]
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def run_command(name: str, arguments: list[str]) -> int:
    """Run a command; return its exit code.

    What a user can do something about is one line on stderr: 1 for what it names, 130 for an interruption.
    """
    options = parse(name, arguments)
    try:
        return _import_module(name).run(options)
    except ModuleNotFoundError as error:
        package = error.name.split(".")[0]
        print(f"error: collap {name} needs {package}: pip install {package}", file=sys.stderr)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Run `collap`, by default with the arguments of the process; return its exit code, 2 for a wrong command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1  # `data check`, or `evaluate`
    name, rest = " ".join(arguments[:words]), arguments[words:]
    if name in COMMANDS:
        return run_command(name, rest)
    is_group = any(command.startswith(f"{name} ") for command in COMMANDS)
    if name in ("", *HELP) or (is_group and (not rest or rest[0] in HELP)):
        print(usage(name if is_group else ""))
        return 0 if {name, *rest} & {*HELP} else 2
    given = " ".join(arguments[:2]) if is_group else name
    print(f"error: {given!r} is no command; {nearest(given, COMMANDS)}\n{usage()}", file=sys.stderr)
    return 2
