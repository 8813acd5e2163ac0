"""Songs changed before a model hears them: real files written, decoded again, and what they must still be."""

import io

import av
import numpy as np
import pytest
import soundfile

from collap.data.audio_parts import with_span
from collap.data.guarded_reading import load_audio
from collap.evaluation.analysis.changes import ORIGINAL, Change
from collap.evaluation.analysis.recoding import encode, read_channels, recode
from processing.decode_audio import AudioFileError


def tune(rate: int, seconds: float, channels: int) -> np.ndarray:
    """A melody, another in each channel: (N, C)."""
    time = np.arange(round(rate * seconds)) / rate
    notes = 220 * 2 ** (np.floor(3 * time) % 7 / 12)
    return np.stack([0.2 * np.sin(2 * np.pi * np.cumsum(notes * (1 + i)) / rate) for i in range(channels)], axis=1)


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "stereo.flac"
    soundfile.write(path, tune(44_100, 4.0, 2), 44_100)
    return str(path)


def test_samples_are_cut_delayed_and_amplified(stereo):
    samples = ORIGINAL.reader(stereo)(16_000)
    np.testing.assert_array_equal(samples, load_audio(stereo, 16_000))
    np.testing.assert_array_equal(Change("", "first", 1.5).reader(stereo)(16_000), samples[:24_000])
    np.testing.assert_array_equal(Change("", "first", 9).reader(stereo)(16_000), samples)
    late = Change("", "shift", 0.4).reader(stereo)(16_000)
    assert not late[:6400].any() and (late[6400:] == samples).all() and late.dtype == np.float32
    np.testing.assert_allclose(Change("", "gain", -6).reader(stereo)(16_000), samples / 1.9952623, rtol=1e-5)
    assert np.abs(Change("", "gain", 30).reader(stereo)(16_000)).max() > 4  # not clipped


def test_channels_are_mixed_or_one_is_taken(stereo):
    mono, left = (soundfile.read(io.BytesIO(recode(stereo, kind, 0))) for kind in ("mono", "left"))
    original = soundfile.read(stereo)[0]
    assert mono[1] == left[1] == 44_100 and mono[0].ndim == 1
    np.testing.assert_allclose(mono[0], original.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(left[0], original[:, 0], atol=1e-4)
    heard = Change("", "mono").reader(stereo)(16_000)
    np.testing.assert_allclose(heard, load_audio(stereo, 16_000), atol=1e-4)


@pytest.mark.parametrize(
    ("rate", "channels", "kind", "codec", "written"),
    [
        (44_100, 2, "mp3", "mp3float", 44_100),
        (16_000, 1, "mp3", "mp3float", 16_000),
        (96_000, 2, "mp3", "mp3float", 48_000),
        (8_000, 1, "opus", "opus", 48_000),
    ],
)
def test_a_song_is_re_encoded_without_a_delay(tmp_path, rate, channels, kind, codec, written):
    path = str(tmp_path / "song.wav")
    soundfile.write(path, tune(rate, 3.0, channels), rate)
    recoded = recode(path, kind, 96)
    with av.open(io.BytesIO(recoded)) as file:
        stream = file.streams.audio[0]
        assert (stream.codec_context.name, stream.rate) == (codec, written)
        assert stream.channels == channels
    assert len(recoded) < 1.5 * 3 * 96_000 / 8
    original, changed = load_audio(path, 16_000), load_audio(recoded, 16_000)
    assert abs(len(changed) - len(original)) <= 0.02 * len(original)
    size = min(len(original), len(changed))
    assert np.corrcoef(original[:size], changed[:size])[0, 1] > 0.98  # also half a period later it would be lower
    assert recode(path, kind, 96) == recoded


def test_of_a_span_only_that_is_re_encoded_and_what_is_no_audio_is_named(stereo, tmp_path):
    part = with_span(stereo, 1.0, 2.5)
    assert Change("", "left").reader(part)(16_000).shape == (24_000,)
    channels, rate = read_channels(part)
    assert channels.shape == (2, 66_150) and rate == 44_100
    with open(stereo, "rb") as file:
        assert recode(file.read(), "mono", 0) == recode(stereo, "mono", 0)
    many = tmp_path / "many.wav"
    soundfile.write(many, tune(16_000, 1.0, 6), 16_000)
    assert read_channels(str(many))[0].shape == (2, 16_000)
    bad = tmp_path / "bad.mp3"
    bad.write_bytes(b"no audio" * 100)
    with pytest.raises(AudioFileError, match=r"bad.mp3: cannot be re-encoded: \w+"):
        recode(str(bad), "mp3", 96)


def test_a_lower_bit_rate_is_a_smaller_file():
    channels = tune(44_100, 2.0, 2).T.astype(np.float32)
    sizes = [len(encode(channels, 44_100, "libmp3lame", "mp3", kbits, 44_100)) for kbits in (64, 128, 256)]
    assert sizes[0] < 0.6 * sizes[1] < 0.36 * sizes[2]
