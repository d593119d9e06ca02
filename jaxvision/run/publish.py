"""Publishing a classifier: its folder in timm's format, with a model card, on the Hugging Face hub."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.errors import UserError, first_line
from jaxvision.run.card import find_start, model_card
from jaxvision.run.recorded import recorded_config
from jaxvision.run.workdir import read_result

logger = logging.getLogger(__name__)

_TOKENS = "https://huggingface.co/settings/tokens"


def push_to_hub(
    classifier: Classifier | str | Path,
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    message: str = "Upload a model with jaxvision",
) -> str:
    """Uploads a classifier to the Hugging Face hub and returns the address of its repository.

    The repository is created if it does not exist. One commit adds or replaces ``model.safetensors``, ``config.json``
    and the model card, ``README.md``. `jaxvision.load_classifier` and timm then load it as ``hf-hub:OWNER/NAME``. The
    variables ``HF_TOKEN``, ``HF_HOME`` and ``HF_ENDPOINT`` are respected.

    Args:
      classifier: the workdir of a finished run, whose data, recipe and result the card describes; a folder in timm's
        format; or a `Classifier`.
      repo: the repository, ``"owner/name"``. The owner is a user or an organization.
      private: create a private repository. An existing one stays as it is.
      license: the hub's name of a license, such as ``"apache-2.0"``. None: the license of the weights that the run
        started from; if there are none, the card states no license, and a warning says so.
      message: the title of the commit.

    Raises:
      UserError: the run is not finished, `repo` is malformed, there is no token, it may not write there, or the hub
        cannot be reached. The repository has no part of an upload that failed.
    """
    check_repo(repo)
    with tempfile.TemporaryDirectory() as folder:
        write_repository(folder, classifier, repo, license=license)
        return _upload(folder, repo, private=private, message=message)


def check_repo(repo: str) -> None:
    """Checks the name of a repository.

    Raises:
      UserError: it is not ``"owner/name"``.

    >>> check_repo("someone/flowers")
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        reason = "" if repo.count("/") == 1 else "without an owner"
    except HFValidationError as e:
        reason = first_line(e)
    if reason:
        raise UserError(f"repo: got {repo[:120]!r} ({reason}), expected OWNER/NAME, such as 'someone/flowers'.")


def write_repository(
    folder: str | Path, classifier: Classifier | str | Path, repo: str, *, license: str | None = None
) -> None:
    """Writes the files of a repository: ``model.safetensors``, ``config.json`` and ``README.md``.

    Args:
      folder: is created. Files of these names are replaced.
      classifier, repo, license: as for `push_to_hub`.

    Raises:
      UserError: the run is not finished, or a file cannot be written.
    """
    config: Any = None
    result = None
    if not isinstance(classifier, Classifier):
        source = Path(classifier).expanduser()
        if not os.path.isdir(source):
            raise UserError(f"{classifier}: expected the workdir of a finished run or a folder with config.json.")
        classifier = load_classifier(source)
        config = recorded_config(source)
        if config is not None:
            config = config.to_dict()
            workdir = source.resolve().parent if source.resolve().name == "export" else source
            result = read_result(workdir, config, log=lambda _: None)
            if result is None:
                logger.warning("%s has no complete result.json, so the card states no result", workdir)
    _warn_about_license(license, config)
    save_classifier(folder, classifier)
    card = model_card(classifier, repo, config=config, result=result, license=license)
    try:
        Path(folder, "README.md").write_text(card, encoding="utf-8")
    except OSError as e:
        raise UserError(f"cannot write {Path(folder, 'README.md')}: {e.strerror or e}") from e


def _warn_about_license(license: str | None, config: dict[str, Any] | None) -> None:
    start = None if config is None else find_start(config)
    if start is not None and start.note is not None:
        logger.warning("%s; a model that is trained from them may be bound by it", start.note)
    if license is None and (start is None or start.license is None):
        logger.warning("the card states no license, because that of the weights is not known; set license")


def _upload(folder: str, repo: str, *, private: bool, message: str) -> str:
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise UserError(
            f"push: got no token of the hub. Make one that may write at {_TOKENS}, and run `hf auth login`, or set "
            "HF_TOKEN."
        )
    api = huggingface_hub.HfApi(library_name="jaxvision")
    try:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except Exception as e:  # the exception for a missing network depends on the release of huggingface_hub
        raise _hub_error(e, repo) from e
    return str(url)


def _hub_error(error: Exception, repo: str) -> UserError:
    while error.__cause__ is not None and not hasattr(
        error, "response"
    ):  # "Error while uploading" alone is not informative
        error = error.__cause__  # type: ignore[assignment]
    owner = repo.partition("/")[0]
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    reason = " ".join(said.split())[:200].rstrip(".")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return UserError(
            f"push: the hub does not accept the token ({reason}). Make one that may write at {_TOKENS}, and run "
            "`hf auth login`, or set HF_TOKEN."
        )
    if status in (403, 404):
        return UserError(
            f"push: the token may not write to {repo!r}, or there is no user or organization {owner!r} ({reason}). "
            f"Check the name (`hf auth whoami` lists yours), and that the token has write access: {_TOKENS}"
        )
    if status is not None or isinstance(error, ValueError):
        return UserError(f"push: the hub refused the upload to {repo} ({reason}). Fix that, and run it again.")
    return UserError(
        f"push: cannot reach the hub ({reason}). Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, and run it again."
    )
