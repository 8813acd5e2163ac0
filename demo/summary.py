"""Print what `make demo` has made: what the models know of the order within songs, and where to look.

Run as `python -m demo.summary results/demo`, on the results of `collap evaluate`.
"""

import json
import sys
from pathlib import Path

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
    found, temporal = (
        {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob(f"collap-*/{name}.json"))}
        for name in ("results", "temporal")
    )
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
