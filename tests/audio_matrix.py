"""Make audio files with every encoder that is there and compare what is read of them with libsndfile's or FFmpeg's own
samples: whole files, and random spans.

    PYTHONPATH=. python tests/audio_matrix.py --spans 12

libsndfile and PyAV's encoders are always there; oggenc, lame, opusenc and ffmpeg are used if they are installed. Prints
the table of docs/audio.md; ends with 1 if a file is not read as it should be.
"""

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

from collap.corpora.synthetic.songs import compose_song, render_song
from processing.decode_audio import AudioFileError, header_seconds, load_audio

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
SONG = compose_song("matrix", 0, 30.0, 40.0)
# name: suffix, libsndfile's format and subtype
SNDFILE = {
    "wav, 16 bit": ("wav", "WAV", "PCM_16"),
    "wav, 24 bit": ("wav", "WAVEX", "PCM_24"),
    "wav, float": ("wav", "WAV", "FLOAT"),
    "wav, mu-law": ("wav", "WAV", "ULAW"),
    "wav, IMA ADPCM": ("wav", "WAV", "IMA_ADPCM"),
    "wav, MS ADPCM": ("wav", "WAV", "MS_ADPCM"),
    "aiff": ("aiff", "AIFF", "PCM_16"),
    "aifc, IMA ADPCM": ("aifc", "AIFF", "IMA_ADPCM"),
    "caf, ALAC": ("caf", "CAF", "ALAC_16"),
    "w64": ("w64", "W64", "PCM_16"),
    "rf64": ("wav", "RF64", "PCM_16"),
    "au": ("au", "AU", "PCM_16"),
    "flac (libFLAC)": ("flac", "FLAC", "PCM_16"),
    "ogg, Vorbis (libsndfile)": ("ogg", "OGG", "VORBIS"),
}
# name: suffix, container, encoder, its sample format, its only rate
PYAV = {
    "flac (FFmpeg)": ("flac", "flac", "flac", "s16", None),
    "ogg, FLAC": ("oga", "ogg", "flac", "s16", None),
    "ogg, Vorbis (FFmpeg)": ("ogg", "ogg", "vorbis", "fltp", None),
    "mp3 (libmp3lame)": ("mp3", "mp3", "libmp3lame", "fltp", None),
    "ogg, Opus": ("opus", "ogg", "libopus", "flt", 48000),
    "webm, Opus": ("webm", "webm", "libopus", "flt", 48000),
    "m4a, AAC": ("m4a", "ipod", "aac", "fltp", None),
    "m4a, ALAC": ("m4a", "ipod", "alac", "s16p", None),
    "aac (adts)": ("aac", "adts", "aac", "fltp", None),
    "mkv, AAC": ("mkv", "matroska", "aac", "fltp", None),
    "wma": ("wma", "asf", "wmav2", "fltp", None),
    "ac3": ("ac3", "ac3", "ac3", "fltp", 48000),
    "mp4, AC-3": ("mp4", "mp4", "ac3", "fltp", 44100),
    "wav, G.722": ("wav", "wav", "adpcm_g722", "s16", None),
    "wav, Yamaha ADPCM": ("wav", "wav", "adpcm_yamaha", "s16", None),
    "mov, IMA ADPCM": ("mov", "mov", "adpcm_ima_qt", "s16p", None),
}
# name: suffix, program and arguments; {wav} and {out} are files
PROGRAMS = {
    "ogg, Vorbis (oggenc -q -1)": ("ogg", "oggenc -Q -q -1 {wav} -o {out}"),
    "ogg, Vorbis (oggenc -q 6)": ("ogg", "oggenc -Q -q 6 {wav} -o {out}"),
    "mp3 (lame -V 5)": ("mp3", "lame --quiet -V 5 {wav} {out}"),
    "mp3 (lame -b 64, no header)": ("mp3", "lame --quiet -t -b 64 {wav} {out}"),
    "mp3 (lame, free format)": ("mp3", "lame --quiet --freeformat -b 400 {wav} {out}"),
    "ogg, Opus (opusenc 8 kbit/s)": ("opus", "opusenc --quiet --bitrate 8 {wav} {out}"),
    "ogg, Opus (opusenc)": ("opus", "opusenc --quiet {wav} {out}"),
    "mp2 (ffmpeg)": ("mp2", "ffmpeg -v error -y -i {wav} -c:a mp2 {out}"),
    "wv (ffmpeg)": ("wv", "ffmpeg -v error -y -i {wav} {out}"),
    "tta (ffmpeg)": ("tta", "ffmpeg -v error -y -i {wav} {out}"),
    "eac3 (ffmpeg)": ("eac3", "ffmpeg -v error -y -i {wav} {out}"),
    "webm, Vorbis (ffmpeg)": ("webm", "ffmpeg -v error -y -i {wav} -c:a libvorbis {out}"),
    "ts, AAC (ffmpeg)": ("ts", "ffmpeg -v error -y -i {wav} -c:a aac {out}"),
    "wav to a pipe (ffmpeg)": ("wav", "ffmpeg -v error -y -i {wav} -f wav pipe:1"),
}
SHAPES = [(8000, 1), (16000, 1), (22050, 2), (44100, 2), (48000, 6), (48000, 8)]
SNDFILE_FIRST = (b"RIFF", b"FORM", b"riff", b"caff", b".snd", b"RF64", b"fLaC")


