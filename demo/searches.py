"""Answer three searches in an index of the demo's held-out songs, and show below each answer what is true.

Run as `python -m demo.searches INDEX SONGS`: an index of the folder SONGS, which has a metadata.jsonl. Asked are the
whole description of a song, the sections of another without its overview, and what is said of one section of a third;
all without clock times.
"""

import argparse
import json
import textwrap
from pathlib import Path

from collap.data.sections import without_times
from collap.search.hits import Results
from collap.search.index import TrackIndex
from collap.search.outputs import as_table, clock

SHOWN = 3  # hits of a search
WIDTH = 110


def questions(rows: list[dict]) -> list[tuple[str, dict, list[dict]]]:
    """Return three texts, each with the song that it is of and the sections that it speaks of."""
    chosen = first, middle, last = rows[0], rows[len(rows) // 2], rows[-1]
    whole, parts, part = ([without_times(line) for line in row["captions"][0].split("\n")] for row in chosen)
    return [
        ("\n".join(whole), first, first["sections"]),
        ("\n".join(parts[1:]), middle, middle["sections"]),
        (part[2], last, last["sections"][1:2]),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("songs", type=Path)
    options = parser.parse_args()
    index = TrackIndex.open(options.index)
    rows = [json.loads(line) for line in (options.songs / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = questions(rows)
    for (text, row, sections), hits in zip(asked, index.search([text for text, *_ in asked], SHOWN), strict=True):
        print(f'\ncollap search --index {options.index} "{textwrap.shorten(text, WIDTH - 40, placeholder=" ...")}"')
        print(as_table(Results(hits[:1]), text), end="")
        for hit in hits[1:]:
            print(as_table(Results([hit]), text).splitlines()[0])
        print(f"{'':10}true: {row['file_name']}")
        for one in sections:
            about = ", ".join([one["label"], *one["instruments"]])
            print(f"{'':24}{clock(one['start']) + '-' + clock(one['end']):15} {about}")


if __name__ == "__main__":
    main()
