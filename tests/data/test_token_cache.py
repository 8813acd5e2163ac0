"""collap precompute and TokenCache: real files, real processes, one and two of them."""

import json
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from runs import start_processes
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from collap.cli import run_command
from collap.data.precompute import backbone_tower, encode_song
from collap.data.sources import open_dataset
from collap.data.token_cache import DTYPES, TokenCache, pack_tokens, unpack_tokens
from modeling_collap import CoLLAPModel
from processing import AudioFileError, CoLLAPFeatureExtractor, CoLLAPProcessor, load_audio

REPOSITORY = Path(__file__).parents[2]
# Relative to the tokens: float16 rounds each value by 2^-11 at most; int8 by half a step, of which the largest value of
# a token is 127: with values up to 4 times their RMS, 4 / 254, and 1.7 times less in the root mean square.
PRECISION = {"float16": 2**-11, "int8": 0.01}
precompute = partial(run_command, "precompute")


def arguments(dataset, backbones, output, dtype="float16", splits=("train",), **options) -> list[str]:
    options = {"segment_seconds": 2, "segment_batch_size": 3, "shard_songs": 1, **options}
    named = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    encoders = ["--music", str(backbones["beats"]), "--speech", str(backbones["whisper"])]
    place = ["--dataset", str(dataset), "--splits", *splits, "--output_dir", str(output), "--dtype", dtype]
    return [*place, *encoders, *named]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def backbone_model(backbones, **settings) -> CoLLAPModel:
    """A model of the tiny backbones in evaluation mode; the same weights each time."""
    torch.manual_seed(0)
    parts = [str(backbones[part]) for part in ("gpt2", "beats", "whisper")]
    config = {"projection_dim": 32, "segment_seconds": 2, "kernel_seconds": 1.0, "stride_seconds": 0.5}
    return CoLLAPModel.from_backbones(*parts, **{**config, **settings}).eval()


def open_cache(folder, backbones, corpus, split="train", model=None, dataset=None) -> TokenCache:
    model = model or backbone_model(backbones)
    dataset = dataset or open_dataset(str(corpus), split, text_column="captions")
    return TokenCache.open(folder, split, model, CoLLAPFeatureExtractor.from_model_config(model.config), dataset)


@pytest.fixture(scope="module")
def cached(corpus, backbones, tmp_path_factory):
    """Uninterrupted caches of 8 and 4 songs, by dtype."""
    folders = {dtype: tmp_path_factory.mktemp("tokens") / dtype for dtype in DTYPES}
    for dtype, folder in folders.items():
        assert precompute(arguments(corpus, backbones, folder, dtype, ("train", "validation"))) == 0
    return folders


# --------------------------------------------------------------------------------------------------------------------
# The tokens


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_those_before_the_adapter(cached, corpus, backbones, dtype):
    model = backbone_model(backbones)
    extractor = CoLLAPFeatureExtractor.from_model_config(model.config)
    cache = open_cache(cached[dtype], backbones, corpus)
    assert len(cache) == 8
    for row, example in enumerate(open_dataset(str(corpus), "train", text_column="captions")):
        features = extractor.segment_features(torch.from_numpy(load_audio(example["audio"]["path"])))
        inputs = [features[name] for name in ("music_features", "speech_features", "music_attention_mask")]
        with torch.no_grad():
            expected = model.audio_tower.fuse(*inputs)[features["audio_token_mask"]]  # (T, M)
        tokens = cache[row]
        assert tokens.dtype == torch.float32 and tokens.shape == expected.shape
        assert cache.tokens(row) == len(expected)
        assert cache.seconds(row) == pytest.approx(example["seconds"], abs=0.02)
        assert (tokens - expected).norm() < PRECISION[dtype] * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradients_are_those_without_the_cache(cached, corpus, backbones, dtype):
    model = backbone_model(backbones, structure_layers=1)
    model.audio_tower.music.requires_grad_(False)
    model.audio_tower.speech.requires_grad_(False)
    processor = AutoProcessor.from_pretrained(backbones["gpt2"])
    processor = CoLLAPProcessor.from_model_config(model.config, processor)
    rows = open_dataset(str(corpus), "validation", text_column="captions")
    text = processor(text=[captions[0] for captions in rows["captions"]])
    audio = processor(audio=[load_audio(entry["path"]) for entry in rows["audio"]], sampling_rate=16000)
    cache = open_cache(cached[dtype], backbones, corpus, "validation", model)
    tokens = [cache[row] for row in range(len(cache))]
    assert len({len(one) for one in tokens}) > 1  # padding is part of the test
    mask = [torch.ones(len(one), dtype=torch.bool) for one in tokens]
    pad = torch.nn.utils.rnn.pad_sequence
    stored = {"fused_tokens": pad(tokens, batch_first=True), "audio_token_mask": pad(mask, batch_first=True)}
    losses, gradients = [], []
    for inputs in (audio, stored):
        model.zero_grad()
        loss = model(**text, **inputs, return_loss=True).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=PRECISION[dtype])
    trained = {".".join(name.split(".")[:2]) for name in gradients[0]}
    assert trained >= {"audio_tower.adapter", "structure.frame_layers", "text_tower.encoder", "text_tower.projection"}
    assert "score_parameters.log_gamma_kernel" in trained
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        error = (gradients[1][name] - expected).norm()
        # A difference of two large terms, as the bias of a key is, has no digits to compare.
        assert error <= 10 * PRECISION[dtype] * expected.norm() + 1e-6, name


