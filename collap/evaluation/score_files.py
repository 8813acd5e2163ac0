"""Hold the score matrices of a pool on disk, where all processes of a run write the rows of their own songs.

In memory the matrices of five models on 10,000 songs and texts would take 2 GB, and a copy for each process.

Dimensions: `A` songs, `B` texts.
"""

import shutil
from pathlib import Path

import numpy as np
from accelerate import PartialState

SCORED, UNREADABLE = 1, 2  # of a song; 0 is neither


class ScoreFiles:
    """Hold one score matrix (A, B) for each model, in files that go when they are read.

    All processes make, fill and read it at the same places of the program.

    Args:
        folder: of their own, seen by all processes; made anew.
        num_models: how many matrices.
        num_songs, num_texts: A and B.

    Raises:
        FileNotFoundError: this process does not see what the first one has made.
    """

    def __init__(self, folder: Path, num_models: int, num_songs: int, num_texts: int):
        self.folder, self.state = folder, PartialState()
        self.paths = [folder / f"{place}.npy" for place in range(num_models)]
        self.status_path = folder / "status.npy"  # (A,)
        if self.state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for path in self.paths:
                np.lib.format.open_memmap(path, "w+", np.float32, (num_songs, num_texts))
            np.lib.format.open_memmap(self.status_path, "w+", np.uint8, (num_songs,))
        self.state.wait_for_everyone()
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder here; all processes must see the same --output_dir")
        self.matrices = [np.load(path, mmap_mode="r+") for path in self.paths]
        self.status = np.load(self.status_path, mmap_mode="r+")

    def own_songs(self) -> range:
        """Return the songs that this process scores."""
        return range(self.state.process_index, len(self.status), self.state.num_processes)

    def put(self, song: int, rows: list[np.ndarray]) -> None:
        """Write what every model gives a song: (B,) each."""
        for matrix, row in zip(self.matrices, rows, strict=True):
            matrix[song] = row
        self.status[song] = SCORED

    def skip(self, song: int) -> None:
        """Note that a song cannot be read."""
        self.status[song] = UNREADABLE

    def read(self) -> tuple[list[np.ndarray], list[int]]:
        """Return the matrices (A, B), and which songs cannot be read, when all processes have written theirs; the files
        go when nobody holds them.

        Raises:
            FileNotFoundError: rows are missing, because a process has written elsewhere.
        """
        for matrix in (*self.matrices, self.status):
            matrix.flush()
        self.state.wait_for_everyone()
        found, status = [np.load(path, mmap_mode="r") for path in self.paths], np.load(self.status_path)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            shutil.rmtree(self.folder, ignore_errors=True)
        if elsewhere := int((status == 0).sum()):
            raise FileNotFoundError(
                f"{self.folder}: {elsewhere} of {len(status)} songs were scored elsewhere; all processes must see the "
                "same --output_dir"
            )
        return found, np.flatnonzero(status == UNREADABLE).tolist()
