"""Measure how often a search is right to say that nothing matches well.

    python -m benchmarks.search_matches --index demo.index --data data/demo_songs/test --songs 100

The index is of rendered songs, calibrated, and holds those of `--data`, a folder of `collap corpus render`: their
captions describe what is there. The same captions are asked without the one song that each is of, which leaves songs of
the same instruments. Other texts describe what is not rendered, are not about music, or say nothing.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch

from collap.evaluation.analysis.statistics import figure
from collap.search.index import TrackIndex
from collap.search.queries import Query, text_queries
from collap.search.ranking import texts_of

NOT_RENDERED = (
    "Bagpipes play a slow march over a snare drum roll.",
    "A sitar and tabla raga, meditative, with a tanpura drone.",
    "Death metal with growled vocals, blast beats and down-tuned distorted guitars.",
    "An operatic soprano sings an aria with full orchestra.",
    "A rapper over a trap beat with 808 bass and hi-hat rolls.",
    "Accordion and violin play a tango in a cafe.",
    "Banjo, fiddle and mandolin, a fast bluegrass tune.",
    "Techno with a pounding kick, acid synthesizer and white noise risers.",
    "A barbershop quartet sings a cappella in close harmony.",
    "Gamelan gongs and metallophones in interlocking patterns.",
    "Dubstep wobble bass and a heavy drop at half time.",
    "Steel drums and a calypso rhythm on a sunny beach.",
    "A harpsichord plays a baroque fugue in four voices.",
    "Gregorian chant of monks in a large cathedral.",
    "Didgeridoo drone with clap sticks.",
    "A marching band with piccolos, sousaphones and cymbals.",
    "Theremin and tape loops, an eerie experimental soundscape.",
    "Reggae with offbeat guitar skanks, dub delay and a deep bass line.",
    "Throat singing with a horsehead fiddle.",
    "Flamenco with hand claps, castanets and passionate singing.",
)
NOT_MUSIC = (
    "The committee will vote on the budget next Thursday afternoon.",
    "A man explains how to change the oil of a car.",
    "Rain falls on a tin roof while a dog barks in the distance.",
    "Preheat the oven to two hundred degrees and grease the pan.",
    "The train to the airport leaves from platform nine.",
    "Traffic noise at a crossroads, with horns and a siren.",
    "Please enter your password and press the return key.",
    "A lecture about the causes of inflation in the twentieth century.",
    "The goalkeeper saved a penalty in the last minute of the match.",
    "A photograph of a mountain lake at sunrise.",
    "She bought two apples, a loaf of bread and some cheese.",
    "The patient was given ten milligrams twice a day.",
    "Birds sing in a forest, and leaves rustle in the wind.",
    "A crowd applauds after a long speech by the president.",
    "The function returns a list of integers sorted in ascending order.",
    "Washing machine spinning, a door closes, footsteps on gravel.",
    "The contract may be terminated by either party in writing.",
    "Two people argue about politics on a radio programme.",
    "An earthquake of magnitude six struck the coast last night.",
    "Turn left after the bridge and follow the river for a mile.",
)
NONSENSE = 20  # texts of random letters and words


def nonsense(count: int, seed: int = 0) -> list[str]:
    """Draw texts that say nothing: words of random letters, then words of the other texts in any order."""
    draw = random.Random(seed)
    words = " ".join(NOT_MUSIC).lower().replace(".", "").replace(",", "").split()
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = []
    for number in range(count):
        if number % 2:
            own = draw.sample(words, 10)
        else:
            own = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(10)]
        texts.append(" ".join(own).capitalize() + ".")
    return texts


def captions(folder: Path, songs: int, seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """Read captions of rendered songs: whole ones, short ones, and a sentence of each, with the names of files."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()][:songs]
    draw = random.Random(seed)
    found = {"caption": [], "short caption": [], "one sentence": []}
    for row in rows:
        found["caption"].append((row["captions"][0], row["file_name"]))
        found["short caption"].append((row["short_captions"][0], row["file_name"]))
        found["one sentence"].append((draw.choice(row["captions"][0].split("\n")[1:]), row["file_name"]))
    return found


def said_not_to_match(index: TrackIndex, query: Query, left_out: int | None = None) -> bool:
    """Tell whether a search says that nothing matches well.

    Args:
        left_out: number of a track that is not there.
    """
    tracks, texts = np.arange(len(index)), texts_of([query])
    tracks = tracks[tracks != left_out]
    (ranking,) = index.ranker.rank(texts, tracks, 1)
    return not index.calibration.is_usual(float(ranking.scores[0]))


def share(answers: list[bool]) -> dict[str, float]:
    """Return the share of them that are true, in percent, with its interval of 95 % by a bootstrap over queries."""
    values = 100.0 * np.array(answers)
    found = figure(lambda drawn: values[drawn].mean(-1), len(values), None)
    return {"queries": len(values), **{name: round(found[name], 1) for name in ("value", "low", "high")}}


def measure_matches(index: TrackIndex, folder: Path, songs: int) -> dict[str, dict]:
    """Return of each kind of text the share, in percent, of which it is said that nothing matches well."""
    names = [Path(index.store.path(track)).name for track in range(len(index))]
    report = {}
    for kind, pairs in captions(folder, songs).items():
        queries = text_queries(index.embedder, index.function, [text for text, _ in pairs])
        own = [names.index(name) for _, name in pairs]
        report[f"{kind} of a song"] = share([said_not_to_match(index, one) for one in queries])
        without = [said_not_to_match(index, one, track) for one, track in zip(queries, own, strict=True)]
        report[f"{kind}, its song removed"] = share(without)
    others = {"not rendered": NOT_RENDERED, "not about music": NOT_MUSIC, "nonsense": nonsense(NONSENSE)}
    for kind, texts in others.items():
        queries = text_queries(index.embedder, index.function, list(texts))
        report[kind] = share([said_not_to_match(index, one) for one in queries])
    return report


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--index", type=Path, required=True, help="calibrated, of rendered songs")
    parser.add_argument("--data", type=Path, required=True, help="folder of those songs with metadata.jsonl")
    parser.add_argument("--songs", type=int, default=100, help="whose captions are asked")
    options = parser.parse_args()
    index = TrackIndex.open(options.index)
    if index.calibration is None:
        parser.error(f"{options.index} is not calibrated; do collap index --calibrate first")
    print(json.dumps(measure_matches(index, options.data, options.songs), indent=2))


if __name__ == "__main__":
    main()
