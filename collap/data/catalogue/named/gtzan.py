"""GTZAN: 1,000 clips of 30 s of ten genres (Tzanetakis and Cook 2002), and its fault-filtered split.

A tenth of the clips are repetitions, distorted or mislabelled, and artists recur (Sturm 2013). The split of Kereliuk,
Sturm and Larsen (2015) leaves such clips out, and has no artist in two parts: 443, 197 and 290 clips. Its lists are
those of torchaudio (`torchaudio.datasets.gtzan`), which took them from jordipons/sklearn-audio-transfer-learning; files
`train_filtered.txt`, `valid_filtered.txt` and `test_filtered.txt` in the folder, lines such as `blues/blues.00029.wav`,
come first. The configuration `all` is all clips, in one split. The text of a clip is its genre.
"""

import re
from collections.abc import Iterator

from collap.data.records import NamedSet, Record
from collap.data.set_folder import SetFolder

CLIP = re.compile(r"(blues|classical|country|disco|hiphop|jazz|metal|pop|reggae|rock)\.\d{5}")
LISTS = {"train": "train_filtered.txt", "validation": "valid_filtered.txt", "test": "test_filtered.txt"}


def filtered_clips(folder: SetFolder) -> dict[str, list[str]]:
    """Return the ids of the clips of every part of the fault-filtered split: `blues.00029`, ...

    Raises:
        ValueError: one of the lists in the folder is missing or malformed.
    """
    places = {split: folder.called(name) for split, name in LISTS.items()}
    if not any(places.values()):
        from torchaudio.datasets import gtzan

        names = {"train": gtzan.filtered_train, "validation": gtzan.filtered_valid, "test": gtzan.filtered_test}
        return {split: list(ids) for split, ids in names.items()}
    if missing := [LISTS[split] for split, found in places.items() if not found]:
        raise ValueError(f"{folder.path}: lacks {', '.join(missing)}; expected all three lists, or none of them")
    return {split: _listed(folder, found[0]) for split, found in places.items()}


def _listed(folder: SetFolder, name: str) -> list[str]:
    ids = []
    for number, line in enumerate(folder.file(name).read_text(encoding="utf-8-sig").splitlines(), start=1):
        found = CLIP.search(line)
        if found:
            ids.append(found[0])
        elif line.strip():
            raise ValueError(f"{folder.file(name)}: line {number} is {line.strip()[:80]!r}; expected a clip's file")
    return ids


def _clips(folder: SetFolder) -> list[str]:
    """Return the ids of the clips that are there."""
    return sorted(key for key in folder.by_key if CLIP.fullmatch(key))


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    filtered = [("filtered", split, name) for split, names in filtered_clips(folder).items() for name in names]
    for config, split, name in (*filtered, *(("all", "test", name) for name in _clips(folder))):
        genre = name.partition(".")[0]
        yield Record(
            id=name,
            texts=["hip hop" if genre == "hiphop" else genre],
            audio=folder.first_audio(name),
            split=split,
            config=config,
            source=f"gtzan:{name}",
            meta={"genre": genre},
        )


SET = NamedSet(
    name="gtzan",
    layout="genres/blues/blues.00000.wav, ... of ten genres, .wav or .au",
    tables=lambda folder: _clips(folder)[:1],
    read=_read,
    get="genres.tar.gz, which its authors no longer offer, from where you have it",
    overlapping=True,
)
