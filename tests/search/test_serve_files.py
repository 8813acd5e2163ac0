"""The files of a library over HTTP: all of an indexed file, and nothing else of the machine."""

import os
import re
import shutil
from http.client import HTTPConnection
from pathlib import Path

import httpx
import mutagen
import numpy as np
import pytest
from libraries import index
from serving import copy_library, embed_picture, picture, serving

from collap.search.serve.covers import MAX_COVER_BYTES, cover_of, picture_type
from collap.search.serve.library_files import NotServed, open_library_file
from collap.search.serve.searcher import Searcher
from collap.search.serve.waveforms import PARTS, Waveforms, peaks_of
from collap.search.store import IndexStore
from processing.decode_audio import load_audio

SECRET = b"root:x:0:0"
WAYS_OUT = [
    "../../../../etc/passwd",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "..%252f..%252fetc%252fpasswd",
    "%00/etc/passwd",
    "..%c0%af..%c0%afetc/passwd",
    "%2fetc%2fpasswd",
    "....//....//etc/passwd",
    "..%5c..%5cetc%5cpasswd",
    "a%0ab",
    "0000000000000000",
]


@pytest.fixture(scope="module")
def tracks(dressed) -> dict[str, str]:
    """Id of a track by its path in the library."""
    store = IndexStore.open(dressed[1])
    return {store.path(row): id for row, id in enumerate(store.tracks["id"].to_pylist())}


def of_kind(tracks: dict[str, str], suffix: str, number: int = 0) -> tuple[str, str]:
    """Path and id of a track of a format, not of a link."""
    return [(path, id) for path, id in sorted(tracks.items()) if path.endswith(suffix) and "/" in path][number]


def refused(response: httpx.Response) -> str:
    """The line of an error that is 404, without anything of what is hidden."""
    assert response.status_code == 404 and SECRET not in response.content
    assert list(response.json()) == ["error"] and "\n" not in response.json()["error"]
    return response.json()["error"]


def sent_as_it_is(server: httpx.Client, path: str) -> httpx.Response:
    """The answer to a path that no client has tidied."""
    connection = HTTPConnection(server.base_url.host, server.base_url.port)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = httpx.Response(answer.status, content=answer.read())
    connection.close()
    return found


# ---- whole files and ranges


def test_every_indexed_file_is_sent_as_it_is(server, dressed, tracks):
    for path, id in tracks.items():
        response = server.get(f"/api/tracks/{id}/audio")
        assert response.status_code == 200 and response.content == (dressed[0] / path).read_bytes(), path
        assert response.headers["accept-ranges"] == "bytes"
        assert response.headers["content-type"].split("/")[0] == "audio"


@pytest.mark.parametrize(
    ("asked", "start", "stop"), [("bytes=0-9", 0, 10), ("bytes=100-", 100, None), ("bytes=-50", -50, None)]
)
def test_a_range_is_that_of_the_file(server, dressed, tracks, asked, start, stop):
    path, id = of_kind(tracks, ".mp3")
    content = (dressed[0] / path).read_bytes()
    response = server.get(f"/api/tracks/{id}/audio", headers={"range": asked})
    assert response.status_code == 206 and response.content == content[start:stop]
    first = start % len(content)
    assert response.headers["content-range"] == f"bytes {first}-{first + len(response.content) - 1}/{len(content)}"


def test_a_range_of_another_file_or_beyond_the_end_is_none(server, tracks):
    _, id = of_kind(tracks, ".mp3")
    url = f"/api/tracks/{id}/audio"
    assert server.get(url, headers={"range": "bytes=99999999-"}).status_code == 416
    assert server.get(url, headers={"range": "bytes=0-9", "if-range": '"another"'}).status_code == 200
    etag = server.head(url).headers["etag"]
    assert server.get(url, headers={"range": "bytes=0-9", "if-range": etag}).status_code == 206
    assert server.head(url).content == b""


# ---- what is not served


@pytest.mark.parametrize("way", WAYS_OUT)
@pytest.mark.parametrize("what", ["", "/audio", "/cover", "/waveform", "/curve?q=a"])
def test_no_way_leads_out_of_the_library(server, way, what):
    refused(sent_as_it_is(server, f"/api/tracks/{way}{what}"))


