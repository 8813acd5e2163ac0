"""Publish a CoLLAP model on the Hub with its card, measured figures, training log and golden vectors; or a corpus of
`collap corpus`; or the Space of a metric, of which audio_text_retrieval is built in.

    collap publish runs/demo/collap-gpt2/best you/collap-gpt2 --license apache-2.0 \
        --results results/demo/collap-gpt2/results.json
    collap publish data/demo_songs you/demo-songs --repo_type dataset --license cc0-1.0
    collap publish audio_text_retrieval you/audio_text_retrieval --repo_type space

What is published is put together in a temporary folder, checked by the doctor, and committed at once; the given folder
is only read. Publishing again replaces it: text and metadata that users wrote on the Hub's card stay, and the card of
the folder adds to them; files of the former model that the new one lacks go, and are named. Nothing but safetensors
weights is sent, and of a LoRA run not `adapter/`: the weights hold it already. A publish that was cut off is repeated
with the same command: what the Hub already has is not sent again.
"""

import glob
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from collap.card_text import plain_name

from .corpus import stage_corpus
from .doctor import diagnose
from .metric_space import METRIC, space_sdk, write_metric_space
from .remote import PublishSettings, RemoteRepository, read_remote, stale_files
from .staging import check_model_folder, copy_files, own_files, stage_model

STATUS = {
    401: "not signed in, or the token is not valid: `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there",
    404: "there is no such repository or revision, or the token may not see it",
    412: "the repository has changed meanwhile, and nothing of that was replaced",
}
NETWORK = (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError)  # the last: nor is it in the cache


class PublishError(OSError):
    """Say what failed, so that nothing was published, and how to go on."""


