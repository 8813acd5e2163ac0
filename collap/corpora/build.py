"""Make a data set of tracks: collect, measure, find sections, describe, check, write: `collap corpus build`.

Each track is decoded once, in one of several processes, and is kept on the disk when it is done (`state.py`); a run
that was killed, at whatever moment, goes on and makes the same bytes. Captioners with weights run in the main process,
a block of tracks at a time. Only at the end, when all tracks are done, are copies left out and shards written.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from collap.data.audio_parts import file_of
from collap.data.rows import content_digest
from collap.data.shares import Shard, parse_shard
from collap.files import replace_file, write_json

from .asking import Asking
from .captioners import Captioner, load_captioner, load_prompts, load_rewriter
from .card import built_card
from .collect import Limits
from .hearing import probe_captioner
from .listening import WITHOUT_WEIGHTS, Listening, hear, mapping
from .listing import read_tracks
from .report import add_table, draw_histograms, histogram_values, make_report, report_lines
from .rewriting import Rewriter
from .scores import Scorer, load_scorer
from .selection import checked_captions, select, usable_captions
from .song_picture import draw_song
from .state import State
from .tracks import Track
from .write import write_data

BLOCK = 8  # tracks that are described together by a captioner with weights, always the same ones
LONGEST_WAIT = timedelta(days=30)  # of processes for one another


def settings_of(options, limits: Limits) -> dict:
    """Return what decides what is made of a track, for [`State`] and the report."""
    prompts = json.dumps(load_prompts(options.prompts), sort_keys=True)
    names = ("split", "dataset_config", "captioner", "audio", "seed", "temperature", "names_sections", "window_seconds")
    return {
        "source": Path(options.source).name or options.source,
        **{name: getattr(options, name) for name in names},
        **asdict(limits),
        "annotations": options.annotations and options.annotations.name,
        "dtype": options.dtype,
        "prompts": hashlib.sha256(prompts.encode()).hexdigest()[:12],
        "rewriter": options.rewriter,
        "score_model": options.score_model,
    }


def list_tracks(options, state_folder: Path) -> Iterator[Track]:
    """List the tracks of the source; bytes of a table are written beside the state."""
    for track in read_tracks(options.source, options.split, options.dataset_config, state_folder / "given"):
        track.listing = listing_digest(track)
        yield track


def listing_digest(track: Track) -> str:
    """Return a digest of what is listed of a track and of the size of its file; not of where it lies."""
    size = os.path.getsize(file) if os.path.isfile(file := file_of(track.audio)) else None
    said = {**track.to_json(), "audio": os.path.basename(track.audio), "origin": "", "size": size}
    return content_digest(json.dumps(said, sort_keys=True, default=str).encode())


@dataclass
class WithWeights:
    """Hold the models that run in the main process: captioners, or the user's own; what rewrites; what scores."""

    captioners: Sequence[Captioner] = ()
    rewriter: Rewriter | None = None
    scorer: Scorer | None = None


def load_with_weights(options, device: str) -> WithWeights:
    """Load the models that options name."""
    asking = Asking(options.seed, options.batch_size, options.temperature)
    common = {"device": device, "dtype": options.dtype, "prompts": options.prompts, "asking": asking}
    common["trust_remote_code"] = options.trust_remote_code
    named = [spec for spec in options.captioner if spec not in WITHOUT_WEIGHTS]
    return WithWeights(
        [load_captioner(spec, names_sections=options.names_sections, **common) for spec in named],
        load_rewriter(options.rewriter, **common) if options.rewriter else None,
        load_scorer(options.score_model, device) if options.score_model else None,
    )


# ---- every track


def pending(tracks: Iterable[Track], state: State, shard: Shard, block: int) -> Iterator[tuple[int, Track]]:
    """Yield the number of its block, and the track, of those blocks of a part in which one is not done."""
    tracks = iter(tracks)
    for number in itertools.count():
        group = list(itertools.islice(tracks, block))
        if not group:
            return
        if shard.has(number) and not all(map(state.has, group)):
            yield from ((number, track) for track in group)


