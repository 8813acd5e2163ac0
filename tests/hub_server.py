"""A small Hugging Face Hub in memory, on loopback, for `huggingface_hub`, `transformers`, `datasets` and `evaluate` as
they are installed.

Calls it speaks, for models, datasets and spaces:

    GET   /api/whoami-v2                            POST /api/validate-yaml, /api/repos/create
    GET   /api/{type}s/{id}[/revision/{rev}]        with siblings, and their sizes and hashes with ?blobs=1
    GET   /api/{type}s/{id}/tree/{rev}[/{path}]     with ?recursive and ?expand
    GET   /api/{type}s/{id}/auth-check[/write]
    GET   /api/{type}s/{id}/refs, /commits/{rev}    POST .../branch/{name}, /tag/{rev}, /paths-info/{rev}
    POST  /api/{type}s/{id}/preupload/{rev}, /commit/{rev}[?create_pr=1]
    POST  /{id}.git/info/lfs/objects/batch, /verify PUT to the storage (basic transfer)
    HEAD and GET  /{id}/resolve/{rev}/{path}        small files at once, LFS files by redirect to the storage
    HEAD and GET  /{sha256}                         of the storage: another origin, without tokens, with Range

Errors carry the Hub's `X-Error-Code`. A repository that a user may not see answers 401 (no token) or 404 (a token of
somebody else), as if it were missing. The Hub's Xet storage is not spoken: `environment()` turns it off, and the
clients then use LFS over HTTP.

    with HubServer() as hub:
        subprocess.run([...], env=hub.environment(tmp_path))
        hub.fail("GET", "/config.json", cut_after=100)  # the next such request breaks off; see `Fault`
        assert hub.requests("PUT") == [...]

huggingface_hub tries a request to the storage six times over 23 s when the connection breaks or the answer is 5xx; a
commit is sent once, and statuses such as 403 and 507 are final.
"""

import base64
import hashlib
import json
import os
import re
import socket
import sys
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER_TOKEN, READ_TOKEN = "token-of-you", "token-of-you-that-may-only-read"
USERS = {OWNER_TOKEN: "you", READ_TOKEN: "you", "token-of-somebody": "somebody"}
LFS_SUFFIXES = {".safetensors", ".bin", ".pt", ".onnx", ".parquet", ".arrow", ".flac", ".mp3", ".wav", ".npy", ".gz"}
MAX_REGULAR_BYTES = 10 * 2**20


class HubError(Exception):
    """An answer with an error status and, where clients look for them, `X-Error-Code` and `X-Repo-Commit`."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}


@dataclass(frozen=True)
class Blob:
    """A file: regular (hash as git's) or in the large file storage (sha256)."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def git_id(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        stored = pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_id

    def lfs_entry(self, oid: str) -> dict:
        return {"lfs": {oid: self.sha256, "size": len(self.content), "pointerSize": 134}} if self.lfs else {}


@dataclass(frozen=True)
class Commit:
    files: dict[str, Blob]
    title: str
    parent: "Commit | None"
    date: datetime = field(default_factory=lambda: datetime.now(UTC))

    @cached_property
    def id(self) -> str:
        tree = sorted((path, blob.git_id) for path, blob in self.files.items())
        parent = self.parent.id if self.parent else None
        return hashlib.sha1(json.dumps([tree, self.title, parent]).encode()).hexdigest()

    @property
    def when(self) -> str:
        return self.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def history(self) -> list["Commit"]:
        return [self] + (self.parent.history() if self.parent else [])


@dataclass
class Repository:
    """Its `refs` are full git names: `refs/heads/main`, `refs/tags/v1`, `refs/pr/1`."""

    kind: str
    id: str
    private: bool
    sdk: str | None = None
    refs: dict[str, Commit] = field(default_factory=dict)

    def ref(self, revision: str) -> str | None:
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.refs), None)

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag, a pull request or an id."""
        if name := self.ref(revision):
            return self.refs[name]
        known = {commit.id: commit for head in self.refs.values() for commit in head.history()}
        if revision not in known:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return known[revision]


@dataclass
class Fault:
    """What happens to the next requests (`times`; None for all) of a method whose path contains `part`.

    Either the connection is closed after `cut_after` bytes of the body, read (PUT, POST) or sent (GET), or `status` is
    the answer, or a GET serves `content` in place of the file, whose name, hash and size the Hub has announced.
    """

    method: str
    part: str
    cut_after: int | None = None
    status: int | None = None
    content: bytes | None = None
    times: int | None = 1


@dataclass(frozen=True)
class Request:
    """One line of the log: `received` and `sent` count the bytes of the bodies, `span` is the Range asked for."""

    method: str
    path: str
    status: int | None
    received: int
    sent: int
    span: str | None
    token: str | None


def front_matter(card: str) -> dict:
    """The YAML head of a card; 400 as the Hub's if it is none."""
    match = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", card, re.DOTALL)
    try:
        data = (yaml.safe_load(match[1]) if match else None) or {}
    except yaml.YAMLError as error:
        raise HubError(400, f"Invalid metadata in README.md: {error}") from error
    if not isinstance(data, dict):
        raise HubError(400, "Invalid metadata in README.md: expected a mapping")
    return data


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    return PurePosixPath(path).suffix in LFS_SUFFIXES or size > MAX_REGULAR_BYTES or b"\0" in sample


