"""Find the picture that is embedded in an audio file."""

import base64
from collections.abc import Iterator
from typing import BinaryIO

import mutagen
from mutagen.flac import Picture

MAX_COVER_BYTES = 8 * 2**20
FRONT_COVER = 3  # of the kinds of pictures in ID3 and FLAC
# By their first bytes: pictures that hold nothing but pixels. What a file calls its picture is not believed.
HEADS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"GIF8": "image/gif"}


def cover_of(file: BinaryIO) -> tuple[bytes, str] | None:
    """Return the front cover of an audio file, else its first picture, and the media type; None if there is none.

    Args:
        file: open for reading.
    """
    try:
        found = list(_pictures(mutagen.File(file)))
    except Exception:  # files from anywhere make mutagen raise anything; a picture is not worth more
        return None
    for _, content in sorted(found, key=lambda one: one[0] != FRONT_COVER):
        kind = picture_type(content)
        if kind and len(content) <= MAX_COVER_BYTES:
            return content, kind
    return None


def picture_type(content: bytes) -> str | None:
    """Return the media type of a JPEG, PNG, GIF or WebP; None for anything else."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for head, kind in HEADS.items() if content.startswith(head)), None)


def _pictures(file: mutagen.FileType | None) -> Iterator[tuple[int, bytes]]:
    """Yield kind and bytes of all pictures in a file, wherever its format keeps them."""
    for picture in getattr(file, "pictures", None) or []:  # FLAC
        yield picture.type, bytes(picture.data)
    tags = getattr(file, "tags", None)
    if tags is None:
        return
    if hasattr(tags, "getall"):  # ID3: mp3, wav, aiff
        for frame in tags.getall("APIC"):
            yield frame.type, bytes(frame.data)
        return
    for picture in tags.get("covr", []):  # MP4
        yield FRONT_COVER, bytes(picture)
    for text in tags.get("metadata_block_picture", []):  # Vorbis comments: ogg, opus
        picture = Picture(base64.b64decode(text))
        yield picture.type, bytes(picture.data)
