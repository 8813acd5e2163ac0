"""Make of a file what an index stores of it: decode and embed it in bounded memory, whatever its length.

Dimensions: `T` tokens of a track, `F` frames of its fingerprint.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from collap.data.fingerprints import RATE as PRINT_RATE
from collap.data.fingerprints import Fingerprinter
from collap.data.guarded_reading import Source, stream_audio
from collap.evaluation.embedders import Embedder
from processing.resample_audio import resample

from .vectors import track_vectors
from .writing import Recording


class Hearing:
    """Read a file as `stream_audio` does, and remember how long it is and what it sounds like."""

    def __init__(self):
        self.samples, self.digest = 0, hashlib.blake2b(digest_size=16)

    def read(self, source: Source, sampling_rate: int, **settings) -> Iterator[np.ndarray]:
        """Yield the blocks of samples of a file; the arguments are those of `stream_audio`."""
        for block in stream_audio(source, sampling_rate, **settings):
            self.samples += len(block)
            self.digest.update(block)
            yield block


class Printing(Hearing):
    """Read a file as [`Hearing`] does, and make the fingerprint of its sound from the same samples."""

    def __init__(self):
        super().__init__()
        self._fingerprinter = Fingerprinter()

    def read(self, source: Source, sampling_rate: int, **settings) -> Iterator[np.ndarray]:
        """Yield the blocks of samples of a file; the arguments are those of `stream_audio`."""
        waiting = []  # the block, or the few, of which the resampler has not given all

        def heard() -> Iterator[tuple[int, np.ndarray]]:
            for block in super(Printing, self).read(source, sampling_rate, **settings):
                waiting.append(block)
                yield self.samples - len(block), block

        for piece in resample(heard(), sampling_rate, PRINT_RATE, 0):
            self._fingerprinter.add(piece)
            while waiting:
                yield waiting.pop(0)

    def prints(self) -> np.ndarray:
        """Return the fingerprint (F, 2) uint32 of what was read: all bits, and ones for those that can be heard."""
        return np.stack([self._fingerprinter.bits(), self._fingerprinter.heard()], axis=1)


def embed_recording(path: str, digest: str, embedder: Embedder, stride: int) -> Recording:
    """Decode and embed a file, a few segments at a time; only its vectors and its fingerprint grow with its length.

    Args:
        digest: of the file's bytes.
        stride: every so many segments are embedded.

    Raises:
        ValueError: it cannot be decoded, or the model makes no numbers of it.
    """
    hearing = Printing()
    embeds = embedder.embed_file(path, stride, hearing.read).float().cpu()  # (T, D)
    seconds = hearing.samples / embedder.sampling_rate
    starts = embedder.token_starts(len(embeds), stride)
    vectors = track_vectors(embeds, starts, embedder.token_seconds, seconds, hearing.prints())
    return Recording(digest, hearing.digest.hexdigest(), seconds, vectors)


def sound_of(path: str, sampling_rate: int) -> str:
    """Return the digest of the samples that a model hears of a file; raises as `stream_audio` does."""
    hearing = Hearing()
    for _ in hearing.read(path, sampling_rate):
        pass
    return hearing.digest.hexdigest()
