"""The program `collap` without its start: a process has imported what the commands need, and each is forked from it."""

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

COMMANDS = ("corpus render", "evaluate", "publish", "doctor")


@contextlib.contextmanager
def warm_collap(folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """A folder for PATH with the program; its environment is always this one, everything else that of its caller."""
    programs, address = folder / "bin", folder / "socket"
    programs.mkdir()
    call = f"exec '{sys.executable}' -SE '{__file__}' call '{address}' \"$@\"\n"
    (programs / "collap").write_text(f"#!/bin/sh\n{call}")
    (programs / "collap").chmod(0o755)
    place = {**environment, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, "serve", str(address)]
    with subprocess.Popen(command, env=place, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "ready\n"
        yield programs
        server.kill()


def serve(address: str) -> None:
    """Fork a process for every call, one at a time."""
    gc.disable()
    import importlib

    from collap import cli

    for name in COMMANDS:
        importlib.import_module(cli.COMMANDS[name].module)
    gc.freeze()
    gc.enable()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            with server.accept()[0] as caller:
                process = os.fork()
                if process == 0:
                    answer(caller, cli.main)
                _, status = os.waitpid(process, 0)
                caller.sendall(bytes([os.waitstatus_to_exitcode(status) & 255]))


def answer(caller: socket.socket, main) -> None:
    """Be the caller's program: its streams, its folder and its arguments."""
    call, streams, *_ = socket.recv_fds(caller, 2**20, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    folder, arguments = json.loads(call)
    os.chdir(folder)
    sys.exit(main(arguments))


def call(address: str, *arguments: str) -> int:
    """Exit code of the command."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [json.dumps([os.getcwd(), arguments]).encode()], [0, 1, 2])
        return server.recv(1)[0]


if __name__ == "__main__":
    sys.exit({"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:]))
