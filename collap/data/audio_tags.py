"""Read the tags of an audio file: title, artist, genre and whatever else FFmpeg finds in it.

Carried out in the process that decodes, see `guarded_reading.audio_tags`: a damaged file may end it.
"""

import io
from contextlib import closing

import av

from processing.audio_tracks import DECODING_ERRORS, FFMPEG_FORMATS


def read_tags(source: bytes | str) -> dict[str, str]:
    """Return the tags of a file or its bytes, names in small letters; none if they cannot be read."""
    options = {"format_whitelist": FFMPEG_FORMATS, "protocol_whitelist": "none"}
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file,
            closing(av.open(file, container_options=options, metadata_errors="replace")) as container,
        ):
            found = {**container.streams.audio[0].metadata, **container.metadata}
    except DECODING_ERRORS:
        return {}
    return {name.lower(): text for name, text in found.items()}
