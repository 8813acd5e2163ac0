"""Embedding files block by block: the numbers of the whole file, in bounded memory."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_model, tiny_processor

from processing import AudioFileError, load_audio
from processing.embed_audio import embed_audio


@pytest.mark.parametrize("structure_layers", [0, 1])
def test_blocks_give_the_numbers_of_the_whole_file(tmp_path, structure_layers):
    rng = np.random.default_rng(0)
    # A last block of 0.05 s: shorter than an audio may be, but part of one.
    soundfile.write(tmp_path / "song.flac", rng.normal(size=int(16000 * 16.05)) * 0.1, 16000)
    model = tiny_model(structure_layers=structure_layers, segment_batch_size=4)
    processor = tiny_processor()
    with torch.no_grad():
        inputs = processor(audio=load_audio(tmp_path / "song.flac"), sampling_rate=16000)
        expected, expected_mask = model.get_audio_features(**inputs)
    tokens, mask = embed_audio(model, processor.feature_extractor, tmp_path / "song.flac")
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)


def test_a_bad_file_is_named(tmp_path):
    (tmp_path / "song.mp3").write_text("not music")
    with pytest.raises(AudioFileError, match=r"song\.mp3"):
        embed_audio(tiny_model(), tiny_processor().feature_extractor, tmp_path / "song.mp3")


@pytest.mark.parametrize("seconds", [0.05, 0.0999])
def test_a_file_below_a_tenth_of_a_second_is_refused(tmp_path, seconds):
    soundfile.write(tmp_path / "song.wav", np.ones(int(16000 * seconds)) * 0.1, 16000)
    with pytest.raises(AudioFileError, match=r"song\.wav: is 0\.\d+ s long; expected at least 0\.1 s"):
        embed_audio(tiny_model(), tiny_processor().feature_extractor, tmp_path / "song.wav")


def test_integers_stored_as_float_are_refused_wherever_they_are(tmp_path):
    samples = np.zeros(16000 * 10, np.float32)
    samples[-1] = 32767.0
    soundfile.write(tmp_path / "song.wav", samples, 16000, subtype="FLOAT")
    model = tiny_model(segment_batch_size=2)
    with pytest.raises(AudioFileError, match=r"song\.wav: peaks at 32767; expected samples in \[-1, 1\]"):
        embed_audio(model, tiny_processor().feature_extractor, tmp_path / "song.wav")


# The peak of getrusage is inherited from the parent, that of /proc starts anew with the program.
PEAK_MEMORY = """
import sys
from pathlib import Path
import torch
from tiny import tiny_model, tiny_processor
from processing.embed_audio import embed_audio
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
torch.set_num_threads(1)
model, extractor = tiny_model(projection_dim=256, structure_layers=1), tiny_processor().feature_extractor
embed_audio(model, extractor, sys.argv[1])
before = peak()
tokens, mask = embed_audio(model, extractor, sys.argv[2])
print((peak() - before) * 1024, tokens.numel() * 4)
"""


def test_an_hour_takes_little_more_memory_than_five_minutes(tmp_path):
    """The growth is the embeddings (in a few copies), not the audio, the features or what layers make of all tokens."""
    minute = (np.sin(np.arange(16000 * 60) * 0.05) * 8000).astype(np.int16)
    for name, minutes in (("short", 5), ("long", 60)):
        with soundfile.SoundFile(tmp_path / f"{name}.flac", "w", 16000, 1) as file:
            for _ in range(minutes):
                file.write(minute)
    command = [sys.executable, "-c", PEAK_MEMORY, str(tmp_path / "short.flac"), str(tmp_path / "long.flac")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment()).stdout
    growth, embeddings = map(int, output.split())
    features = 60 * 60 * 100 * (128 + 40) * 4
    assert growth < 7 * embeddings + 30e6 < features


def _environment() -> dict[str, str]:
    import os
    from pathlib import Path

    tests = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
