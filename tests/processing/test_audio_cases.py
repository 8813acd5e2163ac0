"""Awkward files as they exist in the world, in tests/reference/cases, and the siblings of each: read, or refused by
name."""

import io
import os
import stat
import struct
from contextlib import suppress

import av
import numpy as np
import pytest
import soundfile
from runs import start_processes
from tiny import REFERENCE

from processing import audio_tracks
from processing.decode_audio import AudioFileError, audio_seconds, header_seconds, load_audio, load_crop, stream_audio

CASES = REFERENCE / "cases"
LOGGER = "processing.decode_audio"
# name: rate, seconds
WHOLE = {
    "vorbis_valid_refused.ogg": (44100, 6.0),
    "oggenc_music.ogg": (22050, 3.0),
    "opusenc_speech_mode.opus": (48000, 6.0),
    "opus_8_channels.opus": (48000, 1.0),
    "lame_vbr_music.mp3": (22050, 3.0),
    "lame_vbr_without_tag.mp3": (22050, 117 * 576 / 22050),
    "lame_cbr_music.mp3": (22050, 6.084),
    "xing_frames_tenth.mp3": (44100, 12.0),
    "adpcm_ms.wav": (22050, 132340 / 22050),
    "adpcm_ima.wav": (22050, 132665 / 22050),
    "adpcm_yamaha.wav": (22050, 44 * 1024 / 22050),
    "g722.wav": (22050, 2.0),
    "lame_decode_pipe_7fffffff.wav": (22050, 44978 / 22050),
    "sox_pipe_7ffff000.wav": (8000, 47525 / 8000),
    "sox_pipe_7f000000.aiff": (8000, 47525 / 8000),
    "wav_declares_36_bytes_more.wav": (16000, 1.0),
    "wavex_24_in_32.wav": (16000, 1.0),
    "wav_two_data_chunks.wav": (16000, 1.0),
    "wav_64_bit.wav": (16000, 0.25),
    "webm_segment_size.webm": (48000, 2.0),
    "ac3_44100.mp4": (44100, 4.0),
    "music.wma": (22050, 3.0),
}


def said(caplog):
    return [record.message for record in caplog.records if record.name == LOGGER]


def refusal(source, **span):
    with pytest.raises(AudioFileError) as caught:
        load_audio(source, **span)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_is_read_and_any_span_is_its_slice(name):
    rate, seconds = WHOLE[name]
    path = CASES / name
    for sampling_rate in (rate, 16000):
        whole = load_audio(path, sampling_rate)
        assert len(whole) / sampling_rate == pytest.approx(seconds, abs=0.06 if name == "music.wma" else 0.01)
        assert np.abs(whole).max() <= 1.01 and (whole.any() or name == "wav_64_bit.wav")  # which is silent
        generator = np.random.default_rng(len(name))
        for _ in range(8):
            start = float(generator.uniform(0, seconds - 0.2))
            stop = start + float(generator.uniform(0.05, 2.0))
            expected = whole[round(start * sampling_rate) : round(stop * sampling_rate)]
            np.testing.assert_array_equal(load_audio(path, sampling_rate, start, stop), expected)
    assert audio_seconds(path) == pytest.approx(len(whole) / 16000, abs=1e-4)
    assert header_seconds(path) == pytest.approx(seconds, abs=0.1)


def test_no_ordinary_file_is_complained_of(caplog):
    for name in WHOLE:
        load_audio(CASES / name)
    assert len(said(caplog)) == 2  # see the two tests of what is said below
    assert "xing_frames_tenth.mp3: its header declares 1.177 s of audio, 12.000 s could be decoded" in caplog.text
    assert "wav_two_data_chunks.wav: its header declares 0.500 s of audio, 1.000 s could be decoded" in caplog.text