def test_rounding_and_values_that_cannot_be_stored():
    """Rounding stays within half a step of each token's own scale; silence stays silence; NaN is no sound."""
    tokens = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 4, 50)[:, None]
    tokens[7] = 0
    error = (unpack_tokens(pack_tokens(tokens, "int8")) - tokens).abs()
    assert (error <= tokens.abs().amax(-1, keepdim=True) * (0.5 / 127 + 1e-6)).all()
    large = tokens[20:]
    assert ((unpack_tokens(pack_tokens(large, "float16")) - large).abs() <= large.abs() * 2**-11 + 1e-7).all()
    for dtype, value in (("float16", 1e5), ("float16", torch.nan), ("int8", torch.nan), ("int8", torch.inf)):
        tokens[3, 3] = value
        with pytest.raises(AudioFileError, match=f"{dtype} cannot hold"):
            pack_tokens(tokens, dtype)


def test_int8_takes_half_of_float16_and_the_size_of_an_hour_is_stored(cached, corpus):
    per_hour = {}
    for dtype, folder in cached.items():
        index = json.loads((folder / "train" / "index.json").read_text())
        size = sum(path.stat().st_size for path in (folder / "train").glob("*.safetensors"))
        hours = sum(open_dataset(str(corpus), "train", text_column="captions")["seconds"]) / 3600
        assert index["bytes_per_hour"] == pytest.approx(size / hours, rel=1e-3)
        tensors = load_file(folder / "train" / "shard-00003.safetensors")
        assert tensors["offsets"].tolist() == [0, index["rows"][3]["tokens"]]
        per_hour[dtype] = sum(tensor.nbytes for name, tensor in tensors.items() if name != "offsets")
    assert per_hour["int8"] / per_hour["float16"] == pytest.approx((64 + 4) / 128)  # M and a scale of 4 bytes


def test_a_model_folder_gives_its_own_encoders_and_workers_read_them(corpus, model_folder, tmp_path):
    encoders = ["--model", str(model_folder), "--shard_songs", "3"]
    assert precompute(["--dataset", str(corpus), "--splits", "test", "--output_dir", str(tmp_path), *encoders]) == 0
    model, processor = AutoModel.from_pretrained(model_folder), AutoProcessor.from_pretrained(model_folder)
    dataset = open_dataset(str(corpus), "test", text_column="captions")
    cache = TokenCache.open(tmp_path, "test", model, processor.feature_extractor, dataset)
    assert {row["shard"] for row in cache.rows} == {"shard-00000.safetensors", "shard-00001.safetensors"}
    expected = [cache[row] for row in range(4)]
    features = processor.feature_extractor.segment_features(torch.from_numpy(load_audio(dataset[0]["audio"]["path"])))
    inputs = [features[name] for name in ("music_features", "speech_features", "music_attention_mask")]
    with torch.no_grad():  # this model has dropout, which must be off
        fused = model.eval().audio_tower.fuse(*inputs)[features["audio_token_mask"]]  # (T, M)
    assert (expected[0] - fused).norm() < PRECISION["float16"] * fused.norm()
    loader = torch.utils.data.DataLoader(cache, batch_size=None, sampler=[3, 0, 2, 1], num_workers=1)
    for row, tokens in zip([3, 0, 2, 1], loader, strict=True):
        assert torch.equal(tokens, expected[row])


