"""Say under which licence the weights of a captioner are given, which its captions carry along."""

import re
from pathlib import Path

from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.repocard import metadata_load
from transformers.utils import cached_file

# What the cards of these models say, as of November 2026; the first that is part of a name counts.
KNOWN = {
    "moss-music": "apache-2.0",
    "music-flamingo": "nvidia-oneway-noncommercial",
    "audio-flamingo": "nvidia-oneway-noncommercial",
    "qwen2-audio": "apache-2.0",
    "qwen2.5-omni-7b": "apache-2.0",
    "qwen2.5-omni-3b": "qwen-research",
    "qwen3-omni": "apache-2.0",
    "futga": "apache-2.0",
}
NON_COMMERCIAL = re.compile(r"non-?commercial|(?:^|-)nc(?:-|$)|research", re.IGNORECASE)


def model_licence(name: str) -> str | None:
    """Return the licence of a model: as its card says, else as is known of its name; None if neither says one.

    Args:
        name: folder or Hub id.
    """
    return card_licence(name) or next((licence for part, licence in KNOWN.items() if part in name.lower()), None)


def card_licence(name: str) -> str | None:
    """Return what the header of a model's README.md gives as `license`, or as `license_name` where that is `other`."""
    try:
        card = cached_file(name, "README.md", _raise_exceptions_for_missing_entries=False)
        found = metadata_load(Path(card)) if card else None
    except (OSError, ValueError, EntryNotFoundError):
        return None
    if not found:
        return None
    licence = found.get("license_name") if found.get("license") == "other" else found.get("license")
    return (licence[0] if isinstance(licence, list) else licence) or None


def allows_commerce(licence: str | None) -> bool | None:
    """Tell whether a licence is none of those that forbid commercial use by their name; None if it is not known."""
    return None if licence is None else not NON_COMMERCIAL.search(licence)
