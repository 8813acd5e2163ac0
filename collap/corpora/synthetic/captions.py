"""Captions of a composed song in the manner of FUTGA (arXiv 2407.20445): a paragraph on the whole, then every section.

Every word states a field of the `Song`, so it can be heard in the rendering. The variants of a song say the same in
other words. `variant` picks the phrasing; it never adds or leaves out a section, an instrument or a time.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from .composition import Section, Song

INSTRUMENT_PHRASES = {  # the first phrase is the plain name
    "drums": ("drums", "a drum kit", "a drum beat"),
    "bass": ("bass", "a bass guitar", "a bass line"),
    "piano": ("piano", "a piano", "a grand piano"),
    "strings": ("strings", "a string section", "bowed strings"),
    "vocals": ("wordless vocals", "a wordless voice", "wordless singing"),
    "electric guitar": ("distorted electric guitar", "a distorted guitar", "an overdriven electric guitar"),
    "acoustic guitar": ("acoustic guitar", "a plucked acoustic guitar", "a picked acoustic guitar"),
    "flute": ("flute", "a flute", "a breathy flute"),
    "brass": ("brass", "a brass section", "horns"),
    "organ": ("organ", "an organ", "an electric organ"),
    "glockenspiel": ("glockenspiel", "a glockenspiel", "glockenspiel bells"),
    "synthesizer": ("synthesizer", "a synth", "a pulsing synthesizer"),
}
DYNAMICS_PHRASES = {  # from soft to loud
    "very soft": ("very soft", "hushed", "very quiet"),
    "soft": ("soft", "quiet", "gentle"),
    "medium": ("medium loud", "moderately loud", "neither loud nor soft"),
    "loud": ("loud", "strong", "forceful"),
    "very loud": ("very loud", "at full volume", "extremely loud"),
}
DENSITY_PHRASES = {  # from few notes a bar to many
    "sparse": ("sparse", "spacious", "thinly played"),
    "moderate": ("steady", "evenly paced", "moderately active"),
    "busy": ("busy", "dense", "full of quick notes"),
}
REGISTER_PHRASES = {  # from low to high
    "low": ("in a low register", "low in pitch", "low-pitched"),
    "middle": ("in the middle register", "mid-register", "mid-range"),
    "high": ("in a high register", "high in pitch", "high-pitched"),
}
MOOD_PHRASES = {
    "peaceful": ("peaceful", "serene", "calm"),
    "warm": ("warm", "mellow", "tender"),
    "cheerful": ("cheerful", "bright", "happy"),
    "triumphant": ("triumphant", "exuberant", "jubilant"),
    "melancholic": ("melancholic", "sad", "mournful"),
    "brooding": ("brooding", "dark", "pensive"),
    "tense": ("tense", "restless", "uneasy"),
    "fierce": ("fierce", "stormy", "aggressive"),
}
TEMPO_PHRASES = {  # up to this many BPM
    84: ("slow", "unhurried", "leisurely"),
    112: ("mid-tempo", "moderately paced", "medium-paced"),
    138: ("fast", "upbeat", "brisk"),
    10**6: ("very fast", "rapid", "racing"),
}
METER_PHRASES = {3: ("in 3/4 time", "in waltz time", "with three beats to the bar")}
METER_PHRASES[4] = ("in 4/4 time", "in common time", "with four beats to the bar")
ORDINALS = ("first", "second", "third", "fourth")

SECTION_TEMPLATES = (
    "From {start} to {end}, the {label} features {instruments}, {dynamics}, {density}, {register}, with a {mood} mood.",
    "The {label} ({start} to {end}) is played by {instruments}, {dynamics}, {density}, {register}, and feels {mood}.",
    "Between {start} and {end} comes the {label}, {mood}, with {instruments}, {dynamics}, {density} and {register}.",
    "{start} to {end}: the {label} brings {instruments}. It is {dynamics}, {density} and {register}, the mood {mood}.",
    "At {start} the {label} begins, lasting until {end}: {instruments}, {register}, {dynamics}, {density}, {mood}.",
    "The {label} runs from {start} to {end}, {mood} and {dynamics}, {density} and {register}, with {instruments}.",
)
SOLO_TEMPLATES = (
    "{lead} in the lead over {others}",
    "{lead} as the solo voice above {others}",
    "a solo on {lead} with {others}",
)
CHANGE_TEMPLATES = (
    "Unlike the section before, it {changes}.",
    "Against the last part it {changes}.",
    "Here the song {changes}.",
    "Now it {changes}.",
    "The change: it {changes}.",
)
SONG_TEMPLATES = (
    "This is a {mood}, {tempo_word} song in {key}, at about {bpm} BPM and {meter}. It lasts {length} and has {count} "
    "sections. {chords} Over the whole piece we hear {palette}. {peak}",
    "A {tempo_word} piece of {length} in {key}, {meter}, at roughly {bpm} beats per minute, {mood} in mood. {count} "
    "sections follow one another, with {palette} in all. {peak} {chords}",
    "Lasting {length}, this {mood} song moves at a {tempo_word} {bpm} BPM, {meter}, in the key of {key}. {chords} "
    "Its {count} sections are built from {palette}. {peak}",
    "In {key} and at {bpm} BPM, this song is {mood} and {tempo_word}, {meter}. {peak} It is {length} long, in {count} "
    "parts, and is arranged for {palette}. {chords}",
)
CHORD_TEMPLATES = (
    "The {label} goes round the chords {chords}.",
    "Its {label} is built on the chords {chords}.",
    "The chords of the {label} are {chords}.",
)
PEAK_TEMPLATES = (
    "It is loudest in the {loudest} and softest in the {softest}.",
    "Its loudest part is the {loudest}, its softest the {softest}.",
    "The volume peaks in the {loudest} and sinks lowest in the {softest}.",
)
SHORT_TEMPLATES = (
    "A {mood}, {tempo_word} song in {key} at {bpm} BPM that opens with {first} and closes with {last}.",
    "A {tempo_word} piece in {key}, about {bpm} BPM and {mood} in mood, starting with {first} and ending with {last}.",
    "This {mood} song in {key} moves at a {tempo_word} {bpm} BPM, begins with {first} and ends on {last}.",
    "Beginning with {first} and finishing with {last}, this {tempo_word} song in {key} at {bpm} BPM feels {mood}.",
    "At {bpm} BPM in {key}, a {tempo_word} and {mood} song leads from {first} to {last} at the end.",
)


class Phrasing:
    """Choose the words of one caption; neighbouring variants take different templates."""

    def __init__(self, song: Song, variant: int, kind: str):
        if variant < 0:
            raise ValueError(f"variant is {variant}, expected 0 or more.")
        digest = hashlib.sha256(f"{song.song_id}\n{song.seed}\n{kind}".encode()).digest()
        self.offset = int.from_bytes(digest[:4], "little") + variant
        self.rng = np.random.default_rng([*digest, variant])

    def pick(self, phrases: Sequence[str]) -> str:
        return phrases[self.rng.integers(len(phrases))]

    def turn(self, templates: Sequence[str], position: int = 0) -> str:
        """Return the template of a position: the next one for the next position, and for the next variant."""
        return templates[(self.offset + position) % len(templates)]


def clock(seconds: float) -> str:
    """Return seconds as "m:ss", to the nearest second."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _listing(names: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def section_names(song: Song) -> list[str]:
    """Return "intro", "first verse", "chorus", ...: the ordinal only where a label occurs more than once."""
    labels = [section.label for section in song.sections]
    return [
        f"{ORDINALS[labels[:i].count(label)]} {label}" if labels.count(label) > 1 else label
        for i, label in enumerate(labels)
    ]