def _hear_one(state: State, settings: Listening, item: tuple[int, Track]) -> tuple[int, Track, np.ndarray | None]:
    return item[0], *hear(item[1], state, settings)


def describe_block(heard: list[tuple[Track, np.ndarray | None]], models: WithWeights, state: State) -> None:
    """Let models describe the tracks of a block that are kept, rewrite and score what was said, and save them."""
    kept = [(track, samples) for track, samples in heard if samples is not None]
    tracks, samples = [track for track, _ in kept], [samples for _, samples in kept]
    for captioner in models.captioners if kept else ():
        for track, caption in zip(tracks, captioner.describe(tracks, samples), strict=True):
            track.captions.append(caption)
    for track, captions in zip(tracks, models.rewriter.rewrite(tracks), strict=True) if models.rewriter else ():
        track.captions += captions
    for track, sound in kept if models.scorer else ():
        said = [(caption, text) for caption, text, _ in checked_captions(track) if text]
        for (caption, _), score in zip(said, models.scorer.scores(sound, [text for _, text in said]), strict=True):
            caption.score = score
    for track, sound in heard:
        if sound is not None:
            state.save(track)


class Progress:
    """Show how many tracks are done, and how many hours of audio in an hour."""

    def __init__(self, total: int):
        self.bar = tqdm(total=total, desc="tracks", unit="track", disable=None)
        self.started, self.heard = time.monotonic(), 0.0

    def add(self, track: Track) -> None:
        """Count a track that is done."""
        self.heard += track.measures.get("heard_seconds", 0.0)
        self.bar.set_postfix_str(f"{self.speed():.0f} h of audio an hour", refresh=False)
        self.bar.update()

    def speed(self) -> float:
        """Return the hours of audio that are heard in an hour."""
        return self.heard / max(time.monotonic() - self.started, 1e-9)


def do_tracks(
    items: Iterable[tuple[int, Track]],
    state: State,
    settings: Listening,
    models: WithWeights,
    progress: Progress,
    num_workers: int,
) -> None:
    """Take tracks through every stage that needs their sound.

    Args:
        models: those that run here.
    """
    with mapping(num_workers) as map_in_order:
        results = map_in_order(functools.partial(_hear_one, state, settings), items)
        for _, group in itertools.groupby(results, key=lambda result: result[0]):
            heard = []
            for _, track, samples in group:
                heard.append((track, samples))
                if samples is None:
                    progress.add(track)
            if settings.hand_over:
                describe_block(heard, models, state)
                for track, samples in heard:
                    if samples is not None:
                        progress.add(track)


def probe(captioners: Sequence[Captioner], seconds: float, state: State) -> None:
    """Say, once, whether captioners hear a track to its end."""
    path = state.folder / "hearing.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for captioner in captioners:
        if captioner.name not in known:
            known[captioner.name] = str(probe_captioner(captioner, seconds) or "was not probed")
            state.share("hearing.json", known)
        print(f"{captioner.name}: {known[captioner.name]}", file=sys.stderr)


# ---- the whole


def build(options) -> dict | None:
    """Make the data set, or a part of its tracks; return its report, None after a part.

    Raises:
        OSError, ValueError: of the source, the settings or a model; one line.
    """
    limits = _limits(options)
    _check(options)
    shard, settings, out = parse_shard(options.shard), settings_of(options, limits), Path(options.out)
    _check_out(out)
    process = _process()
    with process.main_process_first() if process else contextlib.nullcontext():  # it writes what a table holds
        names = [track.id for track in list_tracks(options, out / "work")]
        state = State(out / "work", settings)
    listening = _listening(options, limits)
    part = shard.part(process.process_index, process.num_processes) if process else shard
    block = BLOCK if listening.hand_over else 1
    items = list(pending(list_tracks(options, out / "work"), state, part, block))
    if items:
        device = options.device or str(process.device if process else _device())
        models = load_with_weights(options, device)
        probe(models.captioners, limits.max_seconds, state)
        progress = Progress(len(items))
        do_tracks(items, state, listening, models, progress, options.num_workers or len(os.sched_getaffinity(0)))
        progress.bar.close()
        print(
            f"heard {progress.heard / 3600:.2f} hours of audio, {progress.speed():.0f} hours an hour", file=sys.stderr
        )
    if process:
        process.wait_for_everyone()
        process.destroy_process_group()
    if shard.count > 1:
        print(f"part {options.shard} is done; when all are, the same command without --shard writes the data set")
        return None
    return finish(out, state, names, options, settings) if process is None or process.is_main_process else None


