"""A small part of the matrix of tests/audio_matrix.py, and a seeded fuzz: damage ends in samples or in one line."""

import audio_matrix
import numpy as np
import pytest
from tiny import REFERENCE

from processing.decode_audio import AudioFileError, audio_seconds, header_seconds, load_audio

ALWAYS = {*audio_matrix.SNDFILE, *audio_matrix.PYAV}
CASES = sorted(path for path in (REFERENCE / "cases").iterdir() if path.is_file())


@pytest.mark.parametrize("shape, sound", [((22050, 2), "music"), ((16000, 1), "speech")])
def test_what_is_read_is_what_the_libraries_play(shape, sound, tmp_path):
    kinds = (*audio_matrix.SNDFILE, *audio_matrix.PYAV, *audio_matrix.PROGRAMS)
    results = audio_matrix.run(kinds, [shape], [sound], [1.5], spans=2, folder=tmp_path)
    assert not [result.problem for result in results if result.problem]
    made = {result.kind for result in results}
    assert len(made & ALWAYS) >= len(ALWAYS) - 4  # some encoders have one number of channels
    assert "| wav, 16 bit | 1 | 0e+00 |" in audio_matrix.table(results)


def mutated(content, generator):
    """Flip bytes, mostly of the header, cut, repeat or overwrite a part."""
    data = bytearray(content)
    for _ in range(int(generator.integers(1, 12))):
        place = int(generator.integers(0, min(len(data), 120) if generator.random() < 0.6 else len(data)))
        data[place] = int(generator.choice([0, 1, 0x7F, 0x80, 0xFF, generator.integers(0, 256)]))
    kind = generator.integers(0, 5)
    start, stop = sorted(int(place) for place in generator.integers(0, len(data), 2))
    if kind == 0:
        del data[stop:]
    elif kind == 1:
        del data[start:stop]
    elif kind == 2:
        data[start:start] = data[start : min(stop, start + 5000)]
    return bytes(data)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_mutated_files_end_in_samples_or_in_one_line(path):
    generator = np.random.default_rng(len(path.name))
    for _ in range(6):
        content = mutated(path.read_bytes(), generator)
        for read in (load_audio, audio_seconds, header_seconds, lambda source: load_audio(source, start=1.0, stop=1.5)):
            try:
                found = read(content)
            except AudioFileError as error:
                assert "\n" not in str(error) and f"<{len(content)} bytes>" in str(error)
                continue
            seconds = len(found) / 16000 if isinstance(found, np.ndarray) else found
            assert np.isfinite(found).all() and seconds <= 90 + len(content) / 4
