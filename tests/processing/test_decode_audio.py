"""Reading audio files: every format against a signal known at any rate, spans, memory, and files to be refused."""

import io
import os
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest

from processing import audio_tracks
from processing.decode_audio import AudioFileError, audio_seconds, load_audio, stream_audio

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
# Gain per channel; none on the LFE channel (index 3), which encoders low-pass.
GAINS = np.float32([0.30, 0.20, 0.10, 0.0, 0.25, 0.15])
# name: container, encoder, its sample format, rates, channel counts
FORMATS = {
    "wav": ("wav", "pcm_s16le", "s16", (8000, 22050, 44100, 48000, 96000), (1, 2, 6)),
    "aiff": ("aiff", "pcm_s16be", "s16", (44100,), (1, 2)),
    "flac": ("flac", "flac", "s16", (8000, 22050, 44100, 48000, 96000), (1, 2, 6)),
    "vorbis": ("ogg", "vorbis", "fltp", (22050, 44100, 48000), (2,)),
    "mp3": ("mp3", "libmp3lame", "fltp", (8000, 22050, 44100, 48000), (1, 2)),
    "m4a": ("ipod", "aac", "fltp", (8000, 22050, 44100, 48000, 96000), (1, 2, 6)),
    "adts": ("adts", "aac", "fltp", (22050, 44100, 48000), (1, 2)),
    "opus": ("ogg", "libopus", "flt", (48000,), (1, 2, 6)),
    "webm": ("webm", "libopus", "flt", (48000,), (1, 2, 6)),
}
CASES = [(name, rate, channels) for name, spec in FORMATS.items() for rate in spec[3] for channels in spec[4]]
LOSSLESS = {"wav", "aiff", "flac"}


def sweep(rate, seconds, delay=0.0):
    """A tone from 200 Hz to 3 kHz every 2 s, known at any sampling rate; its autocorrelation is one sharp peak."""
    time = np.arange(round(rate * seconds)) / rate - delay
    phase = time % 2.0
    return np.sin(2 * np.pi * (200 * phase + 700 * phase**2)).astype(np.float32)


def add_audio(container, codec, sample_format, samples, rate, options=None):
    """Encode samples (C, N) as one more audio track of an open PyAV container; returns the stream and its frames."""
    layout = LAYOUTS[len(samples)]
    stream = container.add_stream(codec, rate=rate, layout=layout, options={"strict": "-2", **(options or {})})
    stream.codec_context.format = sample_format
    resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate)
    frames = []
    for start in range(0, samples.shape[1], 4096):
        block = np.ascontiguousarray(samples[:, start : start + 4096])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        frames += resampler.resample(frame)
    return stream, frames


def encode(name, samples, rate, path=None, container_options=None, **options):
    """Samples (C, N) as the bytes of a file, or as a file at `path`, which some containers need to go back in."""
    container_name, codec, sample_format = FORMATS[name][:3]
    buffer = io.BytesIO()
    with av.open(path or buffer, "w", format=container_name, options=container_options) as container:
        stream, frames = add_audio(container, codec, sample_format, samples, rate, options)
        for frame in [*frames, None]:
            container.mux(stream.encode(frame))
    return buffer.getvalue()


def float_wav(samples, rate=16000):
    """(N,) float32 as a 32-bit float wav, written byte by byte."""
    data = np.asarray(samples, "<f4").tobytes()
    block = b"\x03\x00\x01\x00" + rate.to_bytes(4, "little") + (rate * 4).to_bytes(4, "little") + b"\x04\x00\x20\x00"
    body = b"WAVEfmt \x10\x00\x00\x00" + block + b"data" + len(data).to_bytes(4, "little") + data
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.fixture(scope="module")
def noise():
    """30 s of stereo noise at 44.1 kHz: every sample matters, no span looks like another."""
    samples = np.random.default_rng(0).standard_normal((2, 44100 * 30 + 2)).astype(np.float32)
    return 0.1 * (samples[:, :-2] + samples[:, 1:-1] + samples[:, 2:])


