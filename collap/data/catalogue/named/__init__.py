"""List the data sets that have a name of their own: a file beside this one for each, with its `SET`.

To add one, write such a file and add its name; docs/datasets.md shows how. A user names it as `NAME:FOLDER`.
"""

import importlib

from collap.data.records import NamedSet

NAMES = (
    "song_describer",
    "musiccaps",
    "audioset",
    "harmonixset",
    "futga",
    "vctk",
    "wiki",
    "wikimute",
    "audiocaps",
    "lp_musiccaps",
    "laion_audio",
    "allmusiccaps",
    "castella",
    "mustbench",
    "gtzan",
)
SETS: dict[str, NamedSet] = {name: importlib.import_module(f"{__name__}.{name}").SET for name in NAMES}
