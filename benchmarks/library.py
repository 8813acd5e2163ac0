"""Index a library as people have it, disturb it, and search it: what the index promises, on rendered songs.

    python -m benchmarks.library --model runs/demo/collap-gpt2/best --songs data/demo_songs/test

The songs are written in six formats with tags and a few broken files are put among them. Then: an index in one go, one
that is killed (SIGKILL) at random moments, of which all files have to be the same; searches for every song by its whole
description, and for every section by its sentence; a run over the unchanged library, and one after files were moved,
tagged anew, removed and added; a second writer, and searches while another process writes; a byte changed in every file
of the index. Descriptions are without clock times.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mutagen
import numpy as np
import soundfile
from mutagen.id3 import TALB, TCON, TDRC, TIT2, TPE1

from collap.data.sections import without_times
from collap.evaluation.temporal_metrics import best_iou, share_with_interval
from collap.search.index import TrackIndex
from collap.search.queries import find_track
from processing.resample_audio import resample

FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "aiff": "PCM_16", "mp3": None, "ogg": "VORBIS", "opus": "OPUS"}
CONTAINERS = {"opus": "OGG"}
RATES = {"mp3": 44_100, "opus": 48_000}
BLOCK = 2**16  # samples
FRAMES = {"title": TIT2, "artist": TPE1, "album": TALB, "date": TDRC, "genre": TCON}


def encode(song: Path, path: Path, tags: dict[str, str]) -> None:
    """Write a song in the format of a suffix, with tags."""
    samples, rate = soundfile.read(song, dtype="float32")  # (N,)
    kind = path.suffix[1:]
    if RATES.get(kind, rate) != rate:
        samples = np.concatenate([*resample(iter([(0, samples)]), rate, RATES[kind], 0)])
        rate = RATES[kind]
    about = {"format": CONTAINERS.get(kind, kind.upper()), "subtype": FORMATS[kind]}
    with soundfile.SoundFile(path, "w", rate, 1, **about) as file:
        for start in range(0, len(samples), BLOCK):  # Vorbis of libsndfile crashes on long songs at once
            file.write(samples[start : start + BLOCK])
    write_tags(path, tags)


def write_tags(path: Path, tags: dict[str, str]) -> None:
    """Write tags as players do."""
    file = mutagen.File(path, easy=True)
    if file.tags is None:
        file.add_tags()
    for name, text in tags.items():
        if path.suffix in (".wav", ".aiff"):  # ID3 frames in a chunk
            file.tags.add(FRAMES[name](encoding=3, text=[text]))
        else:
            file[name] = [text]
    file.save()


def make_library(folder: Path, songs: Path, rows: list[dict]) -> dict[str, dict]:
    """Write the songs of rows into folders of artists, and three broken files; return the row of every path."""
    made = {}
    for number, row in enumerate(rows):
        suffix = list(FORMATS)[number % len(FORMATS)]
        path = folder / f"Künstler {number % 7}" / f"{number:02d} Lied.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        tags = {"title": row["song_id"], "artist": path.parent.name, "album": "A & B", "date": str(1960 + number)}
        encode(songs / row["file_name"], path, tags)
        made[str(path.relative_to(folder))] = row
    whole = (songs / rows[0]["file_name"]).read_bytes()
    (folder / "half.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp3").write_bytes(b"")
    (folder / "page.ogg").write_text("<html>404</html>")
    return made


def indexing(folder: Path, library: Path, model: Path) -> list[str]:
    return [sys.executable, "-m", "collap", "index", str(library), "--model", str(model), "--index", str(folder)]


def timed(line: list[str]) -> tuple[float, str]:
    """Run a command; return its seconds and what it said."""
    start = time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return round(time.perf_counter() - start, 1), done.stdout


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of all files of an index but its lock, by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def killed(folder: Path, library: Path, model: Path, kills: int, longest: float, chance: random.Random) -> int:
    """Kill a run again and again, each time at a random moment of the first third of `longest` seconds, as what was
    done before need not be done again; return how many were killed."""
    done = 0
    for _ in range(kills):
        process = subprocess.Popen(
            indexing(folder, library, model), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(chance.uniform(0, longest / 3))
        except subprocess.TimeoutExpired:
            process.kill()
            done += 1
        process.wait()
    timed(indexing(folder, library, model))
    return done


def found(folder: Path, rows: dict[str, dict]) -> dict[str, dict]:
    """Search for songs and for sections; shares in percent with 95 % bootstrap intervals by song."""
    index, first, placed, pointed, owner = TrackIndex.open(folder), [], [], [], []
    for song, (path, row) in enumerate(rows.items()):
        lines = [without_times(line) for line in row["captions"][0].split("\n")]
        text = "\n".join(lines)
        first.append(index.search(text, k=1)[0].path == path)
        track = find_track(index.store, path)
        heard = index.moments(track, text)["sentences"][-len(row["sections"]) :]
        for section, span, line in zip(row["sections"], heard, lines[1:], strict=True):
            true = np.array([[section["start"], section["end"]]])
            placed.append(best_iou(np.array([[span.start, span.end]]), true)[0] >= 0.5)
            best = index.moments(track, line)["spans"][0]
            pointed.append(section["start"] <= (best.start + best.end) / 2 < section["end"])
            owner.append(song)
    return {
        "song first by its whole description": share_with_interval(first, range(len(first))),
        "section placed by it, IoU at least 0.5": share_with_interval(placed, owner),
        "best span of a section's sentence has its middle in the section": share_with_interval(pointed, owner),
    }


def updates(folder: Path, library: Path, model: Path, rows: dict[str, dict]) -> dict[str, dict]:
    """Time a run over an unchanged library, and one after changes."""
    report = {"unchanged": timed(indexing(folder, library, model))[0]}
    names = sorted(rows)
    (library / "Moved").mkdir()
    for name in names[:5]:
        shutil.move(library / name, library / "Moved" / f"{Path(name).stem} again{Path(name).suffix}")
    for name in names[5:10]:
        write_tags(library / name, {"album": "New"})
    for name in names[10:15]:
        (library / name).unlink()
    report["5 moved, 5 tagged anew, 5 removed"], said = timed(indexing(folder, library, model))
    report["which said"] = said.splitlines()[0].split(": ", 1)[1]
    return report


def writers_and_readers(folder: Path, library: Path, model: Path, new: list[Path]) -> dict[str, object]:
    """Add songs while another process wants to write, and while this one searches what it has opened."""
    index = TrackIndex.open(folder)
    path = index.store.path(0)
    before = [(hit.path, hit.score) for hit in index.search(like=path, k=10)]
    for one in new:
        shutil.copy(one, library)
    settings = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    writer = subprocess.Popen(indexing(folder, library, model), **settings)
    said, same = [], []
    while writer.poll() is None:
        second = subprocess.run(indexing(folder, library, model), capture_output=True, text=True)
        if second.returncode:
            said.append(second.stderr.strip().splitlines()[-1])
        same.append([(hit.path, hit.score) for hit in index.search(like=path, k=10)] == before)
    if writer.returncode:  # it was the second to begin
        said.append(writer.stderr.read().strip().splitlines()[-1])
    refused = {"second writer refused": len(said), "it said": said[-1:]}
    return {"added": len(new), **refused, "searches meanwhile the same": all(same)}


def damages(folder: Path, chance: random.Random) -> str:
    """Change one byte of every file of an index; return of how many `--verify` named the file."""
    named, files = 0, sorted(name for name in files_of(folder) if not name.startswith("pending"))
    for name in files:
        path = folder / name
        good = path.read_bytes()
        place = chance.randrange(len(good))
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        line = [sys.executable, "-m", "collap", "index", "--verify", "--index", str(folder)]
        done = subprocess.run(line, capture_output=True, text=True)
        named += done.returncode == 1 and Path(name).name in done.stderr
        path.write_bytes(good)
    return f"{named} of {len(files)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--songs", type=Path, required=True, help="a folder with a metadata.jsonl that has sections")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    rows = [json.loads(line) for line in (options.songs / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as place:
        library, whole, other = (Path(place) / name for name in ("library", "whole", "other"))
        made = make_library(library, options.songs, rows[: options.count])
        seconds, said = timed(indexing(whole, library, options.model))
        report = {"songs": len(made), "seconds to index": seconds, "said": said.splitlines()}
        report["killed"] = killed(other, library, options.model, options.kills, seconds, chance)
        report["same bytes after the kills"] = files_of(other) == files_of(whole)
        report["found, %"] = found(whole, made)
        report["seconds to update"] = updates(whole, library, options.model, made)
        new = [options.songs / row["file_name"] for row in rows[options.count :]]
        report |= writers_and_readers(whole, library, options.model, new)
        report["changed bytes noticed and named, files"] = damages(whole, chance)
    print(json.dumps(report, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