def describe_change(before: Section, now: Section) -> str:
    """Say which instruments enter and leave, and how the volume moves: "adds flute, drops drums"."""
    added = [INSTRUMENT_PHRASES[name][0] for name in now.instruments if name not in before.instruments]
    dropped = [INSTRUMENT_PHRASES[name][0] for name in before.instruments if name not in now.instruments]
    levels = list(DYNAMICS_PHRASES)
    step = levels.index(now.dynamics) - levels.index(before.dynamics)
    louder = ("much " if abs(step) > 1 else "") + ("louder" if step > 0 else "softer")
    volume = f"gets {louder}" if step else "stays as loud"
    changes = [f"adds {_listing(added)}"] if added else []
    changes += [f"drops {_listing(dropped)}"] if dropped else []
    return f"{', '.join(changes)} and {volume}"


def _instruments(section: Section, phrasing: Phrasing) -> str:
    names = [phrasing.pick(INSTRUMENT_PHRASES[name]) for name in section.instruments]
    if section.label == "solo" and len(names) > 1:
        return phrasing.pick(SOLO_TEMPLATES).format(lead=names[0], others=_listing(names[1:]))
    return ("only " if len(names) == 1 else "") + _listing(names)


def _describe_section(song: Song, position: int, phrasing: Phrasing, labels: bool = True, changes: bool = True) -> str:
    section = song.sections[position]
    sentence = phrasing.turn(SECTION_TEMPLATES, position).format(
        start=clock(section.start),
        end=clock(section.end),
        label=section_names(song)[position] if labels else "part",
        instruments=_instruments(section, phrasing),
        dynamics=phrasing.pick(DYNAMICS_PHRASES[section.dynamics]),
        density=phrasing.pick(DENSITY_PHRASES[section.density]),
        register=phrasing.pick(REGISTER_PHRASES[section.register]),
        mood=phrasing.pick(MOOD_PHRASES[section.mood]),
    )
    if position == 0 or not changes:
        return sentence
    change = describe_change(song.sections[position - 1], section)
    return f"{sentence} {phrasing.turn(CHANGE_TEMPLATES, position).format(changes=change)}"


