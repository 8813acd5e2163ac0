"""Publishing a card again: generated parts are refreshed, and what users wrote is kept.

A generated part stands between `<!-- collap:NAME -->` and `<!-- /collap:NAME -->`. Publishing again replaces what is
between the two, and nothing else; where they were deleted, the text that is there stays.
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData, RepoCard

from collap.evaluation.results import DIRECTIONS
from collap.files import flat

PART = re.compile(r"<!-- collap:(?P<name>\w+) -->.*?<!-- /collap:(?P=name) -->", re.DOTALL)
MEASURED = ("configs", "size_categories")  # of a corpus
TASKS = {direction["task"] for direction in DIRECTIONS.values()}


def parse_card(card_class: type[RepoCard], text: str, where: str) -> RepoCard:
    """Read a card; a ValueError names it if its metadata cannot be read."""
    try:
        return card_class(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{where}: the metadata between its --- lines cannot be read ({flat(error)}); correct it"
        ) from error


def sections_of(text: str) -> dict[str, str]:
    """Return the text from one `## ` heading to the next, by heading; what stands above them is named by nothing."""
    sections, name, fenced = {"": ""}, "", False
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            name = line.strip()
            sections[name] = ""
        sections[name] += line
    return sections


def handwritten_sections(text: str) -> dict[str, str]:
    """Return the sections with a heading and without any generated part."""
    return {name: part for name, part in sections_of(text).items() if name and "<!-- collap:" not in part}


def lost_sections(leading: str, other: str) -> list[str]:
    """Return headings under which users have written something else in `other`, which [`merge_text`] leaves out."""
    kept, own = (
        {name: set(PART.sub("", part).splitlines()) for name, part in sections_of(text).items()}
        for text in (leading, other)
    )
    return [name or "the text at its top" for name in own if name in kept and own[name] - kept[name]]


def merge_text(fresh: str, older: Iterable[str]) -> str:
    """Refresh the generated parts of the first card in `older` that says anything, and add the hand-written sections
    that only the others have; `fresh` if there is none."""
    written = [text for text in older if text.strip()]
    if not written:
        return fresh
    merged, *others = written
    for other in others:
        own = handwritten_sections(fresh) | {line.strip(): "" for line in merged.splitlines() if line.startswith("## ")}
        missing = [section for name, section in handwritten_sections(other).items() if name not in own]
        merged = "\n".join([merged.rstrip() + "\n", *missing]) if missing else merged
    parts = {found["name"]: found[0] for found in PART.finditer(fresh)}
    return PART.sub(lambda found: parts.get(found["name"], found[0]), merged)


def merge_cards(fresh: RepoCard, older: Iterable[RepoCard], given: Iterable[str] = ()) -> RepoCard:
    """Make the card to publish from the one of today and those that users may have written on.

    Text: see [`merge_text`]. Metadata: what an older card has is kept, but for the fields that are `given` and the
    figures measured by CoLLAP; lists, such as tags and base models, are joined.

    Args:
        older: the card of the Hub, then that of the folder; the first leads.
        given: names of metadata fields in which the card of today is right.
    """
    older, data, given = list(older), fresh.data, set(given)
    kept: dict[str, Any] = {}
    for card in reversed(older):
        kept |= {name: value for name, value in card.data.__dict__.items() if value is not None}
    for name, value in kept.items():
        new = data.get(name)
        if name == "eval_results" or name in given or (name in MEASURED and new is not None):
            continue
        if isinstance(value, list) and isinstance(new, list):
            value = [*value, *(item for item in new if item not in value)]
        data[name] = value
    if isinstance(data, ModelCardData):
        figures = list(data.eval_results or [])
        for figure in (figure for card in older for figure in card.data.eval_results or []):
            if not _is_ours(figure) and figure not in figures:
                figures.append(figure)
        data.eval_results = figures or None
        data.model_name = data.model_name if figures else None
    fresh.text = merge_text(fresh.text, [card.text for card in older])
    return fresh


def _is_ours(figure: EvalResult) -> bool:
    return figure.task_type in TASKS and "num_bootstrap" in (figure.metric_args or {})
