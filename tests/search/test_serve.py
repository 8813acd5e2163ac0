"""Searching over HTTP, through a real server: the same answers as in Python, limits, errors in one line, and many at
once."""

import json
import os
import shutil
import signal
import socket
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import httpx
import pytest
from libraries import command_process, index
from serving import HOSTILE_ARTIST, HOSTILE_TITLE, serving, until

from app import arguments
from collap.cli import main, parse
from collap.search.index import TrackIndex
from collap.search.serve import searcher as searchers
from collap.search.serve.answers import MAX_CHARACTERS
from collap.search.serve.limits import Limits
from collap.search.serve.searcher import Searcher

PLACES = ("file", "uri", "track")  # of a hit, that are nobody's business
QUERY = "a slow song with piano. then a choir sings"


@pytest.fixture(scope="module")
def tracks(dressed) -> TrackIndex:
    return TrackIndex.open(dressed[1])


@pytest.fixture
def searcher(dressed) -> Searcher:
    """One of the test's own."""
    return Searcher(dressed[1])


def search(client: httpx.Client, **asked) -> list[dict]:
    return client.get("/api/search", params=asked).raise_for_status().json()["hits"]


def refused(response: httpx.Response, status: int) -> str:
    """The line of an error, which is all that there is."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    line = response.json()["error"]
    assert line and "\n" not in line and "Traceback" not in line
    return line


# ---- the same answers as in Python


def test_hits_are_those_of_python_with_all_their_fields(server, tracks):
    answer = server.get("/api/search", params={"q": QUERY, "k": 4, "curve": True}).raise_for_status().json()
    expected = json.loads(json.dumps(tracks.search(QUERY, k=4, curve=True).to_dict()))
    for hit in expected["hits"]:
        assert [hit.pop(name) for name in PLACES] and hit["sentences"] and len(hit["curve"]["scores"]) > 3
    assert answer.pop("milliseconds") > 0 and answer == expected


def test_searches_are_narrowed_and_keep_their_order(server):
    def found(**asked) -> list[str]:
        return [hit["id"] for hit in search(server, **{"q": QUERY, "k": 100, "all_copies": True, **asked})]

    everything = search(server, q=QUERY, k=100, all_copies=True)
    assert len(everything) == 13 and everything == sorted(everything, key=lambda hit: -hit["score"])
    jazz = [hit["id"] for hit in everything if hit["genre"] == "Jazz"]
    long = [hit["id"] for hit in everything if hit["seconds"] >= 15]
    short = [hit["id"] for hit in everything if hit["seconds"] <= 15]
    assert found(filter="genre=jazz") == jazz and found(filter="not genre=jazz", k=2) != jazz[:2]
    assert found(min_seconds=15) == long and found(max_seconds=15) == short and 0 < len(long) < 13
    assert found(k=2) == [hit["id"] for hit in everything[:2]]
    assert found(min_seconds=1e6) == []
    exact = server.get("/api/search", params={"q": QUERY, "mode": "exact", "k": 1}).json()
    assert exact["rescored"] == exact["searched"] == 13 and exact["hits"][0]["certified"]
    recordings = search(server, q=QUERY, k=100)
    assert len(recordings) == 12 and [len(hit["copies"]) for hit in recordings].count(1) == 1
    assert sorted(path for hit in recordings for path in (hit["path"], *hit["copies"])) == sorted(
        hit["path"] for hit in everything
    )
    other = search(server, **{"q": QUERY, "not": "a loud guitar", "k": 100, "all_copies": True})
    assert {hit["id"] for hit in other} == {hit["id"] for hit in everything}
    assert [hit["score"] for hit in other] != [hit["score"] for hit in everything]


def test_a_clip_finds_what_its_song_finds(server, dressed):
    for hit in search(server, q=QUERY, k=3):
        clip = (dressed[0] / hit["path"]).read_bytes()
        heard = server.post("/api/similar", content=clip, params={"k": 100, "all_copies": True})
        heard = heard.raise_for_status().json()["hits"]
        liked = search(server, like=hit["id"], k=100, all_copies=True)
        stored = {one["id"]: one["score"] for one in liked}  # from 8 bits
        scores = {one["id"]: one["score"] for one in heard}
        assert scores.pop(hit["id"])  # which `like` leaves out
        assert scores == pytest.approx(stored, rel=0.01)


def test_a_track_and_its_curve(server):
    (hit,) = search(server, q=QUERY, k=1)
    about = server.get(f"/api/tracks/{hit['id']}").raise_for_status().json()
    assert about == {name: hit[name] for name in about} and {"title", "path", "seconds"} <= about.keys()
    curve = server.get(f"/api/tracks/{hit['id']}/curve", params={"q": QUERY}).raise_for_status().json()
    assert curve == search(server, q=QUERY, k=1, curve=True)[0]["curve"]
    assert len(curve["starts"]) == len(curve["ends"]) == len(curve["scores"]) > 3
    assert curve["starts"] == sorted(curve["starts"]) and 0 <= curve["starts"][-1] < curve["ends"][-1] <= hit["seconds"]


def test_statistics_say_what_is_there_and_not_where(server, dressed):
    answer = server.get("/api/stats").raise_for_status()
    about = answer.json()
    assert about["tracks"] == 13 and about["failed"] == 0 and 0.04 < about["hours"] < 0.08
    assert about["genres"][0]["tracks"] == 5 and about["bytes"] > 10_000
    assert str(dressed[0].parent) not in answer.text and about["model"] == "collap-gpt2"


def test_long_descriptions_in_any_script_are_taken(server):
    for text in ("琴" * MAX_CHARACTERS, "é\n" * (MAX_CHARACTERS // 2), "\0 \ud800".encode("utf-8", "replace").decode()):
        assert len(search(server, q=text, k=2)) == 2


def test_hostile_tags_are_json_like_any_text(server):
    hits = search(server, q=QUERY, k=100)
    assert (HOSTILE_TITLE, HOSTILE_ARTIST) in [(hit["title"], hit["artist"]) for hit in hits]
    for path in ("/api/search?q=a", "/api/stats"):
        headers = server.get(path).headers
        assert headers["content-type"] == "application/json" and headers["x-content-type-options"] == "nosniff"


def test_the_description_knows_every_route_and_field(server):
    about = server.get("/openapi.json").raise_for_status().json()
    assert {"/api/search", "/api/similar", "/api/stats", "/api/tracks/{id}/audio"} <= about["paths"].keys()
    names = {one["name"] for one in about["paths"]["/api/search"]["get"]["parameters"]}
    assert names == {"q", "not", "like", "filter", "k", "min_seconds", "max_seconds", "mode", "curve", "all_copies"}
    assert about["components"]["schemas"]["FoundTrack"]["properties"].keys() == search(server, q=QUERY)[0].keys()
    for path, methods in about["paths"].items():
        for method in methods.values():
            assert {"200", "422", "503"} <= method["responses"].keys(), path
            problem = method["responses"]["422"]["content"]["application/json"]["schema"]
            assert problem == {"$ref": "#/components/schemas/Problem"}


def test_what_is_published_meanwhile_is_found_without_a_restart(dressed, model_folder, tmp_path):
    library = shutil.copytree(dressed[0], tmp_path / "library")
    for path in sorted(library.rglob("*.*"))[4:]:
        path.unlink()
    assert index(library, "--model", model_folder, "--index", tmp_path / "index") == 0
    with serving(Searcher(tmp_path / "index")) as client:
        before = search(client, q=QUERY, k=100)
        for path in sorted(library.rglob("*.*"))[:2]:
            path.unlink()
        assert index(library, "--index", tmp_path / "index") == 0
        after = search(client, q=QUERY, k=100)
        assert len(before) == 4 and [hit["id"] for hit in after] == [
            hit["id"] for hit in before if (library / hit["path"]).exists()
        ]
        (tmp_path / "index" / "manifest.json").write_text("{")  # damaged: the last good one answers
        assert search(client, q=QUERY, k=100) == after


def test_an_engine_proposes_what_is_found_and_is_waited_for(dressed, tmp_path, monkeypatch):
    library, folder = shutil.copytree(dressed[0], tmp_path / "library"), tmp_path / "index"
    shutil.copytree(dressed[1], folder)
    assert index(library, "--index", folder, "--engine", tmp_path / "lance") == 0
    monkeypatch.setattr(searchers, "AGAIN_SECONDS", 0)
    with serving(Searcher(folder)) as plain, serving(Searcher(folder, engine=tmp_path / "lance")) as client:
        before = search(client, q=QUERY, k=100)
        assert before == search(plain, q=QUERY, k=100) and len(before) == 12
        asked = {"q": QUERY, "filter": "genre=jazz"}
        notes = [one.get("/api/search", params=asked).json()["notes"] for one in (client, plain)]
        assert notes == [["the engine knows of no filter: this was searched without it"], []]
        content = bytearray(next(library.rglob("*.wav")).read_bytes())
        content[2000:60_000] = bytes(58_000)
        (library / "new.wav").write_bytes(content)
        assert index(library, "--index", folder) == 0
        after = search(plain, q=QUERY, k=100)
        assert len(after) == 13 and search(client, q=QUERY, k=100) == before  # which the engine is of
        assert index("--index", folder, "--engine", tmp_path / "lance") == 0
        assert search(client, q=QUERY, k=100) == after


# ---- what is refused


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "q, a description"),
        ({"q": "a", "like": "b"}, "not both"),
        ({"q": "  "}, "empty"),
        ({"q": "a", "not": ""}, "empty"),
        ({"q": "x" * (MAX_CHARACTERS + 1)}, f"q: String should have at most {MAX_CHARACTERS} characters"),
        ({"q": "a", "not": "x" * (MAX_CHARACTERS + 1)}, "not: "),
        ({"q": "a", "k": 0}, "k: "),
        ({"q": "a", "k": 10**9}, "k: "),
        ({"q": "a", "k": "ten"}, "k: "),
        ({"q": "a", "min_seconds": "nan"}, "min_seconds: "),
        ({"q": "a", "max_seconds": -1}, "max_seconds: "),
        ({"q": "a", "filter": "year >=? 3"}, "filter"),
        ({"q": "a", "limit": 3}, "limit: "),
        ({"q": "a", "mode": "best"}, "mode: "),
        ({"like": "ffffffffffffffff"}, "ffffffffffffffff"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_line(server, asked, said):
    assert said in refused(server.get("/api/search", params=asked), 422)


def test_what_is_not_there_is_said_in_one_line(server):
    assert "openapi" in refused(server.get("/api/nothing"), 404)
    assert "no song" in refused(server.get("/api/tracks/0123/curve?q=a"), 404)
    refused(server.post("/api/search"), 405)


def test_the_server_fails_without_telling_its_code(searcher, monkeypatch):
    def failing(*arguments):
        raise KeyError("/a/place/of/the/machine")

    monkeypatch.setattr(searcher, "search", failing)
    with serving(searcher) as client:
        assert "machine" not in refused(client.get("/api/search?q=a"), 500)


def test_only_its_own_names_are_answered(searcher):
    with serving(searcher, names=frozenset({"music.example.org"})) as client:
        port = client.base_url.port
        for host in (f"127.0.0.1:{port}", "localhost", "[::1]:80", "MUSIC.example.org", "192.168.1.2:8000"):
            assert client.get("/api/stats", headers={"host": host}).status_code == 200, host
        for host in ("evil.example.com", f"127.0.0.1.evil.example.com:{port}", "localhost.evil.example.com", "[", ""):
            refused(client.get("/api/stats", headers={"host": host}), 421)


def test_pages_from_elsewhere_can_neither_ask_nor_read_nor_frame(server):
    for origin in ("http://evil.example.com", "null", f"https://{server.base_url.host}", "http://["):
        refused(server.post("/api/similar", content=b"x", headers={"origin": origin}), 403)
    headers = server.get("/", headers={"origin": "http://evil.example.com"}).headers
    assert not [name for name in headers if name.startswith("access-control")]
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    own = f"http://{server.base_url.host}:{server.base_url.port}"
    assert server.post("/api/similar", content=b"x", headers={"origin": own}).status_code == 422


# ---- clips


def test_a_clip_that_is_too_large_is_refused_whether_or_not_it_says_so(searcher, dressed):
    with serving(searcher, Limits(upload_bytes=100_000)) as client:
        assert "100000 bytes" in refused(client.post("/api/similar", content=b"x" * 100_001), 413)
        unsaid = client.post("/api/similar", content=(b"x" * 10_000 for _ in range(11)))
        assert "content-length" not in unsaid.request.headers
        assert "100000 bytes" in refused(unsaid, 413)
        assert "not an audio file" in refused(client.post("/api/similar", content=b"x" * 100_000), 422)
        assert "empty" in refused(client.post("/api/similar"), 422)


def test_a_clip_that_is_too_long_or_too_slow_is_refused(searcher, dressed):
    clip = next(dressed[0].rglob("*.mp3")).read_bytes()
    with serving(searcher, Limits(clip_seconds=5.0, upload_seconds=0.2)) as client:
        assert "longer than 5 s" in refused(client.post("/api/similar", content=clip), 422)
        with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
            headers = b"Host: localhost\r\nConnection: close\r\nContent-Length: 50000"
            slow.sendall(b"POST /api/similar HTTP/1.1\r\n" + headers + b"\r\n\r\nRIFF")
            assert b"not there after 0.2 s" in b"".join(iter(lambda: slow.recv(10_000), b""))


def test_a_clip_whose_client_goes_away_is_not_embedded_further(searcher, monkeypatch):
    began, stopped = threading.Event(), threading.Event()

    def embed(clip, seconds, gone):
        began.set()
        stopped.set() if gone.wait(20) else None
        raise ValueError("given up")

    monkeypatch.setattr(searcher, "embed_clip", embed)
    with serving(searcher) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as one:
            one.sendall(b"POST /api/similar HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nRIFF")
            assert began.wait(20)
        assert stopped.wait(20)


# ---- many at once


def test_fifty_searches_at_once_are_all_answered(server):
    queries = [f"{QUERY} {number % 5}" for number in range(50)]
    expected = {query: search(server, q=query, k=2) for query in set(queries)}
    start = threading.Barrier(50)

    def ask(query: str) -> bool:
        with httpx.Client(base_url=server.base_url, timeout=60) as client:
            start.wait()
            return search(client, q=query, k=2) == expected[query]

    with ThreadPoolExecutor(50) as clients:
        assert all(clients.map(ask, queries))


@pytest.fixture
def held(searcher, monkeypatch):
    """A searcher whose searches wait until they are let go; counts those that have begun."""
    searcher.begun, searcher.release, answer = [], threading.Event(), searcher.search

    def waiting(asked):
        searcher.begun.append(asked.q)
        assert searcher.release.wait(30)
        return answer(asked)

    monkeypatch.setattr(searcher, "search", waiting)
    yield searcher
    searcher.release.set()


def test_the_server_answers_while_it_searches_and_refuses_what_it_cannot_do_soon(held):
    limits = Limits(search_threads=1, searches_waiting=1)
    with serving(held, limits) as client, ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(httpx.get, f"{client.base_url}/api/search?q={name}", timeout=60) for name in "abc"]
        # One runs, one waits, one is refused; which is which is the network's.
        (busy, *_), waiting = wait(asked, timeout=20, return_when=FIRST_COMPLETED)
        assert "waiting" in refused(busy.result(), 503) and int(busy.result().headers["retry-after"]) > 0
        assert len(waiting) == 2 and until(lambda: len(held.begun) == 1) and client.get("/").status_code == 200
        held.release.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
        assert client.get("/api/search?q=c").status_code == 200  # places are given back


def test_a_search_whose_client_goes_away_before_its_turn_is_not_made(held):
    with serving(held, Limits(search_threads=1)) as client, ThreadPoolExecutor(1) as clients:
        running = clients.submit(httpx.get, f"{client.base_url}/api/search?q=first", timeout=60)
        assert until(lambda: held.begun == ["first"])
        for _ in range(3):
            with socket.create_connection((client.base_url.host, client.base_url.port)) as one:
                one.sendall(b"GET /api/search?q=gone HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.get("/").status_code == 200  # they have been read
        held.release.set()
        assert running.result().status_code == 200
        assert search(client, q="last") and held.begun == ["first", "last"]


# ---- the command


def test_the_command_serves_at_loopback_until_ctrl_c(dressed, tmp_path):
    log = tmp_path / "log"
    log.touch()
    process = command_process(log, "serve", "--index", dressed[1], "--port", 0)
    try:
        assert until(lambda: "http://" in log.read_text())
        url = log.read_text().split("http://")[1].split()[0]
        assert url.startswith("127.0.0.1:")
        with httpx.Client(base_url=f"http://{url}", timeout=30) as client:
            assert len(search(client, q=QUERY)) == 10
            assert "<title>" in client.get("/").text
        os.kill(process.pid, signal.SIGINT)
        process.join(30)
    finally:
        process.kill()
    assert process.exitcode == 0 and "Traceback" not in log.read_text()


def test_what_cannot_be_served_is_said_before_anything_is_loaded(capsys, dressed, tmp_path):
    def said(*options: object) -> str:
        assert main(["serve", "--index", str(dressed[1]), *map(str, options)]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in said("--port", taken.getsockname()[1])
    assert "--host" in said("--host", "no.such.host.invalid")
    assert "--port" in said("--port", 99999)
    assert "no such folder" in said("--library", tmp_path / "nowhere")
    assert "--max_upload_mb" in said("--max_upload_mb", 0)
    assert "fill it with collap index --engine" in said("--port", 0, "--engine", tmp_path / "none")
    assert main(["serve", "--port", "0", "--index", str(tmp_path)]) == 1
    assert "holds no index" in capsys.readouterr().err


def test_the_script_of_a_space_takes_its_options_from_the_environment():
    environment = {"SPACE_HOST": "me-music.hf.space", "COLLAP_LIBRARY": "songs", "COLLAP_ENGINE": "db://music"}
    options = parse("serve", arguments(environment))
    assert (options.host, options.port, str(options.index)) == ("0.0.0.0", 7860, "index")
    assert options.allow_host == ["me-music.hf.space"] and options.embedded_in == "https://huggingface.co"
    assert str(options.library) == "songs" and options.engine == "db://music"