def prevailing_mood(song: Song) -> str:
    """Return the mood that fills most of the song's time."""
    seconds: dict[str, float] = {}
    for section in song.sections:
        seconds[section.mood] = seconds.get(section.mood, 0.0) + section.end - section.start
    return max(seconds, key=lambda mood: seconds[mood])


def _song_slots(song: Song, phrasing: Phrasing) -> dict[str, str]:
    """Return the words about the song as a whole that both kinds of caption use."""
    tempo = next(phrases for limit, phrases in TEMPO_PHRASES.items() if song.tempo_bpm <= limit)
    return {
        "mood": phrasing.pick(MOOD_PHRASES[prevailing_mood(song)]),
        "tempo_word": phrasing.pick(tempo),
        "bpm": str(round(song.tempo_bpm)),
        "key": f"{song.key} {song.mode}",
    }


def _describe_peak(song: Song, phrasing: Phrasing) -> str:
    levels = [list(DYNAMICS_PHRASES).index(section.dynamics) for section in song.sections]
    if min(levels) == max(levels):
        return f"The volume stays {phrasing.pick(DYNAMICS_PHRASES[song.sections[0].dynamics])} throughout."
    names = section_names(song)
    loudest, softest = names[levels.index(max(levels))], names[levels.index(min(levels))]
    return phrasing.pick(PEAK_TEMPLATES).format(loudest=loudest, softest=softest)


def _describe_song(song: Song, phrasing: Phrasing) -> str:
    main = next((section for section in song.sections if section.label in ("chorus", "verse")), song.sections[0])
    playing = {name for section in song.sections for name in section.instruments}
    return phrasing.turn(SONG_TEMPLATES).format(
        **_song_slots(song, phrasing),
        meter=phrasing.pick(METER_PHRASES[song.meter]),
        length=clock(song.seconds),
        count=len(song.sections),
        chords=phrasing.pick(CHORD_TEMPLATES).format(label=main.label, chords=_listing(main.chords)),
        palette=_listing([phrases[0] for name, phrases in INSTRUMENT_PHRASES.items() if name in playing]),
        peak=_describe_peak(song, phrasing),
    )


def long_caption(song: Song, variant: int) -> str:
    """Write a paragraph on the whole song, then one line per section: time span, instruments, sound, changes.

    Args:
        song: from `synthetic_composition.compose_song`.
        variant: 0, 1, ...: which wording; the facts stay the same.

    Raises:
        ValueError: `variant` is negative.
    """
    phrasing = Phrasing(song, variant, "long caption")
    sections = [_describe_section(song, position, phrasing) for position in range(len(song.sections))]
    return "\n".join(_capital(line) for line in (_describe_song(song, phrasing), *sections))


def section_lines(song: Song, variant: int, labels: bool = True, changes: bool = True) -> list[str]:
    """Write only the lines of the sections of a long caption, in the same words.

    Args:
        song, variant: as in `long_caption`.
        labels: whether a line names its section; False for "part".
        changes: whether it says how it differs from the section before.
    """
    phrasing = Phrasing(song, variant, "long caption")
    lines = [_describe_section(song, position, phrasing, labels, changes) for position in range(len(song.sections))]
    return [_capital(line) for line in lines]


def short_caption(song: Song, variant: int) -> str:
    """Write one sentence: tempo, key, mood, first and last instruments; arguments as in `long_caption`."""
    phrasing = Phrasing(song, variant, "short caption")
    ends = (song.sections[0].instruments, song.sections[-1].instruments)
    wording = slice(None) if sum(map(len, ends)) <= 3 else slice(1)  # plain names for many, to stay below 35 words
    first, last = (_listing([phrasing.pick(INSTRUMENT_PHRASES[name][wording]) for name in names]) for names in ends)
    return phrasing.turn(SHORT_TEMPLATES).format(**_song_slots(song, phrasing), first=first, last=last)
