"""Say what a build made: as JSON, in lines, as a row of the paper's Table I, and as histograms."""

import collections
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from collap.data.check_report import TABLE_COLUMNS, TABLE_ONE, Checked, SplitReport, mean_tokens

from .collect import REASONS
from .licences import allows_commerce, training_of
from .selection import SPLITS, Selection, usable_captions
from .state import State

PAPER = "CoLLAP"  # its row of Table I
OWN_REASONS = {
    "annotation": "its annotation file is malformed, or of another recording",
    "no_caption": "nothing that a captioner said of it can be used",
}
DROPS_SHOWN = 10
HISTOGRAMS = {  # name of a figure -> what its axis says
    "seconds": "length of a track in seconds",
    "words": "words of a caption",
    "sections": "sections of a caption",
    "tempo": "measured tempo in BPM",
}


def make_report(state: State, names: list[str], chosen: Selection, settings: dict) -> dict:
    """Return what is said of a data set; the same tracks give the same report.

    Args:
        names: ids of all tracks that were listed.
        settings: what the data set was made with.
    """
    tracks = {split: _facts(state, chosen, split) for split in SPLITS}
    everything = [track for one in tracks.values() for track in one]
    reasons = collections.Counter(said.partition(":")[0] for said in chosen.dropped.values())
    return {
        "settings": settings,
        "listed": len(names),
        "kept": len(chosen.splits),
        "hours": round(sum(one["seconds"] for one in everything) / 3600, 4),
        "splits": {
            split: {
                "songs": len(found),
                "hours": round(sum(one["seconds"] for one in found) / 3600, 4),
                "artists": len({one["artist"] for one in found if one["artist"]}),
            }
            for split, found in tracks.items()
            if found
        },
        "drop_counts": {reason: reasons[reason] for reason in (*REASONS, *OWN_REASONS) if reasons[reason]},
        "dropped": [
            {"id": name, "origin": chosen.origins[name], "reason": said} for name, said in chosen.dropped.items()
        ],
        "captions": {**chosen.captions.figures(), "unread": chosen.unread, "asked_twice": chosen.retried},
        "unread_examples": chosen.unread_examples,
        "compared_with": chosen.compared,
        "least_score": chosen.least_score,
        "boundaries": dict(sorted(collections.Counter(one["boundaries"] for one in everything).items())),
        "licences": dict(sorted(collections.Counter(one["licence"] or "not stated" for one in everything).items())),
        "captioners": _captioners(everything),
        "paper": dict(zip(TABLE_COLUMNS, TABLE_ONE[PAPER], strict=True)),
    }


def _facts(state: State, chosen: Selection, split: str) -> list[dict]:
    """Return what the report needs of every track of a split."""
    found = []
    for track in state.all(name for name, one in chosen.splits.items() if one == split):
        captioners = {(one.captioner, one.licence) for one, *_ in usable_captions(track, chosen.least_score)}
        known = {name: getattr(track, name) for name in ("seconds", "artist", "boundaries", "licence")}
        found.append({**known, "captioners": captioners})
    return found


def _captioners(tracks: list[dict]) -> dict[str, dict]:
    """Return name of a captioner -> its licence, of how many tracks a caption is kept, whether commerce is allowed."""
    counts = collections.Counter(one for track in tracks for one in track["captioners"])
    return {
        name: {
            "licence": licence,
            "trained_on": training_of(name),
            "tracks": count,
            "commercial_use": allows_commerce(licence),
        }
        for (name, licence), count in sorted(counts.items(), key=str)
    }


