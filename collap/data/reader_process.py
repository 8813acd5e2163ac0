"""Decode audio for another process, as [`collap.data.guarded_reading`] asks: what a file does to its decoder ends here.

Only what decoding needs is imported: a fifth of a second and 50 MB. Requests come through stdin and answers go through
stdout, pickled one after another. The process ends with the one that asks, in whatever way that ends.
"""

import importlib
import logging
import os
import pickle
import resource
import select
import signal
import sys
import threading
import types
from collections.abc import Iterator

# Of one request: a hundred hours of audio by the slowest codec. Time that a stopped process or a disk takes is free.
MAX_PROCESSOR_SECONDS = 600


class _Forwarding(logging.Handler):
    """Hand what is logged to the process that asks."""

    def __init__(self, send):
        super().__init__()
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        self.send("log", (record.name, record.levelno, record.getMessage()))


def _import_decoding(folder: str) -> types.ModuleType:
    """Import `processing.decode_audio` without the package around it, which takes seconds and half a gigabyte."""
    package = types.ModuleType("processing")
    package.__path__ = [folder]
    sys.modules["processing"] = package
    return importlib.import_module("processing.decode_audio")


def _end_with_the_reader(pipe: int) -> None:
    """Wait until nobody reads the answers any more, also in the midst of a file that never ends."""
    poll = select.poll()
    poll.register(pipe, 0)
    poll.poll()
    os._exit(0)


def _limit_processor_time() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime) + MAX_PROCESSOR_SECONDS
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def serve(folder: str) -> None:
    """Answer requests until there are no more: `(function, arguments, working directory or None)`, the function one of
    `decode_audio`, or `read_tags`.

    Answers are `("log", (logger, level, message))`, `("item", what the function returns or yields)`, and at the end
    `("end", None)` or `("error", (class, message))`.

    Args:
        folder: the package `processing`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # which a whole job gets: what asks decides when to end
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    threading.Thread(target=_end_with_the_reader, args=(answers.fileno(),), daemon=True).start()

    def send(kind: str, content: object) -> None:
        try:
            pickle.dump((kind, content), answers, protocol=5)
            answers.flush()
        except BrokenPipeError:  # nobody reads any more
            os._exit(0)

    decoding = _import_decoding(folder)
    from .audio_tags import read_tags  # needs what was imported just now

    logging.getLogger().addHandler(_Forwarding(send))
    send("ready", None)
    while True:
        try:
            function, arguments, place = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _limit_processor_time()
        try:
            if place is not None:
                os.chdir(place)
            result = (read_tags if function == "read_tags" else getattr(decoding, function))(*arguments)
            for item in result if isinstance(result, Iterator) else [result]:
                send("item", item)
        except Exception as error:
            send("error", (type(error), str(error)))
        else:
            send("end", None)
        result = item = arguments = None
