"""Where to publish, what the remote repository held before, and what of it goes."""

import hashlib
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, RepoCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from .merge_cards import lost_sections, parse_card

CARD = "README.md"
PICKLES = ["*.bin", "*.pt", "*.pth", "*.ckpt"]
TOKENIZER = ["tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json"]
# Every code file that a model was ever published with. Others of these names are of their users, and stay.
UPLOADED_CODE = [
    *("audio_collap.py", "audio_files.py", "audio_tracks.py", "configuration_beats.py", "configuration_collap.py"),
    *("decode_audio.py", "embed_audio.py", "feature_extraction_collap.py", "loading_collap.py", "loss_collap.py"),
    *("modeling_beats.py", "modeling_collap.py", "pipeline_collap.py", "processing_collap.py", "resample_audio.py"),
    *("scoring_collap.py", "sentence_collap.py", "songs_collap.py", "structure_collap.py", "towers_collap.py"),
    *("alignment_collap.py", "localization_collap.py", "sentences_collap.py", "weighting_collap.py"),
    "validation_collap.py",
]
# What an earlier publish may have left in the repository; other code and weights there are of its users.
REPLACED = ["model*.safetensors", "model*.safetensors.index.json", *PICKLES, *TOKENIZER, *UPLOADED_CODE]
# What belongs to the weights: it stays with them, and goes when others take their place.
EXPORTS = ["*.onnx", "*.onnx.data", "onnx/*"]
LOGS = ["evaluation/*", "training/*", "runs/*"]
ADAPTER = "adapter"  # of a LoRA run: it is in the weights, and names a base that is on the machine only


@dataclass
class PublishSettings:
    """Say where to publish, and what a folder does not say of itself.

    Attributes:
        repo_id: `owner/name`, or a name of the user's own.
        repo_type: model, dataset (a corpus of collap/corpora/synthetic) or space (a metric).
        private: makes the repository private if it is new; one that exists must be.
        revision: branch, made if there is none.
        create_pr: whether to open a pull request instead of a commit on the main branch.
        license, language, base_model, datasets: for the metadata of the card; if None, what the card says already, or
            what the training run was made from.
        results: results.json files of `collap evaluate`.
        energy_kwh: that the training took.
        max_shard_size: weights above it are split.
        anyway: whether to publish a model that the doctor finds unhealthy.
        token: of the user; the one that `hf auth login` stored, or HF_TOKEN, if None.
    """

    repo_id: str
    repo_type: str = "model"
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    license: str | None = None
    language: list[str] | None = None
    base_model: list[str] | None = None
    datasets: list[str] | None = None
    results: list[str] | None = None
    energy_kwh: float | None = None
    max_shard_size: str = "5GB"
    anyway: bool = False
    token: str | None = field(default=None, repr=False)

    def command(self, folder: str | Path) -> str:
        """Return the command that publishes the folder again, without the token."""
        words = ["collap", "publish", str(folder), self.repo_id]
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name not in ("repo_id", "token") and value != one.default:
                values = value if isinstance(value, list) else [] if value is True else [value]
                words += [f"--{one.name}", *map(str, values)]
        return shlex.join(words)

    def place(self) -> dict:
        """Return the repository as [`HfApi`] takes it."""
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}


@dataclass
class RemoteRepository:
    """Hold what the remote repository has: the commit, its files, and a local folder with their card and logs."""

    commit: str | None
    files: dict[str, RepoFile]
    folder: Path

    def weights(self) -> dict[str, str]:
        """Return the sha256 of the weights, by file."""
        return {path: file.lfs.sha256 for path, file in self.files.items() if file.lfs and _is_weights(path)}

    def has_weights_of(self, staging: Path) -> bool:
        """Tell whether the weights are, byte for byte, those that are published now."""
        staged = {path.name: _sha256(path) for path in staging.iterdir() if _is_weights(path.name)}
        return bool(staged) and self.weights() == staged


def _is_weights(path: str) -> bool:
    return fnmatch(path, "model*.safetensors") and "/" not in path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_remote(settings: PublishSettings, folder: Path) -> RemoteRepository:
    """Look at the revision to publish to; fetch its card and logs into `folder`."""
    api, place = HfApi(token=settings.token), settings.place()
    place["revision"] = commit = api.repo_info(**place, revision=settings.revision).sha
    tree = {item.path: item for item in api.list_repo_tree(recursive=True, **place) if isinstance(item, RepoFile)}
    if any(matches(path, [CARD, *LOGS]) for path in tree):
        api.snapshot_download(allow_patterns=[CARD, *LOGS], local_dir=folder, **place)
    return RemoteRepository(commit, tree, folder)


def older_cards(card_class: type[RepoCard], folder: Path, remote: RemoteRepository) -> list[RepoCard]:
    """Read the card of the remote repository, then that of the folder, where there is one. Text of the second that the
    first, which leads, does not let through is said."""
    paths = [path for path in (remote.folder / CARD, folder / CARD) if path.is_file()]
    cards = [parse_card(card_class, path.read_text(encoding="utf-8"), str(path)) for path in paths]
    if len(cards) == 2 and (lost := lost_sections(*(card.text for card in cards))):
        left = f"{folder / CARD}: {', '.join(lost)} is not as on the Hub, where it stays as it is; edit it there"
        print(left, file=sys.stderr)
    return cards


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether a pattern fits; one without `/` is of the top folder."""
    return any(fnmatch(path, pattern) and pattern.count("/") == path.count("/") for pattern in patterns)


def stale_files(remote: RemoteRepository, staging: Path, patterns: Iterable[str]) -> list[str]:
    """Return the files of the remote repository that match and are not published any more."""
    return [path for path in remote.files if matches(path, patterns) and not (staging / path).is_file()]


def is_on_hub(name: str, repo_type: str, token: str | None) -> bool:
    """Tell whether the Hub has a repository that the user may see."""
    try:
        return HfApi(token=token).repo_exists(name, repo_type=repo_type)
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            raise
        return False
