"""Describe a track by what is measured of it and by its tags: the captioner that needs no weights.

Every word states a measured feature, a comparison of two of them, or a tag. The track's id chooses the wording.

Dimensions: `N` samples, `S` sections.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from .features import Features, measure_track, recorded_features
from .synthetic.captions import clock
from .tracks import RATE, Caption, Section, Track

LOUDNESS = {  # up to so many dB of full scale
    -70.0: ("silent", "without a sound", "silent"),
    -37.0: ("very soft", "hushed", "very quiet"),
    -31.0: ("soft", "quiet", "gentle"),
    -25.0: ("medium loud", "moderately loud", "of middle volume"),
    -19.0: ("loud", "strong", "full in volume"),
    0.0: ("very loud", "extremely loud", "loud throughout"),
}
DENSITY = {  # up to so many onsets in a second
    2.0: ("sparse", "thinly played", "with few notes"),
    4.5: ("steady", "evenly paced", "moderately busy"),
    1e9: ("busy", "dense", "full of quick notes"),
}
BRIGHTNESS = {  # up to so many Hz of the mean frequency
    1100.0: ("dark in tone", "with a dark, muffled sound", "low and dark in sound"),
    1900.0: ("warm in tone", "with a warm sound", "rounded in sound"),
    1e9: ("bright in tone", "with a bright, sharp sound", "crisp in sound"),
}
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
PACE = {84.0: ("slow", "unhurried"), 112.0: ("mid-tempo", "moderately paced"), 138.0: ("fast", "brisk")}
PACE[1e9] = ("very fast", "rapid")
# Differences that one hears: dB, and ratios of mean frequencies and of onsets.
LOUDER_DB, MUCH_LOUDER_DB, BRIGHTER, BUSIER = 1.5, 6.0, 1.15, 1.3
COMPARED = ("loudness", "brightness")
TAGS = {
    "genre": ("genre", "genres", "style"),
    "mood": ("mood", "moods", "mood/theme", "theme"),
    "instruments": ("instruments", "instrument", "instrumentation"),
}
OPENINGS = (
    "{kind} {pace}lasts {length} and falls into {count}.",
    "In {count} and {length}, {kind_low} {pace_and}unfolds.",
    "{kind} of {length} {pace}is built from {count}.",
)
EXTREMES = (
    "It is loudest in {loudest} and softest in {softest}; the sound is brightest in {brightest}, darkest in {darkest}.",
    "The volume peaks in {loudest} and sinks lowest in {softest}; {brightest} sounds brightest and {darkest} darkest.",
    "Its loudest part is {loudest}, its softest {softest}; {brightest} has the most treble, {darkest} the least.",
)
SECTIONS = (
    "{name} is {loudness} and {density}, {brightness}.",
    "{name} comes in {brightness}, {loudness} and {density}.",
    "{name} stays {density}, {loudness} and {brightness}.",
    "we hear {name}, {loudness}, {brightness} and {density}.",
)
CHANGES = (
    "Unlike the part before, it is {changes}.",
    "Against what came before, it is {changes}.",
    "Now it is {changes}.",
)
SAME = ("It goes on much as before.", "In volume and sound it stays close to the part before.", "Little changes here.")


class TemplateCaptioner:
    """Describe tracks by templates.

    Args:
        seed: of the wording.
    """

    name = "template"
    licence = "Apache-2.0"  # that of the templates' words, as of this package

    def __init__(self, seed: int = 0):
        self.seed = seed

    def describe(self, tracks: list[Track], samples: list[np.ndarray]) -> list[Caption]:
        """Return a caption of each track.

        Args:
            samples: of each track (N,), mono at [`RATE`].
        """
        return [self._describe(track, sound) for track, sound in zip(tracks, samples, strict=True)]

    def _describe(self, track: Track, samples: np.ndarray) -> Caption:
        seconds = len(samples) / RATE
        sections = track.sections or [Section(0.0, seconds)]
        whole, parts = recorded_features(track.measures, sections) or measure_track(samples, sections)
        digest = hashlib.sha256(f"{track.id}\n{self.seed}".encode()).digest()
        wording = Wording(np.random.default_rng(np.frombuffer(digest, dtype="<u4")))
        names = section_names(sections)
        told = [
            Section(one.start, one.end, one.label, describe_section(names, parts, place, wording))
            for place, one in enumerate(sections)
        ]
        overview = describe_track(track.tags, seconds, whole, names, parts, wording)
        return Caption(overview, told, self.name, self.licence)


class Wording:
    """Choose among phrases that mean the same."""

    def __init__(self, generator: np.random.Generator):
        self.generator = generator
        self.offset = int(generator.integers(60))

    def pick(self, phrases: Sequence[str]) -> str:
        """Return one of the phrases."""
        return phrases[self.generator.integers(len(phrases))]

    def turn(self, phrases: Sequence[str], place: int) -> str:
        """Return one of the phrases, another one at the next place."""
        return phrases[(self.offset + place) % len(phrases)]

    def level(self, value: float, levels: dict[float, Sequence[str]]) -> str:
        """Return a phrase for the first level that a value does not exceed, or the last one."""
        return self.pick(
            next((phrases for limit, phrases in levels.items() if value <= limit), list(levels.values())[-1])
        )


def section_names(sections: list[Section]) -> list[str]:
    """Name sections: `the first verse`, `the second part A` for a letter, `part 3` without a label."""
    labels, names = [one.label.strip().lower() for one in sections], []
    for place, label in enumerate(labels):
        before = labels[:place].count(label)
        nth = (ORDINALS[before] if before < len(ORDINALS) else "next") if labels.count(label) > 1 else ""
        if not label:
            names.append(f"part {place + 1}")
        elif len(label) <= 2:
            names.append(f"the {nth} part {label.upper()}" if nth else f"part {label.upper()}")
        else:
            names.append(f"the {nth} {label}" if nth else f"the {label}")
    return names


def tag_words(tags: dict[str, str]) -> dict[str, list[str]]:
    """Return the genres, moods and instruments that tags name: `genre---rock, pop` gives rock and pop."""
    found = {}
    for kind, keys in TAGS.items():
        values = [tags[key] for key in tags if key.lower() in keys and tags[key]]
        words = [word.rpartition("---")[2].strip().lower() for value in values for word in _split(str(value))]
        found[kind] = list(dict.fromkeys(word for word in words if word))[:5]
    return found


def _split(value: str) -> list[str]:
    for mark in ";|/":
        value = value.replace(mark, ",")
    return value.strip("[] ").replace("'", "").replace('"', "").split(",")


def listing(words: Sequence[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def describe_track(
    tags: dict[str, str], seconds: float, whole: Features, names: list[str], parts: list[Features], wording: Wording
) -> str:
    """Describe a track as a whole, in one line.

    Args:
        whole, parts: features of the track and of its S sections, which `names` name.
    """
    words = tag_words(tags)
    kind = " ".join([*words["mood"][:1], *words["genre"][:1], wording.pick(("track", "piece", "recording"))])
    article = "An" if kind[0] in "aeiou" else "A"
    motion = _motion(whole, wording)
    opening = wording.turn(OPENINGS, 0).format(
        kind=f"{article} {kind}" if wording.pick((0, 1)) else f"This {kind}",
        kind_low=f"{article.lower()} {kind}",
        pace=f"{motion} " if motion else "",
        pace_and=f"{motion} " if motion else "",
        length=clock(seconds),
        count="one section" if len(parts) == 1 else f"{len(parts)} sections",
    )
    sentences = [opening, *_tag_sentences(words, wording), *_extremes(names, parts, wording)]
    sound = wording.level(whole.loudness, LOUDNESS), wording.level(whole.brightness, BRIGHTNESS)
    if not whole.is_silent:
        sentences.append(f"On the whole it is {sound[0]}, {wording.level(whole.onsets, DENSITY)} and {sound[1]}.")
    return " ".join(sentences)


def _motion(whole: Features, wording: Wording) -> str:
    """Say tempo and key where they are known: `at a brisk 120 BPM in F minor`."""
    tempo = whole.tempo and f"at a {wording.level(whole.tempo, PACE)} {round(whole.tempo)} BPM"
    return " ".join([*([tempo] if tempo else []), *([f"in {whole.key}"] if whole.key else [])])


def _tag_sentences(words: dict[str, list[str]], wording: Wording) -> list[str]:
    """Say the genres, moods and instruments that the opening has no room for."""
    said = []
    if words["instruments"]:
        said.append(f"{wording.pick(('It features', 'We hear', 'It is played on'))} {listing(words['instruments'])}.")
    if words["genre"][1:]:
        said.append(f"It also has elements of {listing(words['genre'][1:])}.")
    if words["mood"][1:]:
        said.append(f"Its mood is {listing(words['mood'])}.")
    return said


def _extremes(names: list[str], parts: list[Features], wording: Wording) -> list[str]:
    """Say which parts are loudest, softest, brightest and darkest, if they differ so that one hears it."""
    heard = [one for one in parts if not one.is_silent]
    if len(heard) < 2:
        return []
    levels, tones = [one.loudness for one in heard], [one.brightness for one in heard]
    if max(levels) - min(levels) < LOUDER_DB or max(tones) / max(min(tones), 1.0) < BRIGHTER:
        return ["Volume and sound hardly change from part to part."]
    loudest, brightest = (max(range(len(parts)), key=lambda i: getattr(parts[i], name)) for name in COMPARED)
    softest, darkest = (
        min((i for i in range(len(parts)) if not parts[i].is_silent), key=lambda i: getattr(parts[i], name))
        for name in COMPARED
    )
    said = {"loudest": loudest, "softest": softest, "brightest": brightest, "darkest": darkest}
    return [wording.turn(EXTREMES, 1).format(**{kind: names[place] for kind, place in said.items()})]


def describe_section(names: list[str], parts: list[Features], place: int, wording: Wording) -> str:
    """Describe a section in one line, and how it differs from the one before it."""
    now, name = parts[place], names[place]
    if now.is_silent:
        return f"{name} is {wording.level(now.loudness, LOUDNESS)}."
    told = wording.turn(SECTIONS, place).format(
        name=name,
        loudness=wording.level(now.loudness, LOUDNESS),
        density=wording.level(now.onsets, DENSITY),
        brightness=wording.level(now.brightness, BRIGHTNESS),
    )
    told += "" if place else wording.pick((" It opens the track.", " With it the track begins."))
    if place and not parts[place - 1].is_silent:
        changes = describe_change(parts[place - 1], now)
        told += " " + (wording.turn(CHANGES, place).format(changes=listing(changes)) if changes else wording.pick(SAME))
    if place and place == len(parts) - 1:
        told += wording.pick((" It closes the track.", " With it the track ends."))
    return told


def describe_change(before: Features, now: Features) -> list[str]:
    """Say in which ways a part differs from the one before it so that one hears it: `much louder`, `darker`."""
    step = now.loudness - before.loudness
    changes = []
    if abs(step) >= LOUDER_DB:
        changes.append(f"{'much ' if abs(step) >= MUCH_LOUDER_DB else ''}{'louder' if step > 0 else 'softer'}")
    for name, least, words in (
        ("brightness", BRIGHTER, ("brighter", "darker")),
        ("onsets", BUSIER, ("busier", "calmer")),
    ):
        ratio = (getattr(now, name) + 1e-3) / (getattr(before, name) + 1e-3)
        if max(ratio, 1 / ratio) >= least:
            changes.append(words[ratio < 1])
    return changes