@pytest.fixture(scope="module")
def encoded(noise):
    """30 s of each format; aac without noise substitution, which is drawn anew at each decoding."""
    data = {name: encode(name, noise, 44100, aac_pns="0") for name, spec in FORMATS.items() if 44100 in spec[3]}
    longer = np.pad(noise, ((0, 0), (0, 48000 * 30 - noise.shape[1])), mode="reflect")
    return data | {name: encode(name, longer, 48000) for name in ("opus", "webm")}


@pytest.mark.parametrize("name, rate, channels", CASES)
def test_every_format_gives_the_signal_at_its_place(name, rate, channels):
    seconds = 2.3
    data = encode(name, GAINS[:channels, None] * sweep(rate, seconds), rate)
    loaded = load_audio(data)

    # adts has no field for the encoder's delay of one block; it and the test's vorbis encoder have none for the padding
    # of the last one. FFmpeg leaves some of the padding of an mp3 where that is longer than a frame.
    expected = sweep(16000, seconds, delay=1024 / rate if name == "adts" else 0.0) * GAINS[:channels].mean()
    padding = {"adts": 3 * 1024, "vorbis": 2048, "mp3": 576}.get(name, 0) * 16000 / rate
    assert 0 <= len(loaded) - len(expected) <= padding
    loaded = loaded[: len(expected)]
    lags = range(-32, 33)  # 2 ms
    products = [np.dot(loaded[1500 + lag : 30000 + lag], expected[1500:30000]) for lag in lags]
    assert lags[int(np.argmax(products))] == 0
    if name in LOSSLESS:
        # 16-bit rounding and the resampler's ripple; the jumps of the sweep ring.
        np.testing.assert_allclose(loaded[100:30000], expected[100:30000], atol=2e-3)
    else:
        loaded, expected = loaded[1500:30000], expected[1500:30000]
        assert np.corrcoef(loaded, expected)[0, 1] > 0.98
        assert np.linalg.norm(loaded) == pytest.approx(np.linalg.norm(expected), rel=0.08)


def test_without_resampling_the_samples_are_those_of_the_file():
    samples = np.random.default_rng(1).integers(-(2**15), 2**15, (2, 5000)).astype(np.float32) / 2**15
    for name in ("wav", "flac", "aiff"):
        np.testing.assert_array_equal(load_audio(encode(name, samples, 44100), 44100), samples.mean(axis=0))
    values = np.float32([0.5, -1.5, 1e-20])
    np.testing.assert_array_equal(load_audio(float_wav(values)), values)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sampling_rate", [16000, 22050, 48000])
def test_span_is_the_slice_of_the_whole(encoded, name, sampling_rate):
    whole = load_audio(encoded[name], sampling_rate)
    for start, stop in [(0.0, 0.3), (0.5, 1.0), (1.2345, 3.7), (9.99, 12.0), (20.0, 20.1), (29.5, 99.0), (28.0, None)]:
        expected = whole[round(start * sampling_rate) : None if stop is None else round(stop * sampling_rate)]
        span = load_audio(encoded[name], sampling_rate, start, stop)
        np.testing.assert_array_equal(span, expected)


def test_span_of_aac_with_noise_substitution_is_the_slice_but_for_that_noise(noise):
    data = encode("m4a", noise[:, : 44100 * 5], 44100)
    whole, span = load_audio(data), load_audio(data, start=2.0, stop=4.0)
    assert np.corrcoef(span, whole[32000:64000])[0, 1] > 0.99


