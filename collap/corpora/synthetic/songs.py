"""Songs with known structure, composed, rendered and written to disk as a `datasets` audiofolder.

    collap corpus render FOLDER --train 400 --validation 50 --test 100 --seed 0

No recording is needed: a song is a `Song` (tempo, key, sections with their instruments), drawn from a seed, and
everything that a caption says about it is a field of that `Song` which `render_song` turns into sound. Section times
are exact.
"""

import functools
import glob
import json
import math
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from collap.files import replace_text, write_json

from .captions import long_caption, short_caption
from .composition import DYNAMICS_DB, Section, Song, check_seconds, compose_song
from .parts import Note, instrument_part, leads_solo
from .voices import DRUM_SECONDS, INSTRUMENTS

GENERATOR_VERSION = 1  # raise it whenever any synthetic_* file gives other audio or captions for the same seed
SPLITS = ("train", "validation", "test")  # the names that audiofolder recognises as splits
LOOP_BARS = 8  # a section repeats its first eight bars: two rounds of the chords, each with its own melody
SOLO_GAIN = 1.6  # of the instrument that leads a solo


# --------------------------------------------------------------------------------------------------------------------
# Rendering


@functools.lru_cache(maxsize=512)
def _render_note(name: str, midi: int, num_samples: int, rate: int) -> np.ndarray:
    note = INSTRUMENTS[name].voice(midi, num_samples, rate).astype(np.float32, copy=False)
    note.flags.writeable = False
    return note


def _render_part(name: str, notes: list[Note], beat_samples: float, num_samples: int, rate: int) -> np.ndarray:
    """Return one instrument alone, (num_samples,), RMS 1."""
    stem = np.zeros(num_samples, dtype=np.float32)
    for note in notes:
        start = round(note.start * beat_samples)
        seconds = DRUM_SECONDS[note.midi] if name == "drums" else None
        length = round(seconds * rate) if seconds else round(note.beats * INSTRUMENTS[name].held * beat_samples)
        target = stem[start : start + length]
        target += note.velocity * _render_note(name, note.midi, length, rate)[: len(target)]
    return stem / math.sqrt(float(np.dot(stem, stem)) / num_samples)


