"""LAION-Audio-630K: webdataset archives of `12.flac` and `12.json`, such as Meranti/CLAP_freesound; read as they are.

`text` is a list or one text. An archive is `train_1/0.tar`; the folder above the split, if any, is the config. The
licences are in `freesound_meta.csv` and the like.
"""

import json
import os
from collections.abc import Iterator

from collap.data.audio_parts import archive_members, read_member
from collap.data.records import NamedSet, Record
from collap.data.set_folder import AUDIO_SUFFIXES, SetFolder, cell_list
from processing.decode_audio import AudioFileError

SPLITS = {"train": "train", "valid": "validation", "val": "validation", "test": "test"}


def _tables(folder: SetFolder) -> list[str]:
    return folder.called("*.tar")


def _part(archive: str) -> tuple[str, str | None]:
    """Return split and config of an archive by its folders."""
    *above, last = ("", *archive.split("/")[:-1])
    split = SPLITS.get(last.partition("_")[0])
    return (split, above[-1] or None) if split and above else (split or "train", None if split else last or None)


def _licences(folder: SetFolder) -> dict[str, dict]:
    """Return the rows of the tables of metadata, by split and name of the audio."""
    return {row["audio_filename"]: row for table in folder.called("*_meta.csv") for row in folder.rows(table)}


def _texts(folder: SetFolder, archive: str, name: str) -> tuple[list[str], dict]:
    """Return the texts and tags of a member .json; what is damaged is told."""
    try:
        content = json.loads(read_member(str(folder.file(archive)), name))
        return cell_list(content["text"]), {"tags": cell_list(content.get("tag"))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        folder.problems.append(f"{archive}/{name}: expected JSON with text ({type(error).__name__}: {error})")
        return [], {}


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    rows = _licences(folder)
    for archive in _tables(folder):
        try:
            members = archive_members(str(folder.file(archive)))
        except AudioFileError as error:
            folder.problems.append(str(error))
            continue
        split, config = _part(archive)
        audio = {os.path.splitext(name)[0]: name for name in members if os.path.splitext(name)[1] in AUDIO_SUFFIXES}
        for name in members:
            stem, suffix = os.path.splitext(name)
            if suffix != ".json" or name.rpartition("/")[2] == "sizes.json":
                continue
            texts, meta = _texts(folder, archive, name)
            row = rows.get(f"{archive.split('/')[-2] if '/' in archive else split}/{audio.get(stem)}", {})
            yield Record(
                id=f"{archive.removesuffix('.tar')}/{stem}",
                texts=texts,
                audio=f"{archive}/{audio[stem]}" if stem in audio else None,
                split=split,
                config=config,
                artist=row.get("username") or None,
                source=f"freesound:{row['freesound_id']}" if row.get("freesound_id") else f"laion:{archive}/{stem}",
                licence=row.get("license") or "of each clip its own; research use",
                meta=meta,
            )


SET = NamedSet(
    name="laion_audio",
    layout="webdataset archives such as train_1/0.tar, which hold 12.flac and 12.json",
    tables=_tables,
    read=_read,
    get="hf download --repo-type dataset Meranti/CLAP_freesound --local-dir FOLDER (its one source with audio)",
    paper="LAION-Audio",
)
