"""Print the end of `make demo`: what was trained, how well it finds held-out songs, and where to look.

Run as `python -m demo.summary results/demo`, on the results of `collap evaluate`.
"""

import json
import sys
from pathlib import Path

from collap.evaluation.metrics import measure_of
from collap.evaluation.results import show_interval

ROW = "{:<18}{:<15}{:>22}{:>22}{:>22}"


def variant_rows(results: dict, variant: str) -> list[str]:
    """Return lines for CoLLAP's score, the mean-pooled score of the same embeddings and chance, text to audio."""
    names = ("R@1", "R@5", "mAP")
    rows = [
        ROW.format(
            variant, kind.replace("_", "-"), *(show_interval(name, scores["text_to_audio"][name]) for name in names)
        )
        for kind, scores in results["scores"].items()
    ]
    figures = results["scores"]["collap"]["text_to_audio"]
    return [*rows, ROW.format(variant, "chance", *(measure_of(name).show(figures[name]["chance"]) for name in names))]


TEMPORAL = {
    "order, shuffled, untimed": "order: its sections shuffled",
    "order, neighbours, untimed": "order: two neighbours exchanged",
    "pointing, a sentence alone": "pointing: the sentence of a section",
    "control: pointing at random": "  at random",
    "IoU at least 0.5, path": "place: half of a section and more",
}


def temporal_rows(found: dict[str, dict]) -> list[str]:
    """Return lines of what every variant knows of time, for each of [`TEMPORAL`]."""
    names = [name for name in TEMPORAL if all(name in results["figures"] for results in found.values())]
    rows = [f"{'of time':<38}" + "".join(f"{variant:>22}" for variant in found)]
    for name in names:
        figures = [results["figures"][name] for results in found.values()]
        cells = [f"{one['mean']:.1f} [{one['low']:.1f}, {one['high']:.1f}]" for one in figures]
        rows.append(f"{TEMPORAL[name]:<38}" + "".join(f"{cell:>22}" for cell in cells))
    return rows


def main():
    folder = Path(sys.argv[1])
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/results.json"))}
    first = next(iter(found.values()))
    print(
        f"\nHeld-out songs found from their descriptions: {first['num_texts']} texts, {first['num_audios']} songs that "
        "no model has heard, in % with 95 % intervals by song"
    )
    print(ROW.format("model", "score", "R@1", "R@5", "mAP"))
    for variant, results in found.items():
        print("\n".join(variant_rows(results, variant)))
    temporal = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/temporal.json"))}
    songs = next(iter(temporal.values()))["songs"]
    print(f"\nWhat they know of the order within {songs} of these songs, in %; a guess is right in 50 % of the orders")
    print("\n".join(temporal_rows(temporal)))
    for variant, results in found.items():
        print(f"\n{variant}")
        print(f"  model folder (AutoModel)        {results['model']}")
        print(f"  results, both directions        {folder / variant / 'results.md'}")
        print(f"  order and place                 {folder / variant / 'temporal.md'}")
        print(f"  one song's score over time      {folder / variant / 'localization.png'}")


if __name__ == "__main__":
    main()
