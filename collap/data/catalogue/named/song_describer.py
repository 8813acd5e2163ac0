"""Song Describer: 706 tracks of two minutes with 1,106 captions (Zenodo record 10072001).

The file of `34/1004034.mp3` is `audio/34/1004034.2min.mp3`, below a second `audio` where the zip was unpacked into a
folder of that name. `is_valid_subset` is True, False, or empty, which is not valid.
"""

from collections.abc import Iterator

from collap.data.records import NamedSet, Record
from collap.data.set_folder import SetFolder, is_true


def _tables(folder: SetFolder) -> list[str]:
    return folder.called("song_describer.csv")[:1]


def _licences(folder: SetFolder) -> dict[str, tuple[str, str]]:
    """Return attribution and licence by path from `audio_licenses.txt`, records of four lines: path, attribution,
    licence, `--`."""
    found = {}
    for name in folder.called("audio_licenses.txt")[:1]:
        for record in folder.file(name).read_text(encoding="utf-8").split("\n--"):
            lines = [line.strip() for line in record.splitlines() if line.strip()]
            if len(lines) >= 3:
                found[lines[0]] = lines[1], lines[2]
    return found


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    tracks: dict[str, list[dict]] = {}
    for row in folder.rows(_tables(folder)[0]):
        if is_true(row["is_valid_subset"]) or not settings["valid_only"]:
            tracks.setdefault(row["track_id"].strip(), []).append(row)
    licences = _licences(folder)
    for track, rows in tracks.items():
        path = rows[0]["path"].strip()
        attribution, licence = licences.get(path, (None, "CC BY-SA 4.0 (captions); the audio has licences of its own"))
        yield Record(
            id=track,
            texts=[row["caption"].strip() for row in rows if row["caption"].strip()],
            audio=folder.first_audio(path, track),
            artist=rows[0]["artist_id"].strip(),
            source=f"jamendo:{track}",
            licence=licence,
            meta={
                "attribution": attribution,
                "album": rows[0]["album_id"].strip(),
                "track_seconds": float(rows[0]["duration"] or 0),  # of the track, not of its first two minutes
                "valid": [is_true(row["is_valid_subset"]) for row in rows],
            },
        )


SET = NamedSet(
    name="song_describer",
    layout="song_describer.csv and audio/34/1004034.2min.mp3, ...",
    tables=_tables,
    read=_read,
    get="Zenodo record 10072001: song_describer.csv, audio_licenses.txt and audio.zip (3.3 GB), to be unpacked there",
    settings={"valid_only": False},
)