@pytest.mark.parametrize("way", ["../library_files.py", "..%2flibrary_files.py", "%2e%2e/__init__.py", "/etc/passwd"])
def test_only_files_of_the_page_are_served_as_such(server, way):
    refused(sent_as_it_is(server, f"/page/{way}"))


def replace_by_link(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside)


def replace_folder(path: Path, outside: Path) -> None:
    """The folder of the file becomes a link to one outside, with a file of that name."""
    shutil.copy(outside, outside.with_name(path.name))
    shutil.rmtree(path.parent)
    path.parent.symlink_to(outside.parent)


def replace_by_pipe(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path, outside: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_loop(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(path)


SWAPS = {
    replace_by_link: "a link out of the library",
    replace_folder: "a link out of the library",
    replace_by_pipe: "not the one that was indexed",
    replace_by_folder: "not the one that was indexed",
    replace_by_loop: "not where it was",
    lambda path, outside: path.unlink(): "not where it was",
    lambda path, outside: path.write_bytes(SECRET): "not the one that was indexed",
}


@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.__name__)
def test_a_file_that_was_swapped_after_indexing_is_not_served(dressed, tracks, tmp_path, swap):
    library = copy_library(dressed[0], tmp_path / "library")
    path, id = of_kind(tracks, ".flac")
    (tmp_path / "outside").mkdir()
    outside = tmp_path / "outside" / "secret"
    outside.write_bytes(SECRET + b" " * ((library / path).stat().st_size - len(SECRET)))  # of the same size
    with serving(Searcher(dressed[1], library)) as client:
        assert client.get(f"/api/tracks/{id}/audio").status_code == 200
        swap(library / path, outside)
        for what in ("audio", "cover", "waveform"):
            line = refused(client.get(f"/api/tracks/{id}/{what}"))
            assert SWAPS[swap] in line and str(tmp_path) not in line
        other = of_kind(tracks, ".mp3", 1)[1]  # goes on with the others
        assert client.get(f"/api/tracks/{other}/audio").status_code in (200, 404 if swap is replace_folder else 200)


def test_a_folder_that_becomes_a_link_while_it_is_opened_is_not_followed(tmp_path, monkeypatch):
    """As in a race: the path was looked at before the swap."""
    library, outside = tmp_path / "library", tmp_path / "outside"
    for folder in (library / "a", outside):
        folder.mkdir(parents=True)
        (folder / "song.mp3").write_bytes(SECRET)
    asked = os.fsencode(library / "a" / "song.mp3")
    real = os.path.realpath

    def looked_at(path, **settings):
        found = real(path, **settings)
        if found == asked:
            shutil.rmtree(library / "a")
            (library / "a").symlink_to(outside)
        return found

    monkeypatch.setattr(os.path, "realpath", looked_at)
    with pytest.raises(NotServed, match="not where it was"):
        open_library_file(library, b"a/song.mp3", len(SECRET))


def test_a_link_within_the_library_is_served(server, dressed, tracks):
    response = server.get(f"/api/tracks/{tracks['linked.mp3']}/audio")
    assert response.content == (dressed[0] / "linked.mp3").read_bytes()


def test_descriptors_are_closed_whatever_is_asked(server, tracks):
    _, id = of_kind(tracks, ".wav")
    url = f"/api/tracks/{id}/audio"
    server.get(url)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        server.head(url)
        server.get(url, headers={"range": "bytes=0-1"})
        server.get(url, headers={"range": "bytes=99999999-"})
        with server.stream("GET", url):
            pass  # goes away in the middle
        server.get(f"/api/tracks/{id}/cover")
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # connections come and go


def test_names_in_another_encoding_are_served(tmp_path, model_folder, dressed, tracks):
    path, _ = of_kind(tracks, ".flac")
    odd = os.path.join(os.fsencode(tmp_path / "library"), b"K\xfcnstler \xe2\x82")
    os.makedirs(odd)
    shutil.copy(dressed[0] / path, os.path.join(odd, b"St\xfcck #1?.flac"))
    assert index(tmp_path / "library", "--model", model_folder, "--index", tmp_path / "index") == 0
    with serving(Searcher(tmp_path / "index")) as client:
        (hit,) = client.get("/api/search", params={"q": "a song"}).raise_for_status().json()["hits"]
        assert hit["path"].isprintable()
        assert client.get(f"/api/tracks/{hit['id']}/audio").content == (dressed[0] / path).read_bytes()
        assert client.get(f"/api/tracks/{hit['id']}/waveform").status_code == 200


# ---- covers


@pytest.mark.parametrize("suffix", [".mp3", ".flac", ".ogg", ".opus", ".m4a", ".wav"])
def test_the_cover_of_every_format_is_found(dressed, tracks, tmp_path, suffix):
    path = tmp_path / f"song{suffix}"
    shutil.copy(dressed[0] / of_kind(tracks, suffix)[0], path)
    file = mutagen.File(path)
    for name in ("APIC:", "metadata_block_picture", "covr"):
        if name in (file.tags or {}):
            del file.tags[name]
    if suffix == ".flac":
        file.clear_pictures()
    file.save()
    with open(path, "rb") as song:
        assert cover_of(song) is None
    embed_picture(path, picture("PNG"))
    with open(path, "rb") as song:
        assert cover_of(song) == (picture("PNG"), "image/png")


def test_covers_are_sent_where_there_are_any(server, tracks):
    found = [server.get(f"/api/tracks/{id}/cover") for id in tracks.values()]
    with_cover = [one for one in found if one.status_code == 200]
    assert len(with_cover) >= 5
    assert all(one.content == picture() and one.headers["content-type"] == "image/jpeg" for one in with_cover)
    assert all("no picture" in refused(one) for one in found if one.status_code != 200)


def test_what_is_no_picture_of_pixels_is_not_sent(dressed, tracks, tmp_path):
    path = tmp_path / "song.flac"
    for content in (
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<html>",
        b"",
        picture() + b" " * MAX_COVER_BYTES,
    ):
        shutil.copy(dressed[0] / of_kind(tracks, ".flac")[0], path)
        file = mutagen.File(path)
        file.clear_pictures()
        file.save()
        embed_picture(path, content)
        with open(path, "rb") as song:
            assert cover_of(song) is None
    assert [picture_type(picture(kind)) for kind in ("GIF", "WEBP")] == ["image/gif", "image/webp"]


# ---- waveforms


def test_a_waveform_is_the_loudest_sample_of_each_part(server, dressed, tracks):
    path, id = of_kind(tracks, ".flac")
    peaks = server.get(f"/api/tracks/{id}/waveform").raise_for_status().json()["peaks"]
    samples = load_audio(str(dressed[0] / path), 8000)
    naive = [np.abs(part).max() for part in np.array_split(samples, PARTS)]
    assert np.corrcoef(peaks, naive)[0, 1] > 0.99
    assert max(peaks) == pytest.approx(max(naive), abs=1e-3)


def test_peaks_do_not_depend_on_the_blocks():
    samples = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    whole = peaks_of([samples], 1000, 10)
    assert np.array_equal(whole, np.abs(samples).reshape(10, 100).max(1))
    assert np.array_equal(peaks_of(np.array_split(samples, 7), 1000, 10), whole)
    assert np.array_equal(peaks_of([samples, samples[:5]], 1000, 10)[:9], whole[:9])  # longer than was said


def test_waveforms_that_nobody_asks_for_any_more_are_dropped(dressed, tracks):
    waveforms = Waveforms(kept=2)
    for path in list(tracks)[:3]:
        waveforms.compute(path, str(dressed[0] / path), 12.0)
    first, *others = list(tracks)[:3]
    assert waveforms.get(first) is None and all(waveforms.get(path) for path in others)


# ---- the page


def test_the_page_needs_nothing_from_elsewhere_and_parses_no_html():
    folder = Path(open_library_file.__code__.co_filename).with_name("page")
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//\w+\.\w+/", text.replace("// ", "")), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\bon\w+=\"", text), path
