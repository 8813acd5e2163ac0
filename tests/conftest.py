"""Set before torch and transformers are imported: no network, one thread (the machine may be shared), plain output."""

import gc
import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # runs of train.py are forked from here, which a pool of threads does not survive
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# What the tests import stays: to look through it for garbage took 8 of the 18 s in which tests are collected. A forked
# process would copy every page that it looks at.
gc.disable()
os.register_at_fork(after_in_child=gc.freeze)


def pytest_collection_finish():
    settle_autograd()
    gc.freeze()
    gc.enable()


def settle_autograd() -> None:
    """Let autograd count the devices while there are none but the CPU: at the first backward pass of a process, once.

    torch.export and torch.compile put a stand-in for CUDA beside it. A first pass after them starts a thread for that
    device, and every process that is forked from here later is refused its own backward pass.
    """
    import torch

    torch.ones((), requires_grad=True).backward()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A corpus of rendered songs of 12 to 20 s: 8 to train on, 4 to validate, 4 to test."""
    from collap.corpora.synthetic.songs import build_corpus

    splits = {"train": 8, "validation": 4, "test": 4}
    folder = tmp_path_factory.mktemp("corpus") / "songs"
    return build_corpus(folder, splits, min_seconds=12.0, max_seconds=20.0, num_workers=1)


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    """Songs and sentences that data sets in their real layouts are made of."""
    from real_sets import Sounds

    return Sounds(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="session")
def real(tmp_path_factory, sounds):
    """Name of a data set -> a folder in its real layout; not to be written to."""
    from real_sets import WRITERS

    folders = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    return {name: write(folders[name], sounds) for name, write in WRITERS.items()}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny untrained CoLLAP (GPT-2) with its processor, as `save_pretrained` writes them."""
    from tiny import tiny_model, tiny_processor

    folder = tmp_path_factory.mktemp("model") / "collap-gpt2"
    tiny_model("gpt2").save_pretrained(folder)
    tiny_processor("gpt2").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def library(tmp_path_factory, corpus):
    """A library of 12 tagged songs in six formats, in folders of three artists; not to be written to."""
    from libraries import make_library

    return make_library(tmp_path_factory.mktemp("library"), sorted(corpus.rglob("*.flac"))[:12])


@pytest.fixture(scope="session")
def indexed(tmp_path_factory, library, model_folder):
    """An index of the library in shards of 5, by the tiny CoLLAP; not to be written to."""
    from collap.cli import main

    folder = tmp_path_factory.mktemp("indexed") / "music.index"
    arguments = ["index", library, "--model", model_folder, "--index", folder, "--shard_tracks", "5"]
    assert main(list(map(str, arguments))) == 0
    return folder


@pytest.fixture(scope="session")
def dressed(tmp_path_factory, corpus, model_folder):
    """A library with covers, links and hostile tags, and its index; neither is to be written to."""
    from serving import index_dressed

    return index_dressed(tmp_path_factory.mktemp("dressed"), sorted(corpus.rglob("*.flac"))[:12], model_folder)


@pytest.fixture(scope="session")
def server(dressed):
    """A client of a server of that index, in this process."""
    from serving import serving

    from collap.search.serve.searcher import Searcher

    with serving(Searcher(dressed[1])) as client:
        yield client


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """Folders of pretrained parts in the real layout, as `CoLLAPModel.from_backbones` reads them; dropout is off."""
    from tiny import save_tiny_backbones

    return save_tiny_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="session", autouse=True)
def private_datasets_cache(tmp_path_factory):
    """What the tests load through `datasets` is cached in a folder that goes with them."""
    import datasets

    folder = tmp_path_factory.mktemp("datasets_cache")
    datasets.config.HF_DATASETS_CACHE = folder
    os.environ["HF_DATASETS_CACHE"] = str(folder)  # for the processes that tests start


@pytest.fixture
def no_readers():
    """Readers that are started in the test, and end with it."""
    from collap.data import guarded_reading

    while guarded_reading._idle:
        guarded_reading._idle.pop().end()
    yield
    while guarded_reading._idle:
        guarded_reading._idle.pop().end()


@pytest.fixture
def deadly(tmp_path_factory, monkeypatch, no_readers):
    """Make decoders die of files of certain names, in processes that are started from now on."""
    from deadly import DEADLY

    folder = tmp_path_factory.mktemp("deadly")
    (folder / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", str(folder))