@dataclass
class Result:
    """What was found of one file; the problem is an empty string if there is none."""

    kind: str
    problem: str
    difference: float = 0.0
    span_share: float = 0.0


def signal(kind: str, rate: int, channels: int, seconds: float) -> np.ndarray:
    """Return (N, C) float32: rendered music with drums, bursts of vowels with pauses, or silence; channels differ."""
    length = round(rate * seconds)
    clock = np.arange(length) / rate
    if kind == "music":
        mono = np.resize(render_song(SONG, rate)[4 * rate :], length)
    elif kind == "speech":
        pitch = np.cumsum(110 + 25 * np.sin(2 * np.pi * 0.7 * clock)) / rate
        formants = sum(np.sin(2 * np.pi * pitch * harmonic) / harmonic for harmonic in range(1, 12))
        mono = 0.15 * formants * (np.sin(2 * np.pi * 2.3 * clock) > 0.1)
    else:
        mono = np.zeros(length)
    shifted = [np.roll(mono, 37 * channel) * (0.9 - 0.08 * channel) for channel in range(channels)]
    return np.stack(shifted, axis=1).astype(np.float32)


def encode_pyav(path: Path, samples: np.ndarray, rate: int, container: str, codec: str, sample_format: str) -> None:
    """Write (N, C) samples with an encoder that PyAV ships."""
    layout = LAYOUTS[samples.shape[1]]
    with av.open(path, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout, options={"strict": "-2"})
        stream.codec_context.format = sample_format
        resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate)
        for start in range(0, len(samples), 4096):
            block = np.ascontiguousarray(samples[start : start + 4096]).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for converted in resampler.resample(frame):
                file.mux(stream.encode(converted))
        file.mux(stream.encode(None))


def encode(kind: str, path: Path, samples: np.ndarray, rate: int) -> bool:
    """Write a file; False where the encoder is not there or does not take this rate or number of channels."""
    try:
        if kind in SNDFILE:
            soundfile.write(path, samples, rate, format=SNDFILE[kind][1], subtype=SNDFILE[kind][2])
        elif kind in PYAV:
            encode_pyav(path, samples, rate, *PYAV[kind][1:4])
        else:
            command = PROGRAMS[kind][1].split()
            if shutil.which(command[0]) is None:
                return False
            wav = path.with_suffix(".source.wav")
            soundfile.write(wav, samples, rate, subtype="PCM_16")
            command = [word.format(wav=wav, out=path) for word in command]
            done = subprocess.run(command, capture_output=True, check=True)
            if "pipe:1" in command:
                path.write_bytes(done.stdout)
        return path.stat().st_size > 0
    except (av.error.FFmpegError, soundfile.LibsndfileError, subprocess.CalledProcessError, ValueError):
        return False


def reference(path: Path) -> tuple[np.ndarray, int] | None:
    """Return (N,) and the rate as libsndfile reads the whole file from its start, or FFmpeg; None if neither does."""
    with open(path, "rb") as file:
        head = file.read(36)
    if head[:4] in SNDFILE_FIRST or b"vorbis" in head:
        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            return samples.mean(axis=1), rate
        except soundfile.LibsndfileError:
            pass
    try:
        with av.open(path) as container:
            resampler, parts, rate = av.AudioResampler(format="flt"), [], None
            for frame in container.decode(container.streams.audio[0]):
                rate = rate or frame.sample_rate
                for packed in resampler.resample(frame):
                    parts.append(packed.to_ndarray().reshape(-1, packed.layout.nb_channels).mean(axis=1))
        return np.concatenate(parts), rate
    except av.error.FFmpegError:
        try:  # a free-format mp3
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            return None
        return samples.mean(axis=1), rate


