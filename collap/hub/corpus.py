"""A corpus of `collap corpus` on the Hub: its card, and parquet shards that hold the audio.

Rendered songs are put into shards here; a data set that was built has them already.
"""

import json
import math
import os
import shutil
import statistics
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from collap.card_text import plain_name, table_text, without_local_paths
from collap.corpora.card import built_card, data_configs, size_category
from collap.data.catalogue.shards import parquet_shards
from collap.files import write_json

from .merge_cards import merge_cards
from .remote import CARD, PublishSettings, RemoteRepository, older_cards

DATASET_TEMPLATE = Path(__file__).with_name("dataset_card_template.md")
DATASET_TAGS = ["collap", "audio-text-retrieval", "music", "synthetic"]
COLUMNS = {  # of the corpora in collap/corpora/synthetic
    "audio": "the song, mono",
    "song_id": "its name",
    "captions": "long descriptions of the whole song, section by section; all are correct",
    "short_captions": "descriptions in a sentence or two",
    "seconds": "length of the song",
    "tempo_bpm": "beats in a minute",
    "key": "its key",
    "mode": "major or minor",
    "sections": "label, start and end in seconds, instruments and more of every section",
}
SHARD_BYTES = 500 * 10**6
REPORT = "report.json"  # of a data set that was built


def corpus_command(settings: dict) -> str:
    """Return the command that renders a corpus again, bit for bit, from its corpus.json."""
    counts = {split: settings["num_songs"].get(split, 0) for split in ("train", "validation", "test")}
    names = ("seed", "min_seconds", "max_seconds", "sampling_rate", "captions_per_song")
    options = [f"--{name} {value}" for name, value in {**counts, **{name: settings[name] for name in names}}.items()]
    return f"collap corpus render FOLDER {' '.join(options)}"


def read_corpus(folder: Path) -> tuple[dict, dict[str, list[dict]]]:
    """Read the settings of a corpus built here and the metadata rows of its splits.

    Raises:
        ValueError: it is no such corpus, or not whole.
    """
    try:
        settings = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        rows = {
            split: [json.loads(line) for line in (folder / split / "metadata.jsonl").read_text("utf-8").splitlines()]
            for split in settings["num_songs"]
        }
        corpus_command(settings)
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename}: not found; expected a corpus of `collap corpus render`: corpus.json and a folder with "
            "metadata.jsonl for each split; or of `collap corpus build`: report.json and data/"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: its corpus.json or a metadata.jsonl is damaged ({error!r})") from error
    short = [split for split, number in settings["num_songs"].items() if len(rows[split]) != number]
    if short:
        raise ValueError(
            f"{folder}: the split {short[0]!r} has {len(rows[short[0]])} songs, corpus.json says otherwise"
        )
    return settings, rows


def dataset_card(folder: str | Path, repo_id: str, license: str | None = None) -> DatasetCard:
    """Write the card of a corpus built here, as if nobody had written on one yet.

    Args:
        folder: of `collap.corpora.synthetic.songs`.

    Raises:
        ValueError: as [`read_corpus`].
    """
    settings, rows = read_corpus(Path(folder))
    everything = [row for split in rows.values() for row in split]
    words = [len(text.split()) for row in everything for text in row["captions"]]
    data = DatasetCardData(
        pretty_name=plain_name(repo_id),
        license=license,
        language=["en"],
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        multilinguality=["monolingual"],
        source_datasets=["original"],
        size_categories=[size_category(len(everything))],
        tags=list(DATASET_TAGS),
        configs=data_configs(rows),
    )
    return DatasetCard.from_template(
        data,
        str(DATASET_TEMPLATE),
        repo_id=repo_id,
        license=license,
        settings=table_text(settings),
        splits={
            table_text(split): {"songs": len(songs), "hours": sum(row["seconds"] for row in songs) / 3600}
            for split, songs in rows.items()
        },
        columns={name: COLUMNS[name] for name in ("audio", *everything[0]) if name in COLUMNS},
        words=[min(words), round(statistics.median(words)), max(words)],
        command=table_text(corpus_command(settings)),
    )


def stage_corpus(folder: Path, staging: Path, settings: PublishSettings, remote: RemoteRepository) -> None:
    """Put together what the repository of a corpus holds."""
    if (folder / REPORT).is_file():
        stage_built(folder, staging, settings, remote)
    else:
        stage_rendered(folder, staging, settings, remote)


def stage_built(folder: Path, staging: Path, settings: PublishSettings, remote: RemoteRepository) -> None:
    """Copy the shards, figures and report of a data set that was built, without paths of this machine; write its card.

    Raises:
        ValueError: its audio is not in the shards, a shard is missing, or the report is damaged.
    """
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        splits, is_embedded = report["splits"], report["settings"]["audio"] == "embed"
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / REPORT}: is damaged ({error!r}); build it again") from error
    if not is_embedded:
        raise ValueError(
            f"{folder}: its audio lies elsewhere on this machine; build it with --audio embed to publish it"
        )
    (staging / "data").mkdir()
    for split in splits:
        for shard in parquet_shards(folder, split):
            os.symlink(shard.resolve(), staging / "data" / shard.name)  # read, and not changed, by the upload
    shutil.copytree(folder / "figures", staging / "figures")
    write_json(staging / REPORT, without_local_paths(report))
    older = older_cards(DatasetCard, folder, remote)
    license = settings.license or next((card.data.license for card in older if card.data.license), None)
    card = built_card(report, settings.repo_id, license)
    merge_cards(card, older, ["license"] if settings.license else []).save(staging / CARD)


def stage_rendered(folder: Path, staging: Path, settings: PublishSettings, remote: RemoteRepository) -> None:
    """Write parquet shards that hold the audio, corpus.json and the card, as `load_dataset` and train.py read them."""
    from datasets import Audio  # with the `train` extra, as the reader of corpora
    from datasets.table import embed_table_storage

    from collap.data.sources import open_dataset

    _, rows = read_corpus(folder)
    for split in rows:
        dataset = open_dataset(str(folder), split, text_column="captions")
        size = sum(path.stat().st_size for path in (folder / split).iterdir())
        num_shards = max(1, math.ceil(size / SHARD_BYTES))
        for index in range(num_shards):
            shard = dataset.shard(num_shards, index, contiguous=True).with_format("arrow")
            shard = shard.map(embed_table_storage, batched=True, keep_in_memory=True)
            path = staging / "data" / f"{split}-{index:05d}-of-{num_shards:05d}.parquet"
            shard.with_format(None).cast_column("audio", Audio()).to_parquet(path, batch_size=32)
    shutil.copyfile(folder / "corpus.json", staging / "corpus.json")
    older = older_cards(DatasetCard, folder, remote)
    license = settings.license or next((card.data.license for card in older if card.data.license), None)
    card = dataset_card(folder, settings.repo_id, license)
    merge_cards(card, older, ["license"] if settings.license else []).save(staging / CARD)
