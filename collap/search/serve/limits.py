"""What a server takes on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Hold how much is done at a time, and how much may wait.

    Attributes:
        upload_bytes, upload_seconds, clip_seconds: of a clip: its bytes, the time that it takes to come, its length.
        clips_waiting: clips that come, or wait to be embedded, beside the one that is.
        search_threads, searches_waiting: searches at a time, and those that wait.
        reading_threads, readings_waiting: the same of files that are opened or decoded.
    """

    upload_bytes: int = 50_000_000
    upload_seconds: float = 120.0
    clip_seconds: float = 900.0
    clips_waiting: int = 4
    search_threads: int = 2
    searches_waiting: int = 500
    reading_threads: int = 2
    readings_waiting: int = 2000
