"""Collect tracks: look at their files, and say why one is left out.

    for track in read_tracks("music/"):     # collap.corpora.listing
        look_at(track, limits)              # header and tags; sets its length and crop
        samples = listen(track, limits)     # decodes once, for every stage; None of one that is left out

Of tracks that passed, `collap.corpora.duplicates` tells which are one recording. A track that is left out says why in
`dropped`, as `reason: details`; `REASONS` are all that there are.

Dimensions: `N` samples at `tracks.RATE`.
"""

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from collap.data.audio_parts import audio_part, file_of
from collap.data.guarded_reading import audio_tags, header_seconds, load_audio
from collap.files import flat, nearest
from processing.decode_audio import AudioFileError

from .measures import is_music, measure
from .tracks import RATE, Section, Track

REASONS = {
    "missing": "its audio is not there",
    "broken": "its file cannot be decoded",
    "too_short": "it is shorter than asked for",
    "too_long": "it is longer than asked for, and is not to be cropped",
    "silent": "too much of it is silence",
    "clipped": "too many samples are at full scale",
    "not_music": "no notes are held and no onsets recur",
    "duplicate": "an earlier track has the same content",
    "near_duplicate": "an earlier track is the same recording in another file",
    "evaluation": "an evaluation set holds it too",
}
LONGER = ("crop", "drop", "keep")
CROP_FROM = ("start", "middle")
FILE_TAGS = ("title", "artist", "album", "genre", "date", "mood", "composer", "license", "copyright")
TAG_CHARACTERS = 300


@dataclass(frozen=True)
class Limits:
    """Say what is kept.

    Attributes:
        min_seconds, max_seconds: bounds of a track's length, those of the paper's section III.
        longer: of a longer track `crop` keeps `max_seconds`; `drop` none; `keep` all.
        crop_from: `start` keeps the times of captions and annotations as they are, and the beginning that a listener
            knows; `middle` is for recordings of shows and mixes, whose beginning is no music.
        max_silent: share of frames of 50 ms below -60 dB of full scale.
        max_clipped: share of samples at full scale in runs of 3 or more.
        music_only: whether what neither holds notes nor repeats onsets is left out. Off: speech and noise are told from
            rendered songs without error, but ambient, solo voice and free rhythm may be taken for them.
    """

    min_seconds: float = 120.0
    max_seconds: float = 300.0
    longer: str = "crop"
    crop_from: str = "start"
    max_silent: float = 0.5
    max_clipped: float = 0.02
    music_only: bool = False

    def __post_init__(self):
        if not 0 < self.min_seconds <= self.max_seconds:
            raise ValueError(
                f"min_seconds is {self.min_seconds:g} and max_seconds is {self.max_seconds:g}; expected the first "
                "above 0 and no greater than the second"
            )
        for name, known in (("longer", LONGER), ("crop_from", CROP_FROM)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; {nearest(getattr(self, name), known)}")
        for name in ("max_silent", "max_clipped"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a share from 0 to 1")


# ---- what is kept


def look_at(track: Track, limits: Limits) -> Track:
    """Fill in what a track's file says without being decoded: length, crop, digest and tags; or why it is left out."""
    if track.dropped:
        return track
    try:
        seconds = header_seconds(track.audio)
        track.digest = file_digest(track.audio)
        tags = file_tags(track.audio)
    except (AudioFileError, OSError) as error:
        # A file that is not there is another matter than one that is damaged.
        is_there = os.path.lexists(file_of(track.audio))
        track.dropped = f"{'broken' if is_there else 'missing'}: {flat(error)}"
        return track
    track.artist = track.artist or tags.pop("artist", None)
    track.licence = track.licence or tags.get("license") or tags.get("copyright")
    track.tags = {**tags, **track.tags}
    track.seconds = track.listed_seconds = seconds
    _crop_longer(track, limits)
    track.dropped = reason_to_drop(track, limits)
    return track


def listen(track: Track, limits: Limits) -> np.ndarray | None:
    """Decode a track once and measure it.

    Returns:
        Samples (N,) float32 of what is kept of it; None if the track is left out, and then it says why.
    """
    if track.dropped:
        return None
    try:
        samples = load_audio(track.audio, RATE, *(track.crop or (None, None)))
    except AudioFileError as error:
        track.dropped = f"broken: {flat(error)}"
        return None
    track.seconds = len(samples) / RATE
    if track.crop is None:
        track.listed_seconds = track.seconds  # what was decoded decides, not the header
        _crop_longer(track, limits)
        if track.crop is not None:
            samples = samples[slice(*(round(edge * RATE) for edge in track.crop))]
    else:
        track.crop = (track.crop[0], round(track.crop[0] + track.seconds, 3))
    track.measures |= measure(samples)
    track.dropped = reason_to_drop(track, limits)
    return None if track.dropped else samples


def reason_to_drop(track: Track, limits: Limits) -> str | None:
    """Return why a track is left out, by its length and what was measured; None if it is kept, or not yet known."""
    found, seconds = track.measures, track.seconds
    if seconds is not None and seconds < limits.min_seconds:
        return f"too_short: {seconds:.1f} s; expected {limits.min_seconds:g} s or more"
    if seconds is not None and seconds > limits.max_seconds + 0.5 / RATE and limits.longer != "keep":
        return f"too_long: {seconds:.1f} s; expected {limits.max_seconds:g} s or less"
    if found.get("silent_share", 0) > limits.max_silent:
        return f"silent: {found['silent_share']:.1%} of it; expected {limits.max_silent:.1%} or less"
    if found.get("clipped_share", 0) > limits.max_clipped:
        return f"clipped: {found['clipped_share']:.1%} of samples; expected {limits.max_clipped:.1%} or less"
    if limits.music_only and "steadiness" in found and not is_music(found):
        return f"not_music: steadiness {found['steadiness']:.2f}, pulse clarity {found['pulse_clarity']:.2f}"
    return None


def _crop_longer(track: Track, limits: Limits) -> None:
    """Crop a track that is longer than it may be, if it is to be cropped."""
    if track.seconds > limits.max_seconds + 0.5 / RATE and limits.longer == "crop":
        start = 0.0 if limits.crop_from == "start" else (track.seconds - limits.max_seconds) / 2
        _crop(track, round(start, 3), round(start + limits.max_seconds, 3))


def _crop(track: Track, start: float, stop: float) -> None:
    """Keep a span of a track, in seconds, and of its sections what lies in it."""
    track.crop, track.seconds = (start, stop), stop - start
    if track.sections is not None:
        kept = [one for one in track.sections if min(one.end, stop) > max(one.start, start)]
        track.sections = [
            Section(max(one.start, start) - start, min(one.end, stop) - start, one.label, one.text) for one in kept
        ]


# ---- what a file says


def file_digest(audio: str) -> str:
    """Return the BLAKE2b of a track's content, 32 hexadecimal digits; of a span of a file with its times."""
    part = audio_part(audio)
    if isinstance(part.source, bytes):
        digest = hashlib.blake2b(part.source, digest_size=16)
    else:
        with open(part.source, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    if part.stop is not None:
        digest.update(f"#t={part.start:.10g},{part.stop:.10g}".encode())
    return digest.hexdigest()


def file_tags(audio: str) -> dict[str, str]:
    """Return the tags of a file that say something of the music, see `FILE_TAGS`; none if they cannot be read."""
    found = {name: " ".join(text.split())[:TAG_CHARACTERS] for name, text in audio_tags(audio).items()}
    return {name: found[name] for name in FILE_TAGS if found.get(name)}
