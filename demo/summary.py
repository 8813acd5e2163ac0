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
    for variant, results in found.items():
        print(f"\n{variant}")
        print(f"  model folder (AutoModel)        {results['model']}")
        print(f"  results, both directions        {folder / variant / 'results.md'}")
        print(f"  one song's score over time      {folder / variant / 'localization.png'}")


if __name__ == "__main__":
    main()
