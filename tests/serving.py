"""A server of an index in this process, as `collap serve` runs it, and a library with what people put into files."""

import base64
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import mutagen
import uvicorn
from libraries import index, make_library, tags_of
from mutagen.flac import Picture
from mutagen.id3 import APIC
from mutagen.mp4 import MP4Cover
from PIL import Image

from benchmarks.library import write_tags
from collap.search.serve.application import make_application
from collap.search.serve.limits import Limits
from collap.search.serve.searcher import Searcher
from collap.search.serve.serving import address, listen

HOSTILE_TITLE = "<img src=x onerror=\"document.title='stolen'\">"
HOSTILE_ARTIST = "</script><script>document.title='stolen'</script>"


@contextmanager
def serving(searcher: Searcher, limits: Limits | None = None, **settings) -> Iterator[httpx.Client]:
    """Serve at a free port of this machine; gives a client of it."""
    listening = listen("127.0.0.1", 0)
    app = make_application(searcher, limits, **settings)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://{address(listening)}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def until(is_so, seconds: float = 20.0) -> bool:
    """Wait until a function says yes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not is_so():
        time.sleep(0.02)
    return is_so()


def picture(kind: str = "JPEG", colour: str = "red") -> bytes:
    """A small picture."""
    file = BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, kind)
    return file.getvalue()


def embed_picture(path: Path, content: bytes) -> None:
    """Put a picture into an audio file, as players do in its format."""
    file = mutagen.File(path)
    found = Picture()
    found.type, found.mime, found.data = 3, "image/jpeg", content
    if path.suffix == ".flac":
        file.add_picture(found)
    elif path.suffix in (".ogg", ".opus"):
        file["metadata_block_picture"] = [base64.b64encode(found.write()).decode()]
    elif path.suffix == ".m4a":
        file["covr"] = [MP4Cover(content)]
    else:
        file.tags.add(APIC(encoding=3, mime="image/jpeg", type=3, desc="", data=content))
    file.save()


def dressed_library(folder: Path, songs: list[Path]) -> Path:
    """A library of songs with covers in every other one, a title and an artist that are HTML, and a link within it."""
    make_library(folder, songs)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    write_tags(paths[0], {**tags_of(0), "title": HOSTILE_TITLE, "artist": HOSTILE_ARTIST})
    for path in paths[1::2]:
        embed_picture(path, picture())
    (folder / "linked.mp3").symlink_to(next(path for path in paths if path.suffix == ".mp3"))
    return folder


def copy_library(library: Path, folder: Path) -> Path:
    """Copy a library with its links, so that its files can be replaced."""
    return Path(shutil.copytree(library, folder, symlinks=True))


def index_dressed(folder: Path, songs: list[Path], model: Path) -> tuple[Path, Path]:
    """Make a dressed library and its index."""
    library = dressed_library(folder / "Müsik", songs)
    assert index(library, "--model", model, "--index", folder / "music.index", "--shard_tracks", 5) == 0
    return library, folder / "music.index"
