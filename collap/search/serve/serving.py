"""Serve a page and an HTTP API to search a library with: `collap serve`.

    collap serve --index music.index                         http://127.0.0.1:8000, for this machine alone
    collap serve --index music.index --host 0.0.0.0 --allow_host music.example.org
    curl 'http://127.0.0.1:8000/api/search?q=a+quiet+piano'

It follows the index: after `collap index` the next search is in the new one. Ctrl-C ends it.
"""

import argparse
import contextlib
import os
import socket
import sys

import uvicorn

from ..space import best_device
from ..store import read_manifest
from .application import make_application
from .limits import Limits
from .searcher import Searcher

CLOSING_SECONDS = 3  # that answers may take after Ctrl-C
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def run(options: argparse.Namespace) -> int:
    """Do `collap serve` until it is interrupted; return its exit code."""
    if options.max_upload_mb <= 0:
        raise ValueError(f"--max_upload_mb must be more than 0, found {options.max_upload_mb:g}")
    if options.library is not None and not options.library.is_dir():
        raise FileNotFoundError(f"{options.library}: no such folder; expected the library that was indexed")
    listening = listen(options.host, options.port)
    searcher = Searcher(
        options.index,
        options.library,
        options.model,
        options.device or best_device(read_manifest(options.index)["space"]["dtype"]),
        options.engine,
    )
    if not os.path.isdir(searcher.library):
        print(f"{searcher.library}: is not there, so that nothing can be listened to; name it with --library")
    limits = Limits(upload_bytes=round(options.max_upload_mb * 1e6))
    app = make_application(searcher, limits, frozenset([options.host, *options.allow_host]), options.embedded_in)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    print(f"http://{address(listening)} searches {options.index}; Ctrl-C ends it", flush=True)
    if options.host not in LOOPBACK:
        print("whoever reaches this machine can search, and listen to, the library", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):  # how it ends
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Take a port before anything slow is done; an OSError of one line if that cannot be."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen at port {port} of {host}: {error}; name others with --host and --port") from error


def address(listening: socket.socket) -> str:
    """Return the address and port of a socket as an URL has them."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
