"""Small data sets for the tests of reading them."""

import json

import numpy as np
import soundfile

from collap.data.sources import open_dataset


def write_table(folder, seconds: float = 1.0, text: str = "a song"):
    """A folder with song.wav, noise of that length, and songs.jsonl, whose only row it is."""
    noise = np.random.default_rng(0).normal(size=int(16000 * seconds)) * 0.1
    soundfile.write(folder / "song.wav", noise, 16000)
    (folder / "songs.jsonl").write_text(json.dumps({"audio": "song.wav", "text": text}) + "\n")
    return folder / "songs.jsonl"


def folder_of_songs(folder, seconds: list[float | None]):
    """A folder of wav files of noise and their metadata; None for a file that is no audio."""
    lines = []
    for index, length in enumerate(seconds):
        path = folder / f"{index}.wav"
        if length is None:
            path.write_bytes(b"not music")
        else:
            soundfile.write(path, np.random.default_rng(index).normal(size=round(16000 * length)) * 0.1, 16000)
        lines.append(json.dumps({"file_name": path.name, "text": f"song {index}", "duration": length}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return open_dataset(str(folder), "train")