def compare(kind: str, path: Path, length: int, spans: int, generator: np.random.Generator) -> Result | None:
    """Compare a file of `length` samples, and `spans` random spans of it, with the reference; None without one."""
    played = reference(path)
    if played is None:
        return None
    expected, rate = played
    try:
        started = time.perf_counter()
        whole = load_audio(path, rate)
        whole_seconds = time.perf_counter() - started
        if len(whole) != length and abs(len(whole) - len(expected)) > 0.05 * rate:  # FFmpeg keeps padding of m4a
            return Result(kind, f"{len(whole)} samples, expected {len(expected)}")
        shared = min(len(whole), len(expected))
        difference = float(np.abs(whole[:shared] - expected[:shared]).max(initial=0.0))
        if difference > 1e-4:
            return Result(kind, f"differs by {difference:.1e}", difference)
        if abs(header_seconds(path) - len(whole) / rate) > 0.1:
            return Result(kind, f"header_seconds {header_seconds(path):.3f}, is {len(whole) / rate:.3f}", difference)
        bases = {rate: whole, 16000: load_audio(path, 16000)}
        for index in range(spans):
            asked = (rate, 16000)[index % 2]
            start = int(generator.integers(0, max(len(bases[asked]) - 10, 1)))
            stop = start + int(generator.integers(1, 2 * asked))
            span = load_audio(path, asked, start / asked, stop / asked)
            if not np.array_equal(span, bases[asked][start:stop]):
                return Result(kind, f"span {start}..{stop} at {asked} Hz is not the slice", difference)
        started = time.perf_counter()
        load_audio(path, rate, start=max(len(whole) / rate - 0.5, 0.0))
        return Result(kind, "", difference, (time.perf_counter() - started) / whole_seconds)
    except AudioFileError as error:
        return Result(kind, str(error))


def run(kinds, shapes, sounds, lengths, spans: int, folder: Path) -> list[Result]:
    """Make and compare all files of a grid; a kind whose encoder has one rate gets that."""
    results, generator = [], np.random.default_rng(0)
    for kind in kinds:
        suffix = (SNDFILE.get(kind) or PYAV.get(kind) or PROGRAMS[kind])[0]
        only_rate = PYAV[kind][4] if kind in PYAV else None
        grid = itertools.product(shapes, sounds, lengths)
        cells = {(only_rate or rate, channels, sound, seconds) for (rate, channels), sound, seconds in grid}
        for rate, channels, sound, seconds in sorted(cells):
            path, samples = folder / f"song.{suffix}", signal(sound, rate, channels, seconds)
            if encode(kind, path, samples, rate):
                result = compare(kind, path, len(samples), spans, generator)
                if result is not None and result.problem:
                    result.problem = f"{rate} Hz, {channels} ch, {sound}, {seconds} s: {result.problem}"
                results += [result] if result is not None else []
            for leftover in folder.iterdir():
                leftover.unlink()
    return results


def table(results: list[Result]) -> str:
    """Return the markdown table: a row for each kind of file."""
    rows = ["| file | files | largest difference | last half second costs | failed |", "|---|--:|--:|--:|--:|"]
    grouped = defaultdict(list)
    for result in results:
        grouped[result.kind].append(result)
    for kind, found in grouped.items():
        difference = max(result.difference for result in found)
        share = float(np.median([result.span_share for result in found]))
        failed = sum(bool(result.problem) for result in found)
        rows.append(f"| {kind} | {len(found)} | {difference:.0e} | {100 * share:.0f} % of all | {failed} |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=12, help="random spans of each file")
    parser.add_argument("--kinds", default="", help="only kinds of file whose name contains this")
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.3, 7.0], help="lengths of the files")
    arguments = parser.parse_args(argv)
    kinds = [kind for kind in (*SNDFILE, *PYAV, *PROGRAMS) if arguments.kinds in kind]
    with tempfile.TemporaryDirectory() as folder:
        sounds = ("music", "speech", "silence")
        results = run(kinds, SHAPES, sounds, arguments.seconds, arguments.spans, Path(folder))
    print(table(results))
    failed = [result for result in results if result.problem]
    for result in failed:
        print(f"{result.kind}: {result.problem}")
    print(f"{len(results)} files, {len(failed)} failed; {arguments.spans} spans of each")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