def finish(out: Path, state: State, names: list[str], options, settings: dict) -> dict:
    """Choose among the tracks, and write the data set, its figures, report and card."""
    chosen = select(state, names, options.against, options.validation, options.seed, options.drop_worst)
    if not chosen.splits:
        reasons = "; ".join(dict.fromkeys(said.partition(":")[0] for said in chosen.dropped.values()))
        raise ValueError(f"{options.source}: none of {len(names)} tracks is kept ({reasons})")
    more = {name: getattr(options, name) for name in ("validation", "against", "drop_worst")}
    report = make_report(state, names, chosen, {**settings, **more})
    write_data(out / "data", state, chosen, options.audio == "embed")
    table = add_table(report, out / "data", options.tokenizer)
    hears = state.folder / "hearing.json"
    report["hearing"] = json.loads(hears.read_text(encoding="utf-8")) if hears.is_file() else {}
    (out / "figures").mkdir(exist_ok=True)
    values = histogram_values(state, chosen)
    replace_file(out / "figures" / "histograms.png", lambda path: draw_histograms(path, values))
    first = state.load(next(iter(chosen.splits)))
    caption, text, _ = usable_captions(first, chosen.least_score)[0]
    replace_file(out / "figures" / "song.png", lambda path: draw_song(path, first, caption, text))
    card = built_card(report, out.name, options.license)
    replace_file(out / "README.md", card.save)
    write_json(out / "report.json", report)
    print("\n".join(report_lines(report, table)))
    return report


def _limits(options) -> Limits:
    """Return which tracks are kept."""
    return Limits(
        options.min_seconds,
        options.max_seconds,
        options.longer,
        options.crop_from,
        options.max_silent,
        options.max_clipped,
        options.music_only,
    )


def _listening(options, limits: Limits) -> Listening:
    """Return what is done to a track where it is decoded."""
    return Listening(
        limits,
        options.annotations,
        tuple(spec for spec in options.captioner if spec in WITHOUT_WEIGHTS),
        options.seed,
        options.window_seconds,
        options.audio == "embed",
        bool(options.score_model or options.rewriter) or not set(options.captioner) <= set(WITHOUT_WEIGHTS),
    )


def _check(options) -> None:
    """Raise a ValueError for options that cannot be met."""
    if not 0 <= options.validation < 1:
        raise ValueError(f"--validation {options.validation:g}: expected a share from 0 to below 1")
    if not 0 <= options.drop_worst < 1 or bool(options.drop_worst) != bool(options.score_model):
        raise ValueError(
            "--score_model and --drop_worst go together; expected a share from 0 to below 1 for the latter"
        )
    if options.num_workers is not None and options.num_workers < 1:
        raise ValueError(f"--num_workers {options.num_workers}: expected 1 or more")


def _check_out(out: Path) -> None:
    """Raise a ValueError if the folder holds something else."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "work").is_dir())):
        raise ValueError(f"{out} exists and was not made by this command; name another folder")


def _process():
    """Return the state of one of several processes that Accelerate has started; None of one that runs alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return None
    import torch
    from accelerate import PartialState

    process = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    if process.num_processes < 2:  # each would do all of it, and write the same files
        raise ValueError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but Accelerate knows of one process only")
    return process


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def run(options) -> int:
    """Do `collap corpus build`; return its exit code."""
    build(options)
    return 0