def add_table(report: dict, data: Path, tokenizers: list[str]) -> Checked:
    """Count recordings, texts and tokens of the shards that were written; put them into the report.

    Args:
        data: folder of the shards.

    Returns:
        What prints Table I.
    """
    checked = Checked({split: SplitReport(0, {}) for split in report["splits"]}, paper=PAPER)
    for split in checked.splits:
        for shard in sorted(data.glob(f"{split}-*.parquet")):
            for batch in pq.ParquetFile(shard).iter_batches(1000, columns=["song_id", "text", "seconds"]):
                for row in batch.to_pylist():
                    checked.totals.add(row["song_id"], row["text"], row["seconds"], True)
    checked.tokens = {name: mean_tokens(name, checked.totals.usable) for name in tokenizers}
    report["table_one"] = {**checked.totals.figures(), "tokens": checked.tokens}
    return checked


def report_lines(report: dict, table: Checked) -> Iterator[str]:
    """Yield what the terminal shows."""
    captions = report["captions"]
    yield f"kept {report['kept']} of {report['listed']} tracks, {report['hours']:.2f} hours"
    if report["settings"]["validation"] and "validation" not in report["splits"]:
        yield "  nothing to validate on: all tracks share an artist or a source"
    for split, sizes in report["splits"].items():
        yield f"  {split}: {sizes['songs']} songs, {sizes['hours']:.2f} hours, {sizes['artists']} known artists"
    meanings = {**REASONS, **OWN_REASONS}
    for reason, count in report["drop_counts"].items():
        yield f"left out, {reason}: {count} ({meanings[reason]})"
    for one in report["dropped"][:DROPS_SHOWN]:
        yield f"  {one['origin']}: {one['reason']}"
    if len(report["dropped"]) > DROPS_SHOWN:
        yield f"  and {len(report['dropped']) - DROPS_SHOWN} more; report.json has all"
    for name, count in report["compared_with"].items():
        yield (
            f"compared with {name}: {count['listed']} recordings, {count['by_id']} of them by id and "
            f"{count['by_sound']} by sound" + ("" if count["by_sound"] else "; its audio is not there")
        )
    yield f"sections by: {', '.join(f'{kind} {count}' for kind, count in report['boundaries'].items()) or 'none'}"
    yield (
        f"captions: {captions['captions']}; {captions['mean_words']} words, {captions['mean_sections']} sections each; "
        f"{captions['cover_the_track']:.1%} cover their track; {captions['vocabulary']} different words"
    )
    yield (
        f"  left out for impossible times: {captions['contradicting_dropped']}; could not be read: "
        f"{captions['unread']} (asked twice: {captions['asked_twice']}); not English: {captions['not_english']}; "
        f"word for word another's: {captions['repeated']}"
    )
    refuted = ", ".join(f"{kind} {count}" for kind, count in captions["untrue"].items())
    yield f"  refuted by what is measured: {refuted or 'none'}"
    for name, one in report["captioners"].items():
        allowed = {True: "commercial use not excluded", False: "no commercial use", None: "commercial use not known"}
        yield (
            f"captioner {name}: licence {one['licence'] or 'not stated'} ({allowed[one['commercial_use']]}); "
            f"trained on: {one['trained_on']}"
        )
    yield f"licences of the tracks: {', '.join(f'{name} {count}' for name, count in report['licences'].items())}"
    yield from table.table_one()


def draw_histograms(path: Path, values: dict[str, list[float]]) -> None:
    """Draw a histogram of each of `HISTOGRAMS` into one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(2, 2).flat, HISTOGRAMS.items(), strict=True):
        axes.hist(values[name], bins=30, color="#4878a8")
        axes.set_xlabel(label)
        axes.set_ylabel("tracks" if name in ("seconds", "tempo") else "captions")
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def histogram_values(state: State, chosen: Selection) -> dict[str, list[float]]:
    """Return what [`draw_histograms`] draws."""
    seconds, tempi = [], []
    for track in state.all(chosen.splits):
        seconds.append(track.seconds)
        if track.measures.get("tempo"):
            tempi.append(track.measures["tempo"])
    return {"seconds": seconds, "words": chosen.captions.words, "sections": chosen.captions.sections, "tempo": tempi}