def with_folders(files: dict[str, Blob]) -> list[str]:
    """The paths of files and of the folders they are in."""
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    return sorted({*files, *folders})


class HubServer:
    """The Hub; `endpoint` is its address and `storage` that of its large files. The user "you" owns `token`."""

    token = OWNER_TOKEN

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[BaseException] = []  # of the server's own, raised when it closes
        self.lock = threading.RLock()
        self._servers = [_Listener(self, handler) for handler in (HubHandler, StorageHandler)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()
        if self.errors:
            raise self.errors[0]

    def environment(self, folder: Path, token: str | None = OWNER_TOKEN) -> dict[str, str]:
        """All the variables of a fresh process that speaks to this Hub as the owner of `token` (None: nobody) and keeps
        every cache in `folder`."""
        variables = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(folder / "hf_home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HOME": str(folder),
            "PATH": os.environ.get("PATH", ""),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return variables if token is None else {**variables, "HF_TOKEN": token}

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """What a revision holds, but for the Hub's own .gitattributes."""
        files = self.repository(name, kind).at(revision).files
        return {path: blob.content for path, blob in files.items() if path != ".gitattributes"}

    def commit(self, name: str, files: dict[str, bytes], kind: str = "model", revision: str = "main") -> str:
        """Adds files to a repository (made if there is none) without a client, even malicious ones; the commit id."""
        repository = self.repositories.get((kind, name)) or self.create(kind, name)
        changes = {path: Blob(content, is_lfs(path, len(content), content[:512])) for path, content in files.items()}
        self.objects.update({blob.sha256: blob.content for blob in changes.values() if blob.lfs})
        return self.advance(repository, f"refs/heads/{revision}", changes, "Add files").id

    def create(self, kind: str, name: str, private: bool = False, sdk: str | None = None) -> Repository:
        repository = self.repositories[kind, name] = Repository(kind, name, private, sdk)
        first = {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)}
        repository.refs["refs/heads/main"] = Commit(first, "initial commit", None)
        return repository

    def advance(self, repository: Repository, ref: str, changes: dict[str, Blob | None], title: str) -> Commit:
        """A commit on top of a ref, or of main where the ref is new; None deletes a file or a folder."""
        parent = repository.refs.get(ref) or repository.refs["refs/heads/main"]
        gone = tuple(path.rstrip("/") for path, blob in changes.items() if blob is None)
        kept = {path: blob for path, blob in parent.files.items() if path not in gone}
        kept = {path: blob for path, blob in kept.items() if not path.startswith(tuple(f"{path}/" for path in gone))}
        added = {path: blob for path, blob in changes.items() if blob is not None}
        repository.refs[ref] = Commit({**kept, **added}, title, parent)
        return repository.refs[ref]

    def fail(self, method: str, part: str, **fault) -> None:
        """Adds a [`Fault`]; an object of the storage goes by its sha256."""
        self.faults.append(Fault(method, part, **fault))

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.times != 0 and fault.part in path:
                    fault.times = fault.times and fault.times - 1
                    return fault
        return None

    def requests(self, method: str, part: str = "") -> list[Request]:
        """The answered requests of a method whose path contains `part`, in order."""
        with self.lock:
            return [request for request in self.log if request.method == method and part in request.path]


class _Listener(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, hub: HubServer, handler: type):
        self.hub = hub
        super().__init__(("127.0.0.1", 0), handler)

    def handle_error(self, *_):
        """A client that was killed is no error of the server's."""
        if not isinstance(error := sys.exception(), ConnectionError):
            self.hub.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads the body, applies a fault, logs; subclasses give `answer`."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def answer(self):
        raise NotImplementedError

    def handle_request(self):
        self.hub, self.status, self.sent, self.body = self.server.hub, None, 0, b""
        self.fault = self.hub.take_fault(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        try:
            if length and self.fault and self.fault.cut_after is not None:
                self.body = self.rfile.read(min(length, self.fault.cut_after))
                return self.cut()
            self.body = self.rfile.read(length)
            if self.fault and self.fault.status:
                raise HubError(self.fault.status, "injected by a test")
            self.answer()
        except HubError as error:
            given = {name: value for name, value in error.headers.items() if value}
            self.reply({"error": error.message}, error.status, given)
        finally:
            self.record()

    do_GET = do_HEAD = do_PUT = do_POST = handle_request

    def record(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        span = self.headers.get("Range")
        entry = Request(self.command, unquote(self.path), self.status, len(self.body), self.sent, span, token)
        with self.hub.lock:
            self.hub.log.append(entry)

    def cut(self):
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def reply(self, content: bytes | dict | list = b"", status: int = 200, headers: dict | None = None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.status = status
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.cut_after is not None and self.fault.cut_after < len(content):
            self.sent = self.wfile.write(content[: self.fault.cut_after])
            return self.cut()
        self.sent = self.wfile.write(content)

    def reply_file(self, content: bytes, headers: dict):
        """All of it, or the span of a Range header; 416 beyond its end."""
        if self.fault and self.fault.content is not None:
            content = self.fault.content
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return self.reply(content, 200, {"Accept-Ranges": "bytes", **headers})
        first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        if first > last:
            raise HubError(416, f"no bytes {span[0]} in a file of {len(content)}")
        part = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self.reply(content[first : last + 1], 206, {**headers, **part})

    def log_message(self, *_):
        """The log of the hub says it all."""


class StorageHandler(_Handler):
    """The large file storage at its own origin: the address of an object is its hash, and permission to use it."""

    def answer(self):
        sha256 = self.path.strip("/")
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != sha256:
                raise HubError(400, "the content has another hash")
            self.hub.objects[sha256] = self.body
            return self.reply()
        if sha256 not in self.hub.objects:
            raise HubError(404, "no such object")
        self.reply_file(self.hub.objects[sha256], {"ETag": f'"{sha256}"'})


API = r"/api/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
GIT = r"/(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)"
ROUTES = [  # method of HTTP, pattern of the path, method of `HubHandler`, which takes the named parts
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", "/api/repos/create", "create"),
    ("GET", API + "(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", API + "/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", "tree"),
    ("POST", API + "/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("GET", API + "/auth-check(?:/write)?", "auth_check"),
    ("GET", API + "/refs", "refs"),
    ("GET", API + "/commits/(?P<revision>[^/]+)", "commits"),
    ("POST", API + "/branch/(?P<name>[^/]+)", "branch"),
    ("POST", API + "/tag/(?P<revision>[^/]+)", "tag"),
    ("POST", API + "/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", API + "/commit/(?P<revision>[^/]+)", "new_commit"),
    ("POST", GIT + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", GIT + r"\.git/info/lfs/objects/verify", "lfs_verify"),
    ("GET", GIT + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class HubHandler(_Handler):
    """The API."""

    def answer(self):
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and method == self.command.replace("HEAD", "GET"):
                parts = {key: unquote(value or "") for key, value in match.groupdict().items()}
                with self.hub.lock:
                    if "id" in parts:
                        kind = (parts.pop("kind") or "models").removesuffix("s")
                        parts["repository"] = self.visible(kind, parts.pop("id"))
                    return getattr(self, name)(**parts)
        raise HubError(404, f"this Hub does not know {self.command} {url.path}")

    def json(self) -> dict:
        return json.loads(self.body)

    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def may_write(self, owner: str) -> bool:
        return self.user() == owner and READ_TOKEN not in self.headers["Authorization"]

    def visible(self, kind: str, name: str) -> Repository:
        """The repository, if the user may read it and, for a change, write to it."""
        user, repository = self.user(), self.hub.repositories.get((kind, name))
        owner = name.split("/")[0]
        if repository is None or (repository.private and user != owner):
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        only_reads = self.command in ("GET", "HEAD") or "/paths-info/" in self.path
        if not (self.may_write(owner) or (only_reads and not self.path.endswith("/auth-check/write"))):
            raise HubError(401 if user is None else 403, f"no permission to write to {name}")
        return repository

    def whoami(self):
        if self.user() is None:
            raise HubError(401, "Invalid username or password.")
        self.reply({"type": "user", "name": self.user(), "orgs": [], "auth": {"type": "access_token"}})

    def validate_yaml(self):
        front_matter(self.json()["content"])
        self.reply({"errors": [], "warnings": []})

    def create(self):
        asked, user = self.json(), self.user()
        owner, kind = asked.get("organization") or user, asked.get("type", "model")
        name = f"{owner}/{asked['name']}"
        if not self.may_write(owner):
            raise HubError(401 if user is None else 403, f"no permission to create a {kind} under {owner}")
        status = 409 if (kind, name) in self.hub.repositories else 200
        if status == 200:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.create(kind, name, private, asked.get("sdk"))
        found = {"url": f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}", "name": name}
        self.reply({**found, **({"error": f"You already created this {kind} repo"} if status == 409 else {})}, status)

    def info(self, repository: Repository, revision: str = ""):
        commit = repository.at(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        for one in siblings if self.query.get("blobs") else []:
            blob = commit.files[one["rfilename"]]
            one.update({"size": len(blob.content), "blobId": blob.git_id, **blob.lfs_entry("sha256")})
        card = front_matter(commit.files["README.md"].content.decode()) if "README.md" in commit.files else {}
        named = {key: card[key] for key in ("library_name", "pipeline_tag", "model-index", "tags") if key in card}
        about = {"id": repository.id, "author": repository.id.split("/")[0], "sha": commit.id, "sdk": repository.sdk}
        times = {"lastModified": commit.when, "createdAt": commit.history()[-1].when}
        state = {"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        self.reply({"tags": [], **named, **about, **times, **state, "cardData": card, "siblings": siblings})

    def path_info(self, commit: Commit, path: str, expand: bool = False) -> dict:
        blob = commit.files.get(path)
        extra = {"lastCommit": {"id": commit.id, "title": commit.title, "date": commit.when}} if expand else {}
        if blob is None:
            return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), **extra}
        size = {"size": len(blob.content), "oid": blob.git_id}
        return {"type": "file", "path": path, **size, **blob.lfs_entry("oid"), **extra}

    def tree(self, repository: Repository, revision: str, folder: str = ""):
        commit, folder = repository.at(revision), folder.strip("/")
        found = [path for path in with_folders(commit.files) if not folder or path.startswith(f"{folder}/")]
        if folder and not found:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive") != "true":
            found = [path for path in found if str(PurePosixPath(path).parent) == (folder or ".")]
        expand = self.query.get("expand") == "true"
        self.reply([self.path_info(commit, path, expand) for path in found])

    def paths_info(self, repository: Repository, revision: str):
        commit, form = repository.at(revision), parse_qs(self.body.decode())
        asked = {path.strip("/") for path in form.get("paths", [])}
        expand = form.get("expand") == ["true"]
        self.reply([self.path_info(commit, path, expand) for path in with_folders(commit.files) if path in asked])

    def auth_check(self, repository: Repository):
        """[`visible`] has checked it."""
        self.reply({})

    def refs(self, repository: Repository):
        def listed(start: str, cut: str) -> list[dict]:
            names = [name for name in repository.refs if name.startswith(start)]
            return [
                {"name": one.removeprefix(cut), "ref": one, "targetCommit": repository.refs[one].id} for one in names
            ]

        branches, tags = listed("refs/heads/", "refs/heads/"), listed("refs/tags/", "refs/tags/")
        self.reply({"branches": branches, "converts": [], "tags": tags, "pullRequests": listed("refs/pr/", "")})

    def commits(self, repository: Repository, revision: str):
        authors = [{"user": repository.id.split("/")[0]}]
        history = repository.at(revision).history()
        self.reply([{"id": o.id, "title": o.title, "message": "", "date": o.when, "authors": authors} for o in history])

    def branch(self, repository: Repository, name: str):
        start = self.json().get("startingPoint", "main") if self.body else "main"
        self.new_ref(repository, f"refs/heads/{name}", start)

    def tag(self, repository: Repository, revision: str):
        self.new_ref(repository, f"refs/tags/{self.json()['tag']}", revision)

    def new_ref(self, repository: Repository, name: str, revision: str):
        if name in repository.refs:
            raise HubError(409, f"Reference already exists: {name}")
        repository.refs[name] = repository.at(revision)
        self.reply({})

    def preupload(self, repository: Repository, revision: str):
        files = repository.at(revision).files
        answers = []
        for file in self.json()["files"]:
            mode = "lfs" if is_lfs(file["path"], file["size"], base64.b64decode(file["sample"])) else "regular"
            known = {"oid": files[file["path"]].etag} if file["path"] in files else {}
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        self.reply({"files": answers})

    def lfs_batch(self, repository: Repository):
        verify = f"{self.hub.endpoint}{self.path.removesuffix('batch')}verify"
        objects = [{"oid": one["oid"], "size": one["size"]} for one in self.json()["objects"]]
        for one in objects:
            if one["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.storage}/{one['oid']}", "header": {}}
                one["actions"] = {"upload": upload, "verify": {"href": verify, "header": {}}}
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_verify(self, repository: Repository):
        if len(self.hub.objects.get(self.json()["oid"], b"")) != self.json()["size"]:
            raise HubError(400, "the object was not uploaded")
        self.reply({})

    def new_commit(self, repository: Repository, revision: str):
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, changes = lines[0]["value"], {}
        for line in lines[1:]:
            value = line["value"]
            changes[value["path"]] = self.committed(line["key"], value)
        opens = self.query.get("create_pr")
        number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
        ref = f"refs/pr/{number}" if opens else repository.ref(revision)
        if ref is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        parent = header.get("parentCommit")
        if parent and not opens and parent != repository.refs[ref].id:
            raise HubError(412, f"A commit has happened since. Please refresh and try again. ({parent})")
        commit = self.hub.advance(repository, ref, changes, header["summary"])
        home = f"{self.hub.endpoint}/{'' if repository.kind == 'model' else repository.kind + 's/'}{repository.id}"
        request = {"pullRequestUrl": f"{home}/discussions/{number}"} if opens else {}
        self.reply({"success": True, "commitOid": commit.id, "commitUrl": f"{home}/commit/{commit.id}", **request})

    def committed(self, key: str, value: dict) -> Blob | None:
        """What a line of a commit leaves at its path: None for deletedFile and deletedFolder."""
        if key == "file":
            return Blob(base64.b64decode(value["content"]), lfs=False)
        if key == "lfsFile" and value["oid"] not in self.hub.objects:
            raise HubError(400, f"the LFS pointer of {value['path']} points to an object that was never uploaded")
        return Blob(self.hub.objects[value["oid"]], lfs=True) if key == "lfsFile" else None

    def resolve(self, repository: Repository, revision: str, path: str):
        commit = repository.at(revision)
        if path not in commit.files:
            raise HubError(404, f"{path} does not exist at {revision}", "EntryNotFound", commit.id)
        blob = commit.files[path]
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{blob.etag}"'}
        if not blob.lfs:
            return self.reply_file(blob.content, headers)
        linked = {"X-Linked-Size": len(blob.content), "X-Linked-ETag": f'"{blob.sha256}"'}
        self.reply(b"", 302, {**headers, **linked, "Location": f"{self.hub.storage}/{blob.sha256}"})