def test_vorbis_gives_the_samples_of_libsndfile_wherever_it_is_read():
    """Blocks change their length at every attack. libsndfile itself is read from the start: its seeks miss."""
    spans = 0
    for name in ("vorbis_valid_refused.ogg", "oggenc_music.ogg"):
        expected, rate = soundfile.read(CASES / name, dtype="float32", always_2d=True)
        expected, whole = expected.mean(axis=1), load_audio(CASES / name, rate)
        assert len(whole) == len(expected)
        np.testing.assert_allclose(whole, expected, atol=1e-4)
        content = (CASES / name).read_bytes()
        generator = np.random.default_rng(0)
        for _ in range(20):
            start = int(generator.integers(0, len(expected) - 2000))
            span = load_audio(content, rate, start / rate, (start + 2000) / rate)
            np.testing.assert_allclose(span, expected[start : start + 2000], atol=1e-4)
            spans += 1
    assert spans == 40


def xing(content, frames):
    """The mp3 with another number of frames in its header."""
    place = max(content.find(b"Xing", 0, 4096), content.find(b"Info", 0, 4096)) + 8
    return content[:place] + struct.pack(">I", frames) + content[place + 4 :]


def test_a_wrong_count_in_an_mp3_moves_and_loses_nothing(caplog):
    content = (CASES / "lame_vbr_music.mp3").read_bytes()
    place = max(content.find(b"Xing", 0, 4096), content.find(b"Info", 0, 4096)) + 8
    frames = int.from_bytes(content[place : place + 4], "big")
    right = load_audio(content)
    assert not said(caplog)
    for wrong in (0, 1, frames // 10, frames // 2, 2 * frames, 10 * frames, 2**32 - 1):
        caplog.clear()
        found = load_audio(xing(content, wrong))
        assert 0 <= len(found) - len(right) <= 0.06 * 16000  # the padding, where no header says how much it is
        np.testing.assert_array_equal(found[: len(right) - 100], right[:-100])
        assert len(said(caplog)) == 1 and "declares" in said(caplog)[0]
        assert audio_seconds(xing(content, wrong)) == pytest.approx(len(found) / 16000, abs=1e-4)
        crop = load_crop(xing(content, wrong), 0.5, 1.0)
        assert len(crop) == pytest.approx(8000, abs=200)
        assert np.abs(np.correlate(right, crop[1000:3000])).argmax() > 2.0 * 16000  # of the last second


def test_joined_mp3s_are_read_one_after_another(caplog):
    first, second = (CASES / "lame_vbr_music.mp3").read_bytes(), (CASES / "lame_cbr_music.mp3").read_bytes()
    other_rate = (CASES / "xing_frames_tenth.mp3").read_bytes()
    for parts, seconds in [((first, first), 6.0), ((first, second), 9.0), ((first, other_rate), 15.0)]:
        joined = b"".join(parts)
        whole = load_audio(joined)
        assert len(whole) / 16000 == pytest.approx(seconds, abs=0.15)
        for start in (2.9, 3.5, seconds - 1.2):
            span = load_audio(joined, start=start, stop=start + 1.0)
            np.testing.assert_array_equal(span, whole[round(start * 16000) : round((start + 1) * 16000)])
    assert all("declares 3." in message for message in said(caplog))


def test_joined_ogg_is_read_one_after_another(caplog):
    """A jump of the timestamps is not damage."""
    for name, seconds in [("oggenc_music.ogg", 6.0), ("opusenc_speech_mode.opus", 12.0)]:
        content = (CASES / name).read_bytes() * 2
        whole = load_audio(content)
        assert len(whole) / 16000 == pytest.approx(seconds, abs=0.05)
        span = load_audio(content, start=seconds / 2 - 0.5, stop=seconds / 2 + 1)
        np.testing.assert_array_equal(span, whole[round((seconds / 2 - 0.5) * 16000) :][:24000])
        assert header_seconds(content) == pytest.approx(seconds, rel=0.05)
    assert not said(caplog)
    joined = (CASES / "oggenc_music.ogg").read_bytes() + (CASES / "vorbis_valid_refused.ogg").read_bytes()
    message = refusal(joined)  # FFmpeg does not go on at another rate, and libsndfile never does
    assert "FFmpeg stops: another recording" in message and "3.000 s could be decoded" in message


@pytest.mark.parametrize("second", [(6, 44100), (6, 22050), (2, 44100)])
def test_what_is_joined_to_six_channels_of_vorbis_is_not_lost_in_silence(second):
    """libsndfile, which alone decodes them right, reads the first recording."""
    parts = []
    for channels, rate in ((6, 44100), second):
        buffer, samples = io.BytesIO(), np.random.default_rng(0).normal(size=(rate, channels)) * 0.1
        with soundfile.SoundFile(buffer, "w", rate, channels, format="OGG", subtype="VORBIS") as file:
            for _ in range(3):
                file.write(samples)
        parts.append(buffer.getvalue())
    assert len(load_audio(parts[0])) == 3 * 16000
    message = refusal(parts[0] + parts[1])
    assert "libsndfile stops where another recording is joined on" in message and "3.000 s could be decoded" in message
    with pytest.raises(AudioFileError, match="joined on"):
        audio_seconds(parts[0] + parts[1])
    np.testing.assert_array_equal(load_audio(parts[0] + parts[1], stop=2.0), load_audio(parts[0])[:32000])
    assert "joined on" in refusal(parts[0] * 2)


def flac_bytes(subtype="PCM_16", seconds=4.0, container="FLAC", seed=0):
    samples = np.random.default_rng(seed).standard_normal(round(16000 * seconds)) * 0.1
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("total", [0, 1, 16000, 63000, 65000, 640000, 2**36 - 1])
def test_a_wrong_total_in_flac_loses_nothing(total, caplog):
    content = flac_bytes()
    right = load_audio(content)
    fields = int.from_bytes(content[18:26], "big")  # 20 bits rate, 3 channels, 5 bits a sample, 36 total
    wrong = content[:18] + (fields >> 36 << 36 | total).to_bytes(8, "big") + content[26:]
    np.testing.assert_array_equal(load_audio(wrong), right)
    np.testing.assert_array_equal(load_audio(wrong, start=3.1, stop=3.7), right[49600:59200])
    assert audio_seconds(wrong) == 4.0 and header_seconds(wrong) == pytest.approx(4.0)
    expected = total not in (0, 63000, 65000)  # 0 is "unknown"; under a tenth of a second is not said
    assert bool(said(caplog)) == expected


def test_ogg_flac_cut_from_a_stream_begins_where_it_begins():
    """Its first page says that 2 s went before."""
    samples = np.random.default_rng(0).integers(-8000, 8000, 16000 * 6).astype(np.int16)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg") as container:
        stream = container.add_stream("flac", rate=16000, layout="mono")
        for start in range(0, len(samples), 4096):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 4096], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, 32000 + start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    content = buffer.getvalue()
    whole = load_audio(content)
    np.testing.assert_array_equal(whole, samples / np.float32(2**15))
    np.testing.assert_array_equal(load_audio(content, start=4.2, stop=5.0), whole[67200:80000])


