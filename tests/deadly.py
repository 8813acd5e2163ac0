"""Audio files that kill, stop or slow down the process that decodes them."""

import json
import shutil
from pathlib import Path

# What Python runs at its start: libsndfile's and FFmpeg's wrappers, but for files of these names.
DEADLY = """
import os, resource, signal, time
import av, soundfile

def ends(file):
    name = os.path.basename(str(getattr(getattr(file, "file", None), "name", "")))
    if name.startswith("kills"):
        print("a library prints this", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("exits"):
        os._exit(3)
    if name.startswith("spins"):
        resource.setrlimit(resource.RLIMIT_CPU, (1 + int(time.process_time()), -1))
        while True:
            pass
    if name.startswith("sleeps"):
        time.sleep(60)

class File(soundfile.SoundFile):
    def __init__(self, file, *arguments, **named):
        ends(file)
        super().__init__(file, *arguments, **named)

soundfile.SoundFile = File
opened = av.open
av.open = lambda file, *arguments, **named: (ends(file), opened(file, *arguments, **named))[1]
"""


def rename_song(corpus: Path, folder: Path, split: str, index: int, name: str) -> Path:
    """Copy a corpus; one of its songs gets another name."""
    shutil.copytree(corpus, folder)
    table = folder / split / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    (folder / split / rows[index]["file_name"]).rename(folder / split / name)
    rows[index]["file_name"] = name
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
