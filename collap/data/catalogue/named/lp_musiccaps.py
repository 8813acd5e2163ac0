"""LP-MusicCaps: captions that a language model wrote from tags, of MSD, MagnaTagATune (MTT) and MusicCaps (MC).

No audio comes with it. The three are told by their columns, and are the configs. Its card warns of
`caption_attribute_prediction`, which is left out; MusicCaps' own caption, `caption_ground_truth`, is in `meta`.
"""

from collections.abc import Iterator

from collap.data.records import NamedSet, Record, youtube_command, youtube_source
from collap.data.set_folder import Clip, SetFolder, cell_list

CAPTIONS = ("caption_writing", "caption_summary", "caption_paraphrase")
SPLITS = {"train": "train", "valid": "validation", "val": "validation", "test": "test"}


def _config(folder: SetFolder, table: str) -> str | None:
    """Return which of the three a table is of; None if of none."""
    columns = folder.columns(table)
    if not columns >= set(CAPTIONS):
        return None
    return "MC" if "ytid" in columns else "MTT" if "tag_top50" in columns else "MSD"


def _tables(folder: SetFolder) -> list[str]:
    return [name for name in folder.called("*.parquet", "*.json", "*.jsonl", "*.csv") if _config(folder, name)]


def _split(table: str) -> str:
    """Return the split of a table by its name, or that of its folder."""
    base = table.rpartition("/")[2].replace(".", "-").split("-")[0]
    return next((SPLITS[word] for word in (base, *table.split("/")) if word in SPLITS), "train")


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    for table in _tables(folder):
        config, rows = _config(folder, table), list(folder.rows(table))
        clips = [Clip() for _ in rows]
        if config == "MC":
            clips = folder.clips([(row["ytid"], float(row["start_s"]), float(row["end_s"])) for row in rows])
        for row, clip in zip(rows, clips, strict=True):
            if clip.problem:
                folder.problems.append(clip.problem)
            yield _record(folder, config, _split(table), row, clip)


def _record(folder: SetFolder, config: str, split: str, row: dict, clip: Clip) -> Record:
    texts = [one for name in CAPTIONS for one in cell_list(row[name])]
    tags = row.get("tag") or row.get("tag_top188") or row.get("aspect_list")
    record = Record(id="", texts=texts, split=split, config=config, meta={"tags": cell_list(tags)})
    if config == "MC":
        record.id, record.audio, record.source = row["ytid"], clip.audio, youtube_source(row["ytid"])
        record.start, record.end = float(row["start_s"]), float(row["end_s"])
        record.licence, record.meta["human"] = "MIT (captions)", row.get("caption_ground_truth")
        return record
    record.id, record.artist = str(row["track_id"]), row.get("artist_name")
    record.audio = folder.first_audio(row.get("path"), record.id)
    record.source = f"{config.lower()}:{record.id}"
    record.licence = "MIT (captions)" if config == "MTT" else "CC BY-NC 4.0 (captions)"
    record.meta |= {"title": row.get("title"), "release": row.get("release"), "year": row.get("year")}
    return record


def _fetch(record: Record) -> str | None:
    return youtube_command(record) if record.config == "MC" else None


SET = NamedSet(
    name="lp_musiccaps",
    layout="tables with caption_writing, caption_summary and caption_paraphrase, such as MTT/data/train-00000-of-00001."
    "parquet, and the audio by their path or id",
    tables=_tables,
    read=_read,
    get="hf download --repo-type dataset seungheondoh/LP-MusicCaps-MC --local-dir FOLDER/MC (or -MTT, -MSD, gated)",
    fetch=_fetch,
    paper="LP-MusicCaps",
)