SIZES = (
    0,
    0x7F000000,
    0x7FFFF000,
    0x7FFFFFFF,
    0x7FFFFFFF - 36,
    0x80000000,
    0xFFFFFFFF,
    0xFFFFFFFF - 36,
    0xFFFFFFFF - 44,
)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["WAV", "AIFF"])
def test_a_size_that_the_writer_of_a_pipe_could_not_know(kind, size, caplog):
    content = flac_bytes(container=kind, seconds=1.0)
    place = content.index(b"data" if kind == "WAV" else b"SSND") + 4
    order = "<I" if kind == "WAV" else ">I"
    piped = content[:4] + struct.pack(order, min(size + 36, 2**32 - 1)) + content[8:place]
    piped += struct.pack(order, size) + content[place + 4 :]
    np.testing.assert_array_equal(load_audio(piped), load_audio(content))
    assert not said(caplog)


STORED = [(kind, "PCM_16") for kind in ("WAV", "AIFF", "AU", "W64", "RF64", "CAF", "FLAC")]
STORED += [("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_24")]


@pytest.mark.parametrize("container, subtype", STORED)
def test_a_cut_file_is_said_or_refused_by_what_is_missing(container, subtype, caplog):
    content = flac_bytes(subtype, 20.0, container)
    cut = content[: int(0.98 * len(content))]  # 0.4 s
    assert len(load_audio(cut)) / 16000 == pytest.approx(19.6, abs=0.3)
    assert len(said(caplog)) == 1 and "declares 20." in said(caplog)[0] and "19." in said(caplog)[0]
    message = refusal(content[: len(content) // 2])
    assert "truncated or damaged" in message and "declares" in message
    assert len(load_audio(content[: len(content) // 2], stop=5.0)) == 80000


def test_bytes_that_no_chunk_holds_are_said(caplog):
    content = flac_bytes(container="WAV", seconds=1.0)
    place = content.index(b"data") + 4
    short = content[:place] + struct.pack("<I", 16000) + content[place + 4 :]
    assert len(load_audio(short)) == 8000  # as every player
    assert "16000 bytes after its 0.500 s belong to no chunk" in said(caplog)[0]


def wav_of(rate, channels=1):
    block = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 * channels & 0xFFFFFFFF, 2 * channels, 16)
    data = np.random.default_rng(0).integers(-9000, 9000, 16000).astype("<i2").tobytes()
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt \x10\0\0\0"
        + block
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


@pytest.mark.parametrize("rate", [1, 7, 16, 100, 999, 768_001, 2**31 - 1, 2**32 - 1])
def test_no_rate_but_a_plausible_one_is_believed(rate):
    for read in (load_audio, audio_seconds, header_seconds, lambda source: next(stream_audio(source))):
        with pytest.raises(AudioFileError, match="sampling rate|not an audio file"):
            read(wav_of(rate))


def test_the_rate_of_a_case_is_named():
    assert "wav_header_rate_16.wav: has a sampling rate of 16 Hz" in refusal(CASES / "wav_header_rate_16.wav")
    assert "vorbis_rate_1.ogg: has a sampling rate of 1 Hz" in refusal(CASES / "vorbis_rate_1.ogg")


def test_rates_and_channels_at_the_bounds_are_read():
    for rate in (1000, 768_000):
        assert len(load_audio(wav_of(rate), rate)) == 16000
    assert len(load_audio(wav_of(16000, 100))) == 160
    assert "has 256 channels" in refusal(wav_of(16000, 256))


def test_silence_cannot_fill_the_memory():
    """A packet of flac that holds 65535 equal samples takes 14 bytes: 36 kB would become two days."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(40):
            file.write(np.zeros(8000 * 60, np.int16))
    honest = buffer.getvalue()
    assert sum(map(len, stream_audio(honest, 8000))) == 8000 * 60 * 40
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(600 * 4096, np.int16), 1000, format="FLAC")
    assert len(buffer.getvalue()) < 8000
    seconds = 0.0
    with pytest.raises(AudioFileError, match=r"has over \d+ s of audio in \d+ bytes"):
        for block in stream_audio(buffer.getvalue()):
            seconds += len(block) / 16000
    assert seconds <= 60 + len(buffer.getvalue()) / 4 + 30  # a block
    with pytest.raises(AudioFileError, match="of audio in"):
        header_seconds(buffer.getvalue())


def test_64_bit_integers_are_read():
    samples = np.random.default_rng(0).standard_normal(16000) * 0.1
    data = (samples * 2.0**63).astype("<i8").tobytes()
    block = struct.pack("<HHIIHH", 1, 1, 16000, 128000, 8, 64)
    header = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt \x10\0\0\0" + block
    content = header + b"data" + struct.pack("<I", len(data)) + data
    np.testing.assert_allclose(load_audio(content), samples, atol=1e-6)
    np.testing.assert_array_equal(load_audio(content, start=0.5), load_audio(content)[8000:])


def test_many_channels_do_not_kill_the_process(tmp_path):
    """In a process of its own: what is tested for is a segmentation fault."""
    codecs = [("libopus", "ogg"), ("libvorbis", "ogg"), ("aac", "mp4"), ("flac", "flac"), ("alac", "mov")]
    for codec, container in codecs:
        for channels, layout in ((8, "7.1"), (16, "16 channels")):
            with suppress(av.error.FFmpegError, ValueError):  # not every encoder has every layout
                write_channels(tmp_path / f"{codec}-{channels}.{container}", codec, container, layout, channels)
    paths = [path for path in sorted(tmp_path.iterdir()) if path.stat().st_size > 1000]
    assert {"libopus-8.ogg", "libopus-16.ogg", "aac-8.mp4", "flac-8.flac"} <= {path.name for path in paths}

    def load(paths: list[str]):
        for path in paths:
            print(path, abs(load_audio(path)).max())

    (process,) = start_processes(list(map(str, paths)), log := tmp_path / "log", 1, load)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert len(log.read_text().splitlines()) == len(paths)
    for line in log.read_text().splitlines():
        assert 0.02 < float(line.split()[1]) < 0.6, line


def write_channels(path, codec, container, layout, channels):
    tone = 0.4 * np.sin(np.arange(48000) * 2 * np.pi * 440 / 48000).astype(np.float32)
    with av.open(path, "w", format=container) as file:
        options = {"strict": "-2"} | ({"mapping_family": "255"} if channels == 16 and codec == "libopus" else {})
        stream = file.add_stream(codec, rate=48000, layout=layout, options=options)
        resampler = av.AudioResampler(format=stream.codec_context.format.name if stream.codec_context.format else "flt")
        for start in range(0, 48000, 960):
            block = np.repeat(tone[start : start + 960], channels)[None]
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
            frame.sample_rate, frame.pts = 48000, start
            for converted in resampler.resample(frame):
                file.mux(stream.encode(converted))
        file.mux(stream.encode(None))


def test_the_case_of_8_channels_has_its_tone():
    samples = load_audio(CASES / "opus_8_channels.opus")
    spectrum = np.abs(np.fft.rfft(samples[1000:15000]))
    assert abs(np.argmax(spectrum) * 16000 / 14000 - 440) < 3


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "song.wav")
    assert stat.S_ISFIFO(os.stat(tmp_path / "song.wav").st_mode)
    for path, cause in [(tmp_path / "song.wav", "named pipe"), (tmp_path, "directory"), ("/dev/zero", "device")]:
        for read in (load_audio, audio_seconds, header_seconds):
            with pytest.raises(AudioFileError, match=f"is a {cause}; expected an audio file"):
                read(path)
    with os.fdopen(os.open(tmp_path / "song.wav", os.O_RDONLY | os.O_NONBLOCK), "rb") as pipe:
        assert "cannot be read" in refusal(pipe)


class Failing(io.BytesIO):
    """A disk that fails after `good` bytes."""

    def __init__(self, content, good):
        super().__init__(content)
        self.good = good

    def read(self, size=-1):
        if self.tell() + max(size, 0) > self.good:
            raise OSError(5, "Input/output error")
        return super().read(size)


@pytest.mark.parametrize("name", ["adpcm_ms.wav", "xing_frames_tenth.mp3", "oggenc_music.ogg", "ac3_44100.mp4"])
def test_a_failing_disk_is_not_the_end_of_the_file(name):
    content = (CASES / name).read_bytes()
    assert "Input/output error" in refusal(Failing(content, len(content) // 2))


def test_a_file_object_that_gives_too_much_is_refused():
    class Generous(io.BytesIO):
        def read(self, size=-1):
            return super().read(-1) if size else b""

    assert "cannot be read" in refusal(Generous((CASES / "oggenc_music.ogg").read_bytes()))


def test_a_box_of_2_to_the_61_is_one_line(caplog):
    content = (CASES / "ac3_44100.mp4").read_bytes() + struct.pack(">I4sQ", 1, b"free", 2**61)
    try:
        assert len(load_audio(content)) / 16000 == pytest.approx(4.0, abs=0.01)
    except AudioFileError as error:
        assert "\n" not in str(error)


def test_the_decoders_are_named_where_they_are_missing(monkeypatch):
    monkeypatch.setattr(audio_tracks, "av", None)
    message = refusal(CASES / "g722.wav")
    assert "g722.wav" in message and "pip install av soundfile" in message
