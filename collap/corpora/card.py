"""Write the card of a data set that was built: what it holds, how it was made, and under which licences."""

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from collap.card_text import plain_name, table_text, without_local_paths

from .write import COLUMNS

TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ["collap", "audio-text-retrieval", "music", "long-captions"]
DATA_FILES = "data/{split}-*.parquet"  # where a repository holds a split


def size_category(num_rows: int) -> str:
    """Return the category of the Hub: `n<1K`, `1K<n<10K`, ... up to `n>1T`."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = len(str(num_rows)) - 3  # 1000 has four digits
    if power <= 0:
        return "n<1K"
    return f"{names[power - 1]}<n<{names[power]}" if power < len(names) else "n>1T"


def data_configs(splits) -> list[dict]:
    """Return the `configs` of a card whose shards of each split lie in `data/`."""
    files = [{"split": split, "path": DATA_FILES.format(split=split)} for split in splits]
    return [{"config_name": "default", "data_files": files}]


def built_card(report: dict, name: str, license: str | None = None) -> DatasetCard:
    """Write the card of a data set, as if nobody had written on one yet.

    Args:
        report: its report.json.
        name: its id on the Hub, or its folder.
        license: of the data set as a whole.
    """
    found = table_text(without_local_paths(report))
    data = DatasetCardData(
        pretty_name=plain_name(name),
        license=license,
        language=["en"] if not report["captions"]["not_english"] else None,
        annotations_creators=["machine-generated"],
        multilinguality=None,
        size_categories=[size_category(report["kept"])],
        tags=list(TAGS),
        configs=data_configs(report["splits"]),
    )
    columns = {column: meaning for column, (_, meaning) in COLUMNS.items()}
    return DatasetCard.from_template(
        data, str(TEMPLATE), name=plain_name(name), place=name, license=license, columns=columns, **found
    )