def test_an_uneven_pair_of_rates_still_cuts_the_same_samples(noise):
    data = encode("wav", noise[:1], 44056)
    whole = load_audio(data, 16001)
    assert len(whole) == -(-noise.shape[1] * 16001 // 44056)
    np.testing.assert_array_equal(load_audio(data, 16001, 7.5, 9.0), whole[round(7.5 * 16001) : 9 * 16001])


def test_span_of_an_mp3_without_header_and_begun_in_the_middle(noise):
    data = encode("mp3", noise, 44100, container_options={"write_xing": "0", "id3v2_version": "0"}, abr="1")
    data = data[len(data) // 3 :]
    whole = load_audio(data)
    assert len(whole) > 16000 * 19
    np.testing.assert_array_equal(load_audio(data, start=12.3, stop=13.3), whole[round(12.3 * 16000) :][:16000])


@pytest.mark.parametrize("block_seconds", [0.01, 1.7, 30.0, 100.0])
def test_blocks_join_to_the_whole(encoded, block_seconds):
    blocks = list(stream_audio(encoded["mp3"], start=1.0, block_seconds=block_seconds))
    assert {len(block) for block in blocks[:-1]} <= {round(block_seconds * 16000)}
    assert 0 < len(blocks[-1]) <= round(block_seconds * 16000)
    np.testing.assert_array_equal(np.concatenate(blocks), load_audio(encoded["mp3"], start=1.0))


class CountingFile(io.BytesIO):
    num_read = 0

    def read(self, size=-1):
        data = super().read(size)
        self.num_read += len(data)
        return data


@pytest.mark.parametrize("name", FORMATS)
def test_reading_the_end_costs_what_the_documentation_says(encoded, name, monkeypatch):
    file, decoded_samples = CountingFile(encoded[name]), []
    decode = audio_tracks.FfmpegTrack._decoded

    def counting_decode(track):
        for position, frames in decode(track):
            decoded_samples.append(sum(frame.samples for frame in frames))
            yield position, frames

    monkeypatch.setattr(audio_tracks.FfmpegTrack, "_decoded", counting_decode)
    assert len(load_audio(file, start=28.0, stop=29.5)) == 24000
    num_file_samples = 30 * (44100 if 44100 in FORMATS[name][3] else 48000)
    if name in ("wav", "aiff"):  # libsndfile seeks
        assert not decoded_samples and file.num_read < 0.5 * len(encoded[name])
    elif name in ("mp3", "flac"):  # read, but not decoded
        assert 0 < sum(decoded_samples) < 0.2 * num_file_samples
    else:  # any other start would give other samples
        assert sum(decoded_samples) > 0.9 * num_file_samples


def test_memory_does_not_grow_with_the_file():
    samples = np.zeros((1, 16000 * 60 * 20), np.float32)
    samples[0, ::101] = 0.25
    data = encode("flac", samples, 16000)
    tracemalloc.start()
    num_samples = sum(len(block) for block in stream_audio(io.BytesIO(data)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_samples == samples.size
    assert peak < 8e6 < samples.nbytes / 9


def test_path_bytes_and_file_object_are_the_same(encoded, tmp_path):
    path = tmp_path / "näme: with | signs.wav"
    path.write_bytes(encoded["m4a"])  # the ending does not matter, the content does
    expected = load_audio(encoded["m4a"])
    with open(path, "rb") as file:
        file.read(7)
        np.testing.assert_array_equal(load_audio(file), expected)
        assert not file.closed
    np.testing.assert_array_equal(load_audio(path), expected)
    np.testing.assert_array_equal(load_audio(str(path)), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_audio_seconds_is_the_decoded_length(encoded, name):
    assert audio_seconds(encoded[name]) == pytest.approx(len(load_audio(encoded[name], 48000)) / 48000, abs=1 / 48000)


def add_picture(container, codec):
    stream = container.add_stream(codec, rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p" if codec == "mjpeg" else "yuv420p"
    frame = av.VideoFrame(64, 64, stream.pix_fmt)
    frame.pts = 0
    return stream, [frame]


def mux(name, *adders):
    """One file of several tracks; each adder takes the container and returns a stream and its frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=name) as container:
        tracks = [adder(container) for adder in adders]
        packets = [packet for stream, frames in tracks for frame in [*frames, None] for packet in stream.encode(frame)]
        for packet in packets:
            container.mux(packet)
    return buffer.getvalue()


def test_first_audio_track_is_read_and_pictures_are_not(noise):
    def loud(container):
        return add_audio(container, "aac", "fltp", np.tile(sweep(44100, 2.0), (1, 1)), 44100)

    def quiet(container):
        return add_audio(container, "aac", "fltp", np.zeros((2, 88200), np.float32), 44100)

    for container, picture in (("mp4", "mpeg4"), ("matroska", "mjpeg")):
        data = mux(container, lambda opened, codec=picture: add_picture(opened, codec), loud, quiet)
        assert np.abs(load_audio(data)).max() > 0.5
        data = mux(container, lambda opened, codec=picture: add_picture(opened, codec), quiet, loud)
        assert np.abs(load_audio(data)).max() == 0


def test_cover_art_and_tags_do_not_disturb(encoded):
    picture = mux("image2pipe", lambda container: add_picture(container, "mjpeg"))
    apic = b"\x00image/jpeg\x00\x03\x00" + picture
    frame = b"APIC" + len(apic).to_bytes(4, "big") + b"\x00\x00" + apic
    title = b"TIT2\x00\x00\x00\x03\x00\x00\x03\xe4\xff"  # says UTF-8, is not
    size = len(frame + title)
    header = b"ID3\x03\x00\x00" + bytes((size >> shift) & 127 for shift in (21, 14, 7, 0))
    data = header + title + frame + encoded["mp3"] + b"TAG" + b"\xe4" * 125
    with av.open(io.BytesIO(data), metadata_errors="replace") as container:
        assert len(container.streams.video) == 1  # FFmpeg sees the cover as a video track
    np.testing.assert_array_equal(load_audio(data), load_audio(encoded["mp3"]))


def refusal(source, **span):
    with pytest.raises(AudioFileError) as caught:
        load_audio(source, **span)
    return str(caught.value)


def test_what_is_not_audio_is_refused_by_name(tmp_path):
    text = tmp_path / "lyrics.mp3"
    text.write_text("La la la\n" * 500)
    empty = tmp_path / "empty.wav"
    empty.touch()
    film = tmp_path / "film.mp4"
    film.write_bytes(mux("mp4", lambda container: add_picture(container, "mpeg4")))
    for path, cause in [
        (text, "not an audio file"),
        (empty, "empty (0 bytes)"),
        (film, "no audio track (found: video)"),
        (tmp_path, "directory"),
        (tmp_path / "missing.flac", "No such file"),
    ]:
        message = refusal(path)
        assert str(path) in message and cause in message
    assert "no samples" in refusal(float_wav([]) + bytes(0)) or "not an audio file" in refusal(float_wav([]))
    assert "<3 bytes>" in refusal(b"abc")


def test_playlists_and_addresses_are_never_followed(encoded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").write_bytes(encoded["wav"])
    (tmp_path / "a.aac").write_bytes(encoded["adts"])
    for address in ("concat:a.wav|a.wav", "file:a.wav", "http://127.0.0.1:1/x", "data:audio/wav;base64,AAAA", "-"):
        assert "No such file" in refusal(address)
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{tmp_path}/a.aac\n#EXT-X-ENDLIST\n")
    script = tmp_path / "list.txt"
    script.write_text("ffconcat version 1.0\nfile 'a.wav'\n")
    for path in (playlist, script):
        assert "not an audio file" in refusal(path)


def said(caplog):
    return [record.message for record in caplog.records if record.name == "processing.decode_audio"]


@pytest.mark.parametrize("name", ["wav", "aiff", "flac", "mp3", "m4a", "webm"])
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_truncated_files_are_refused(encoded, name, kept):
    data = encoded[name][: int(kept * len(encoded[name]))]
    message = refusal(data)
    assert f"<{len(data)} bytes>" in message
    assert any(word in message for word in ("truncated", "damaged", "header is missing or cut")), message


@pytest.mark.parametrize("name", ["adts", "vorbis", "opus"])
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_a_cut_end_is_said_where_no_header_tells_the_length(encoded, name, kept, caplog):
    data = encoded[name][: int(kept * len(encoded[name]))]
    found, whole = load_audio(data), load_audio(encoded[name])
    np.testing.assert_array_equal(found[: len(found) - 100], whole[: len(found) - 100])
    assert len(found) == pytest.approx(kept * len(whole), abs=2 * 16000)  # a page of ogg lasts up to a second
    assert len(said(caplog)) == 1 and "is cut" in said(caplog)[0]


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "vorbis", "opus", "webm"])
def test_the_good_part_of_a_truncated_file_can_be_read(encoded, name):
    data = encoded[name][: len(encoded[name]) // 2]
    np.testing.assert_array_equal(load_audio(data, stop=5.0), load_audio(encoded[name], stop=5.0))


def test_truncated_mp4_with_its_index_in_front_is_refused(noise, tmp_path):
    path = tmp_path / "faststart.m4a"
    encode("m4a", noise[:, :200000], 44100, path, {"movflags": "faststart"})
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    message = refusal(data[: len(data) // 2])
    assert "truncated or damaged: its header declares 4.535 s of audio, 2." in message


def test_a_wav_of_unknown_length_is_read_to_its_end():
    samples = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    data = bytearray(float_wav(samples))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # what a program writes into a pipe
    np.testing.assert_array_equal(load_audio(bytes(data)), samples)


@pytest.mark.parametrize("seed", range(5))
def test_one_flipped_bit_in_flac_silences_its_frame(encoded, noise, seed, caplog):
    data = bytearray(encoded["flac"])
    data[int(np.random.default_rng(seed).integers(len(data) // 10, len(data) * 9 // 10))] ^= 0x10
    whole, right = load_audio(bytes(data), 44100), load_audio(encoded["flac"], 44100)
    assert len(said(caplog)) == 1 and "0.104 s of 30.000 s could not be decoded and are silent" in said(caplog)[0]
    wrong = np.flatnonzero(whole != right)
    assert len(whole) == len(right) and wrong[-1] - wrong[0] < 4608 and not whole[wrong].any()
    middle = wrong[0] / 44100
    span = load_audio(bytes(data), 44100, middle - 0.5, middle + 0.5)
    np.testing.assert_array_equal(span, whole[round((middle - 0.5) * 44100) : round((middle + 0.5) * 44100)])


@pytest.mark.parametrize("name", ["mp3", "m4a", "adts"])
def test_overwritten_bytes_in_the_middle_are_said(encoded, name, caplog):
    whole, right = load_audio(overwritten(encoded[name])), load_audio(encoded[name])
    assert len(said(caplog)) == 1 and "could not be decoded" in said(caplog)[0]
    assert len(whole) == pytest.approx(len(right), abs=0.2 * 16000)
    np.testing.assert_array_equal(whole[: 14 * 16000], right[: 14 * 16000])


@pytest.mark.parametrize("name", ["vorbis", "opus", "webm"])
def test_overwritten_bytes_that_cost_a_second_are_refused(encoded, name):
    assert "damaged" in refusal(overwritten(encoded[name]))


def overwritten(content):
    """2000 bytes in the middle, which cost ogg a page of a second and webm a cluster of five."""
    data, middle = bytearray(content), len(content) // 2
    data[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    return bytes(data)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_where_they_are_heard(bad):
    samples = np.zeros(16000 * 5, np.float32)
    samples[40000] = bad
    message = refusal(float_wav(samples))
    assert "NaN or infinite" in message and "2." in message
    assert len(load_audio(float_wav(samples), start=4.0)) == 16000


@pytest.mark.parametrize("name", FORMATS)
def test_start_beyond_the_end_names_both(encoded, name):
    message = refusal(encoded[name], start=31.5, stop=40.0)
    assert "start=31.5 s" in message and f"{audio_seconds(encoded[name]):g} s" in message


@pytest.mark.parametrize(
    "arguments",
    [
        {"sampling_rate": 0},
        {"sampling_rate": 16000.0},
        {"sampling_rate": True},
        {"start": -1.0},
        {"stop": float("nan")},
        {"start": 2.0, "stop": 1.0},
        {"start": 1.0, "stop": 1.0},
        {"block_seconds": 0.0},
    ],
)
def test_arguments_out_of_range_are_refused_at_the_call(arguments):
    with pytest.raises(ValueError, match="=") as caught:
        stream_audio(os.devnull, **arguments)
    assert not isinstance(caught.value, AudioFileError)


@pytest.mark.parametrize("source", [5, None, ["a.wav"], io.StringIO("text")])
def test_other_types_are_refused(source):
    with pytest.raises(TypeError, match="expected"):
        load_audio(source)