# --------------------------------------------------------------------------------------------------------------------
# Interrupted, repeated, damaged


def test_a_killed_run_goes_on_to_the_same_bytes(cached, corpus, backbones, tmp_path):
    todo = arguments(corpus, backbones, tmp_path / "out", splits=("train", "validation"))
    (process,) = start_processes(todo, log := tmp_path / "log", 1, script=precompute)
    train = tmp_path / "out" / "train"
    while not (train / "shard-00001.safetensors").exists():
        assert process.is_alive(), log.read_text()[-2000:]
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in train.glob("*.safetensors")}
    assert 2 <= len(done) < 8 and not (train / "index.json").exists()
    with pytest.raises(ValueError, match="run it again if it was interrupted"):
        open_cache(tmp_path / "out", backbones, corpus)
    # As if it had been killed while writing the next one.
    whole = (cached["float16"] / "train" / "shard-00007.safetensors").read_bytes()
    (train / "shard-00007.safetensors.partial").write_bytes(whole[: len(whole) // 2])
    assert precompute(todo) == 0
    assert files(tmp_path / "out") == files(cached["float16"])
    assert all((train / name).stat().st_mtime_ns == changed for name, changed in done.items())


def test_two_processes_write_what_one_writes(corpus, backbones, tmp_path, capsys):
    shutil.copytree(corpus, tmp_path / "songs")
    (tmp_path / "songs" / "train" / "train-0002.flac").write_text("not music")
    splits = {"splits": ("train", "validation"), "max_bad_share": 0.2}
    assert precompute(arguments(tmp_path / "songs", backbones, tmp_path / "one", "int8", **splits)) == 0
    assert "0 of 4 songs" in capsys.readouterr().out
    todo, log = arguments(tmp_path / "songs", backbones, tmp_path / "two", "int8", **splits), tmp_path / "log"
    processes = start_processes(todo, log, 2, script=precompute)
    for process in processes:
        process.join(timeout=300)
    output = log.read_text()
    assert [process.exitcode for process in processes] == [0, 0], output[-3000:]
    assert output.count("MB for an hour of audio") == 2  # one line for a split, not for a process
    assert output.count("skipped: row 1 (train-0002.flac)") == 1  # one of the processes had it
    assert "1 of 8 songs could not be read (train-0002.flac)" in output
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_processes_that_do_not_know_of_one_another_are_refused(corpus, backbones, tmp_path, monkeypatch, capsys):
    """As `accelerate launch --num_processes 2` starts them on a machine without a GPU."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert precompute(arguments(corpus, backbones, tmp_path)) == 1
    assert "ACCELERATE_USE_CPU=true" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_shard_is_noticed_and_mended(cached, corpus, backbones, tmp_path, damage):
    shutil.copytree(cached["int8"] / "train", tmp_path / "train")
    path = tmp_path / "train" / "shard-00004.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-100])
    if damage == "gone":
        path.unlink()
    if damage == "flipped":  # found where it is read: opening a cache does not read all of it
        cache = open_cache(tmp_path, backbones, corpus)
        assert len(cache[3]) and len(cache[5])
        with pytest.raises(ValueError, match=r"shard-00004.*row 4 is damaged") as caught:
            cache[4]
        assert not isinstance(caught.value, AudioFileError)  # a data set would go on without the row
    else:
        with pytest.raises(ValueError, match=r"shard-00004.*run collap precompute"):
            open_cache(tmp_path, backbones, corpus)
    assert precompute(arguments(corpus, backbones, tmp_path, "int8")) == 0
    assert files(tmp_path / "train") == files(cached["int8"] / "train")


# --------------------------------------------------------------------------------------------------------------------
# Refused


def test_encoders_that_differ_by_one_bit_are_refused(cached, corpus, backbones):
    for part in ("audio_tower.music", "audio_tower.speech"):
        model = backbone_model(backbones)
        weight = next(iter(model.get_submodule(part).state_dict().values()))
        weight.view(torch.int32).view(-1)[0] ^= 1
        with pytest.raises(ValueError, match="made by other encoders"):
            open_cache(cached["float16"], backbones, corpus, model=model)
    model = backbone_model(backbones)
    model.audio_tower.music.config.num_attention_heads = 4  # other numbers of the same weights
    with pytest.raises(ValueError, match="made by other encoders"):
        open_cache(cached["float16"], backbones, corpus, model=model)
    model = backbone_model(backbones, structure_layers=1, projection_dim=64)  # neither was asked for the tokens
    assert len(open_cache(cached["float16"], backbones, corpus, model=model)) == 8


def test_other_feature_settings_are_refused(cached, corpus, backbones, monkeypatch):
    with pytest.raises(ValueError, match=r"segment_seconds is 2\.0, expected 1\.0"):
        open_cache(cached["float16"], backbones, corpus, model=backbone_model(backbones, segment_seconds=1))
    monkeypatch.setattr("collap.data.token_cache.FEATURES_VERSION", 1000)
    with pytest.raises(ValueError, match=r"features_version is \d+, expected 1000"):
        open_cache(cached["float16"], backbones, corpus)


def test_other_rows_are_refused(cached, corpus, backbones):
    dataset = open_dataset(str(corpus), "train", text_column="captions")
    with pytest.raises(ValueError, match="holds 8 rows, the data set 7"):
        open_cache(cached["float16"], backbones, corpus, dataset=dataset.select(range(7)))
    with pytest.raises(ValueError, match=r"row 2 was made from train-0003\.flac .* it is train-0004\.flac"):
        open_cache(cached["float16"], backbones, corpus, dataset=dataset.select([0, 1, 3, 2, 4, 5, 6, 7]))
    with pytest.raises(ValueError, match=r"splits with a whole cache are \['train', 'validation'\]"):
        open_cache(cached["float16"], backbones, corpus, "test")


def test_changed_audio_is_refused_and_its_shard_computed_anew(cached, corpus, backbones, tmp_path):
    shutil.copytree(corpus, tmp_path / "songs")
    shutil.copytree(cached["float16"], tmp_path / "out")
    song = tmp_path / "songs" / "train" / "train-0006.flac"
    shard = tmp_path / "out" / "train" / "shard-00005.safetensors"
    samples, rate = soundfile.read(song)
    soundfile.write(song, samples[:-8000], rate)
    with pytest.raises(ValueError, match=r"row 5 was made from train-0006\.flac \(\d+ bytes\)"):
        open_cache(tmp_path / "out", backbones, tmp_path / "songs")
    before = {path: path.stat().st_ino for path in shard.parent.glob("*.safetensors")}
    assert precompute(arguments(tmp_path / "songs", backbones, tmp_path / "out")) == 0
    assert {path for path, inode in before.items() if path.stat().st_ino != inode} == {shard}
    cache = open_cache(tmp_path / "out", backbones, tmp_path / "songs")
    assert cache.seconds(5) == pytest.approx((len(samples) - 8000) / rate, abs=0.02)
    # A change that keeps the size is found by content when the script runs again.
    song.write_bytes(song.read_bytes().replace(b"libFLAC", b"LibFLAC"))  # in flac's comments
    tokens = shard.read_bytes()
    assert precompute(arguments(tmp_path / "songs", backbones, tmp_path / "out")) == 0
    assert shard.read_bytes() != tokens


def test_a_folder_with_other_tokens_is_not_overwritten(cached, corpus, backbones, capsys):
    before = files(cached["float16"])
    for change, message in (
        ({"dtype": "int8"}, "dtype is float16, expected int8"),
        ({"segment_seconds": 1}, r"segment_seconds is 2.0, expected 1.0"),
        ({"shard_songs": 2}, "shard_songs is 1, expected 2"),
    ):
        assert precompute(arguments(corpus, backbones, cached["float16"], **change)) == 1
        assert message in capsys.readouterr().err
    assert files(cached["float16"]) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "somewhere"}, "one of --model"),
        ({"shard_songs": 0}, "--shard_songs must be 1 or more, found 0"),
        ({"max_bad_share": 1.0}, "--max_bad_share must be from 0 to below 1"),
        ({"audio_column": "seconds"}, "the column 'seconds' holds"),
        ({"segment_seconds": 31}, "segment_seconds must be"),
    ],
)
def test_bad_options_are_named(corpus, backbones, tmp_path, capsys, options, message):
    assert precompute(arguments(corpus, backbones, tmp_path, **options)) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------------
# Audio as it comes


def test_bad_files_are_named_skipped_and_counted(corpus, backbones, tmp_path, capsys):
    songs = tmp_path / "songs"
    songs.mkdir()
    shutil.copy(corpus / "test" / "test-0001.flac", songs / "good.flac")
    (songs / "bad.mp3").write_text("not music")
    names = ["good.flac", "bad.mp3", "gone.flac", "good.flac"]
    lines = [json.dumps({"file_name": name, "text": "a song"}) for name in names]
    (songs / "metadata.jsonl").write_text("\n".join(lines))
    assert precompute(arguments(songs, backbones, tmp_path / "out", max_bad_share=0.3)) == 1
    error = capsys.readouterr().err
    assert "skipped: row 1 (bad.mp3): " in error and "--max_bad_share 0.3" in error
    with pytest.raises(ValueError, match=r"index\.json: not there"):
        open_cache(tmp_path / "out", backbones, None, dataset=open_dataset(str(songs), "train"))
    assert precompute(arguments(songs, backbones, tmp_path / "out", max_bad_share=0.5)) == 0
    assert "2 of 4 songs could not be read (bad.mp3, gone.flac)" in capsys.readouterr().out
    cache = open_cache(tmp_path / "out", backbones, None, dataset=open_dataset(str(songs), "train"))
    assert [cache.tokens(row) > 0 for row in range(4)] == [True, False, False, True]
    assert torch.equal(cache[0], cache[3]) and cache.seconds(1) == 0
    with pytest.raises(AudioFileError, match=r"row 1 \(bad\.mp3\): has no tokens"):
        cache[1]


def test_a_smaller_data_set_leaves_no_shards_of_the_larger_one(corpus, backbones, tmp_path):
    songs = tmp_path / "songs"
    songs.mkdir()
    for number in (1, 2):
        shutil.copy(corpus / "test" / f"test-000{number}.flac", songs)
    lines = [json.dumps({"file_name": f"test-000{number}.flac", "text": "a song"}) + "\n" for number in (1, 2)]
    for kept in (2, 1):
        (songs / "metadata.jsonl").write_text("".join(lines[:kept]))
        assert precompute(arguments(songs, backbones, tmp_path / "out")) == 0
        shards = [f"shard-0000{row}.safetensors" for row in range(kept)]
        assert sorted(path.name for path in (tmp_path / "out" / "train").iterdir()) == ["index.json", *shards]
    (songs / "test-0001.flac").write_text("not music")  # a run that fails leaves nothing that could be trained from
    assert precompute(arguments(songs, backbones, tmp_path / "out")) == 1
    assert not (tmp_path / "out" / "train" / "index.json").exists()


def test_audio_as_bytes(cached, corpus, backbones, tmp_path):
    """Bytes without a path in a table give the tokens of the files."""
    songs = [{"bytes": path.read_bytes(), "path": None} for path in sorted((corpus / "train").glob("*.flac"))]
    table = datasets.Dataset.from_dict({"audio": songs, "text": ["a song"] * 8})
    table.to_parquet(tmp_path / "songs.parquet")
    assert precompute(arguments(tmp_path / "songs.parquet", backbones, tmp_path / "out")) == 0
    dataset = open_dataset(str(tmp_path / "songs.parquet"), "train")
    cache = open_cache(tmp_path / "out", backbones, None, dataset=dataset)
    expected = open_cache(cached["float16"], backbones, corpus)
    assert all(torch.equal(cache[row], expected[row]) for row in range(8))
    with pytest.raises(ValueError, match=r"row 0 was made from None \(\d+ bytes\)"):
        open_cache(tmp_path / "out", backbones, None, dataset=dataset.select([1, 0, *range(2, 8)]))


def memory(name: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def test_a_long_file_takes_little_more_memory_than_a_short_one(backbones, tmp_path):
    """The growth is the stored tokens, not the audio or the features."""
    minute = (np.sin(np.arange(16000 * 60) * 0.05) * 8000).astype(np.int16)
    for minutes in (1, 10):
        soundfile.write(tmp_path / f"{minutes}.wav", np.tile(minute, minutes), 16000)
    tower, config = backbone_tower(str(backbones["beats"]), str(backbones["whisper"]), 2.0)
    extractor = CoLLAPFeatureExtractor.from_model_config(config)
    encode_song(tower.eval(), extractor, tmp_path / "1.wav", "float16")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    packed, seconds = encode_song(tower, extractor, tmp_path / "10.wav", "float16")
    growth = memory("VmHWM") - before
    features = 10 * 60 * 100 * (128 + 40) * 4  # 40 MB, and as much again for the audio
    assert seconds == 600 and growth < 3 * packed["tokens"].nbytes + 15e6 < features / 2