def _render_section(song: Song, section: Section, num_samples: int, rate: int) -> np.ndarray:
    """Return one section, (num_samples,), at the RMS of its dynamics; its end is faded, so that nothing rings on."""
    beat_samples = 60.0 / song.tempo_bpm * rate
    num_bars = round((section.end - section.start) / song.bar_seconds)
    loop_bars = min(LOOP_BARS, num_bars)
    loop_samples = loop_bars * song.meter * beat_samples
    loop = np.zeros(math.ceil(loop_samples), dtype=np.float32)
    for name in section.instruments:
        gain = INSTRUMENTS[name].gain * (SOLO_GAIN if leads_solo(section, name) else 1)
        notes = instrument_part(song, section, name, loop_bars)
        loop += gain * _render_part(name, notes, beat_samples, len(loop), rate)
    loop *= 10 ** (DYNAMICS_DB[section.dynamics] / 20) / math.sqrt(float(np.dot(loop, loop)) / len(loop))
    audio = np.zeros(num_samples, dtype=np.float32)
    for repeat in range(math.ceil(num_bars / loop_bars)):
        target = audio[round(repeat * loop_samples) :][: len(loop)]
        target[:] = loop[: len(target)]
    fade = min(num_samples, rate // 100)
    audio[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return audio


def _limit(audio: np.ndarray) -> np.ndarray:
    """Apply a soft knee above 0.6, in place, so that the peaks of loud drums stay below 0.98."""
    over = np.flatnonzero(np.abs(audio) > 0.6)
    peaks = audio[over]
    audio[over] = np.sign(peaks) * (0.6 + 0.38 * np.tanh((np.abs(peaks) - 0.6) / 0.38))
    return audio


def check_sampling_rate(sampling_rate: int) -> None:
    """Raise ValueError below 8000 Hz, where the voices lose what tells them apart."""
    if sampling_rate < 8000:
        raise ValueError(
            f"sampling_rate is {sampling_rate}; the voices need 8000 or more. Render at 16000 and resample."
        )


def render_song(song: Song, sampling_rate: int = 16000) -> np.ndarray:
    """Turn a song into sound.

    Args:
        song: from `compose_song`, or put together by hand.
        sampling_rate: samples per second, 8000 or more.

    Returns:
        float32, (round(song.seconds * sampling_rate),), mono, inside (-1, 1). The same song gives the same samples.

    Raises:
        ValueError: a section names an instrument, or the call a rate, that cannot be rendered.
    """
    check_sampling_rate(sampling_rate)
    unknown = {name for section in song.sections for name in section.instruments} - set(INSTRUMENTS)
    if unknown:
        known = ", ".join(INSTRUMENTS)
        raise ValueError(f"song {song.song_id!r} names unknown instruments {sorted(unknown)}; known: {known}.")
    audio = np.zeros(round(song.seconds * sampling_rate), dtype=np.float32)
    for section in song.sections:
        start, end = round(section.start * sampling_rate), round(section.end * sampling_rate)
        audio[start:end] = _render_section(song, section, len(audio[start:end]), sampling_rate)
    return _limit(audio)


# --------------------------------------------------------------------------------------------------------------------
# The corpus on disk


def _metadata_row(song: Song, captions_per_song: int) -> dict:
    sections = [{name: value for name, value in asdict(s).items() if name != "chords"} for s in song.sections]
    return {
        "file_name": f"{song.song_id}.flac",
        "song_id": song.song_id,
        "captions": [long_caption(song, variant) for variant in range(captions_per_song)],
        "short_captions": [short_caption(song, variant) for variant in range(captions_per_song)],
        "seconds": song.seconds,
        "tempo_bpm": song.tempo_bpm,
        "key": song.key,
        "mode": song.mode,
        "sections": sections,
    }


def _write_song(folder: Path, settings: dict, song_id: str) -> dict:
    """Render one song to folder/<song_id>.flac (16 bit) and return its metadata row."""
    song = compose_song(song_id, settings["seed"], settings["min_seconds"], settings["max_seconds"])
    samples = (render_song(song, settings["sampling_rate"]) * 32767).astype(np.int16)
    soundfile.write(folder / f"{song_id}.flac", samples, settings["sampling_rate"])
    return _metadata_row(song, settings["captions_per_song"])


def _write_split(folder: Path, split: str, settings: dict, num_workers: int) -> None:
    folder = folder / split
    folder.mkdir()
    song_ids = [f"{split}-{number:04d}" for number in range(1, settings["num_songs"][split] + 1)]
    write = functools.partial(_write_song, folder, settings)
    progress = functools.partial(tqdm, total=len(song_ids), desc=f"rendering {split}", unit="song")
    if num_workers == 1:
        rows = list(progress(map(write, song_ids)))
    else:
        with ProcessPoolExecutor(num_workers) as pool:
            rows = list(progress(pool.map(write, song_ids)))
    replace_text(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _is_complete(folder: Path, settings: dict) -> bool:
    """Tell whether `folder` holds the corpus of these settings; ValueError if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / "corpus.json").is_file():
        raise ValueError(f"{folder} exists but holds no corpus.json: it is no corpus built here. Name another folder.")
    found = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    names = [name for name in {**settings, **found} if settings.get(name) != found.get(name)]
    if names:
        differences = "; ".join(f"{name} is {found.get(name)!r}, asked for {settings.get(name)!r}" for name in names)
        raise ValueError(f"{folder} holds a corpus of other settings: {differences}. Name another folder or delete it.")
    return True


def _report_leftovers(folder: Path) -> None:
    """Name what killed builds left behind. It stays: it may also belong to a process that is building right now."""
    for leftover in sorted(folder.parent.glob(f"{glob.escape(folder.name)}.partial-*")):
        print(
            f"{leftover} is an unfinished build of {folder}; delete it unless another process is writing it.",
            file=sys.stderr,
        )


def _check_settings(settings: dict, num_workers: int) -> None:
    check_seconds(settings["min_seconds"], settings["max_seconds"])
    check_sampling_rate(settings["sampling_rate"])
    wrong = [name for name in settings["num_songs"] if name not in SPLITS]
    if wrong or not settings["num_songs"]:
        raise ValueError(f"num_songs names the splits {wrong}; expected one or more of {', '.join(SPLITS)}.")
    counts = {f"num_songs[{split!r}]": count for split, count in settings["num_songs"].items()}
    for name, count in {
        **counts,
        "captions_per_song": settings["captions_per_song"],
        "num_workers": num_workers,
    }.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, expected 1 or more.")


def build_corpus(
    folder: str | Path,
    num_songs: dict[str, int] | None = None,
    seed: int = 0,
    min_seconds: float = 60.0,
    max_seconds: float = 300.0,
    num_workers: int = 2,
    sampling_rate: int = 16000,
    captions_per_song: int = 3,
) -> Path:
    """Write a corpus in the layout of the audiofolder of `datasets`, and return its folder.

    `collap.data.sources.open_dataset(folder, split, text_column="captions")` reads it.
    `datasets.load_dataset("audiofolder", data_dir=folder)` does too, but needs torchcodec with a system FFmpeg, even
    where nothing is decoded; `load_dataset("json")` reads each metadata.jsonl without.

    Per split: `<song_id>.flac` (mono, 16 bit) and `metadata.jsonl` with `file_name, song_id, captions, short_captions,
    seconds, tempo_bpm, key, mode, sections`. `folder/corpus.json` holds the settings. A corpus with the same settings
    is returned as it is. Songs are written to `<folder>.partial-*`, which is renamed when all are there: a killed
    build leaves that, never `folder`, and the next build names it on stderr. Audio and captions depend on the seed,
    not on `num_workers`.

    Args:
        num_songs: split ("train", "validation", "test") -> number of songs; 400, 50 and 100 if None.

    Raises:
        ValueError: settings that cannot be met, or a `folder` that holds something else (the message names it).
    """
    folder = Path(folder)
    settings = {
        "generator_version": GENERATOR_VERSION,
        "num_songs": dict(num_songs) if num_songs is not None else {"train": 400, "validation": 50, "test": 100},
        "seed": seed,
        "min_seconds": min_seconds,
        "max_seconds": max_seconds,
        "sampling_rate": sampling_rate,
        "captions_per_song": captions_per_song,
    }
    _check_settings(settings, num_workers)
    if _is_complete(folder, settings):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    _report_leftovers(folder)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        for split in settings["num_songs"]:
            _write_split(partial, split, settings, num_workers)
        write_json(partial / "corpus.json", settings)
        if not _is_complete(folder, settings):  # another process may have finished the same build meanwhile
            partial.chmod(0o755)  # mkdtemp makes it private
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def run(options) -> int:
    """Do `collap corpus render`; return its exit code."""
    settings = vars(options)
    num_songs = {split: settings.pop(split) for split in SPLITS}
    try:
        build_corpus(num_songs={split: count for split, count in num_songs.items() if count != 0}, **settings)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