def reason(error: BaseException | None) -> str:
    """Return what failed, in a few words: without the addresses of a request, which may be signed."""
    first = error
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            said = f" ({' '.join(error.server_message.split())})" if error.server_message else ""
            return f"the Hub answered {status}: {STATUS.get(status, 'it failed' if status >= 500 else 'refused')}{said}"
        if isinstance(error, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so nothing can be sent"
        if isinstance(error, HTTPError | ConnectionError | TimeoutError):
            return f"the Hub was not reached, or the connection broke off ({type(error).__name__})"
        error = error.__cause__ or error.__context__
    return f"{type(first).__name__}: {first}"


@contextmanager
def explained(settings: PublishSettings, advice: str = "") -> Iterator[None]:
    """Turn failures of the network, and of an upload, which are RuntimeErrors, into a [`PublishError`] of one line."""
    try:
        yield
    except (*NETWORK, RuntimeError) as error:
        raise PublishError(f"{settings.repo_id} was not published: {reason(error)}{advice}") from error


def check_can_publish(repo_id: str, **settings) -> str:
    """Make the repository and the branch unless they are there: what cannot work fails before a long training.

    Args:
        **settings: of [`PublishSettings`].

    Returns:
        The id of the repository, with the user's name if `repo_id` has none.

    Raises:
        PublishError: no token, no permission or no network.
        ValueError: settings contradict each other, or the repository is public and should be private.
    """
    return _make_repository(PublishSettings(repo_id, **settings))


def _make_repository(settings: PublishSettings, sdk: str | None = None) -> str:
    if settings.create_pr and settings.revision:
        raise ValueError("--create_pr opens a pull request on the main branch; leave out --revision")
    if not (settings.token or get_token()):
        raise PublishError(f"{settings.repo_id} cannot be published: no token; run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=settings.token)
    with explained(settings):
        url = api.create_repo(**settings.place(), private=settings.private or None, exist_ok=True, space_sdk=sdk)
        settings = replace(settings, repo_id=url.repo_id)
        if not settings.create_pr:
            api.auth_check(**settings.place(), write=True)
        if settings.private and not api.repo_info(**settings.place()).private:
            raise ValueError(f"{url.repo_id} exists and is public: make it private in its settings, or drop --private")
        if settings.revision and not settings.revision.startswith("refs/"):
            api.create_branch(**settings.place(), branch=settings.revision, exist_ok=True)
    return url.repo_id


def check_health(staging: Path, folder: Path, settings: PublishSettings) -> None:
    """Raise a ValueError with what the doctor found wrong; with `--anyway` it is only said."""
    diagnosis = diagnose(staging)
    failed = "; ".join(f"{check.name}: {check.detail}" for check in diagnosis.checks if check.status == "failed")
    if failed and not settings.anyway:
        command = replace(settings, anyway=True).command(folder)
        raise ValueError(
            f"the doctor finds the model unhealthy ({failed}); if that is meant, publish it with: {command}"
        )
    if failed:
        print(f"warning: published although the doctor finds it unhealthy ({failed})", file=sys.stderr)


def stage(folder: Path, staging: Path, settings: PublishSettings, remote: RemoteRepository) -> list[str]:
    """Put together what is published; return the remote files that are to go."""
    if settings.repo_type == "space":
        copy_files(own_files(folder), staging)
        return []
    if settings.repo_type == "dataset":
        stage_corpus(folder, staging, settings, remote)
        return stale_files(remote, staging, ["data/*.parquet"])
    stale = stage_model(folder, staging, settings, remote)
    check_health(staging, folder, settings)
    return stale


def publish(folder: str | Path, repo_id: str, **settings) -> CommitInfo:
    """Publish the folder of a model, a corpus or a Space in one commit.

    Args:
        folder: is only read; with `repo_type="space"`, "audio_text_retrieval" is the metric of this package.
        **settings: of [`PublishSettings`].

    Returns:
        The commit; `.commit_url`, and `.pr_url` with `create_pr`.

    Raises:
        PublishError: no token, no permission, no network, or it broke off; says the command to repeat.
        ValueError, OSError: the folder does not hold what it should, or the doctor finds the model unhealthy.
    """
    folder, settings = Path(folder), PublishSettings(repo_id, **settings)
    with tempfile.TemporaryDirectory(prefix="collap-publish-") as temporary:
        if settings.repo_type == "space" and str(folder) == METRIC and not folder.is_dir():
            return _publish_folder(write_metric_space(Path(temporary)), settings, METRIC)
        return _publish_folder(folder, settings, folder)


def _publish_folder(folder: Path, settings: PublishSettings, given: str | Path) -> CommitInfo:
    """Publish `folder`, which the user named as `given`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    sdk = space_sdk(folder, settings.repo_id) if settings.repo_type == "space" else None
    if settings.repo_type == "model":
        check_model_folder(folder)
    settings = replace(settings, repo_id=_make_repository(settings, sdk))
    advice = f"; {given} is untouched; repeat with: {settings.command(given)}"
    with tempfile.TemporaryDirectory(prefix="collap-publish-") as temporary, explained(settings, advice):
        kept, staging = Path(temporary) / "remote", Path(temporary) / "staging"
        kept.mkdir()
        staging.mkdir()
        remote = read_remote(settings, kept)
        stale = stage(folder, staging, settings, remote)
        for path in stale:
            print(f"{path} is of the former {settings.repo_type} and goes from {settings.repo_id}", file=sys.stderr)
        return HfApi(token=settings.token).upload_folder(
            **settings.place(),
            folder_path=staging,
            revision=settings.revision,
            create_pr=settings.create_pr,
            parent_commit=remote.commit,  # fails if anyone has changed the repository since
            delete_patterns=[glob.escape(path) for path in stale] or None,
            commit_message=f"Publish {plain_name(settings.repo_id)}",
        )


def run(options) -> int:
    """Do `collap publish`; return its exit code."""
    try:
        commit = publish(**vars(options))
    except ModuleNotFoundError as error:  # tensorboard for the curves of a run, datasets for a corpus
        package = error.name.split(".")[0]
        raise ImportError(f"{options.folder} is not published without {package}: pip install {package}") from error
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    print(commit.pr_url or commit.commit_url)
    return 0
