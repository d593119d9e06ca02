"""Weight files from the Hugging Face hub or another address, kept in a local cache."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import urllib.request
from pathlib import Path

from jaxvision.errors import UserError, missing_package_error
from jaxvision.weights.catalog import Entry, entries

logger = logging.getLogger(__name__)


def fetch(source: Entry | str, *, revision: str | None = None) -> Path:
    """Returns the local path of a weight file, and downloads it if the hub's cache does not have it.

    A cached file is used without a network request, so loading works offline and always gives the same weights. An
    interrupted download resumes. The variables ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_TOKEN``
    are respected.

    Args:
      source: a row of the catalog, or a repository with weights in timm's format, such as ``"timm/resnet50.a1_in1k"``.
        If the repository has no safetensors file, ``pytorch_model.bin`` is used, as in timm; reading it needs torch.
      revision: branch, tag or commit of the repository. Default: its main branch.

    Raises:
      UserError: there are no published weights, the repository, revision or file does not exist, the hub cannot be
        reached, or the file does not have the SHA-256 digest in the catalog.
    """
    if not isinstance(source, Entry):
        return _from_hub(source, "model.safetensors", revision)
    if not source.published:
        raise _unpublished_error(source)
    if source.license_note:
        logger.warning(source.license_note)
    if source.hub_id is not None:
        path = _from_hub(source.hub_id, source.filename, revision)
    elif revision is not None:
        raise UserError(
            f"revision: the weights {source.name} are at {source.url}, which has no revisions. Remove revision."
        )
    else:
        path = _from_url(source)
    _check_sha256(path, source)
    return path


def _unpublished_error(source: Entry) -> UserError:
    others = [entry.tag for entry in entries(source.architecture) if entry.published]
    tags = f" The tags of {source.architecture} with weights are {', '.join(others)}." if others else ""
    return UserError(
        f"pretrained: there are no published weights for {source.name!r}.{tags} Pass pretrained=False or a "
        "checkpoint_path."
    )


def _check_sha256(path: Path, source: Entry) -> None:
    if source.sha256 is None:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        raise UserError(
            f"{path}: got the sha256 {digest}, expected {source.sha256} for {source.name}. Remove the file to download "
            "it again, or pass it as checkpoint_path to use it as it is."
        )


def _from_hub(repository: str, filename: str, revision: str | None) -> Path:
    if revision is not None and (not re.fullmatch(r"\w[\w./-]*", revision) or ".." in revision):
        raise UserError(f"revision: got {revision[:300]!r}, expected a branch, a tag or a commit of the repository.")
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    filenames = list(dict.fromkeys((filename, "pytorch_model.bin")))
    for name in filenames:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            pass  # not in the cache
        except ValueError as e:
            raise UserError(
                f"weights: got {repository[:300]!r}, expected a repository on the hub such as 'timm/resnet50.a1_in1k' "
                f"({_first_line(e)})."
            ) from e
    return _download(repository, filenames, revision)


def _download(repository: str, filenames: list[str], revision: str | None) -> Path:
    """Returns the path of the first of `filenames` that the repository has, after downloading it."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{repository}/{filenames[0]}" + (f" at revision {revision}" if revision else "")
    logger.info("downloading %s", where)
    try:
        for name in filenames:
            try:
                # A small request first: without a network it fails at once, while a download would keep retrying.
                url = huggingface_hub.hf_hub_url(repository, name, revision=revision)
                huggingface_hub.get_hf_file_metadata(url, timeout=10)
            except EntryNotFoundError:
                continue
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    except RepositoryNotFoundError as e:
        raise UserError(
            f"the hub has no repository {repository!r}, or it is private. For a private one, set HF_TOKEN."
        ) from e
    except RevisionNotFoundError as e:
        raise UserError(f"the repository {repository} on the hub has no revision {revision!r}.") from e
    except Exception as e:  # the exception for a missing network depends on the release of huggingface_hub
        raise UserError(
            f"cannot download {where} from the hub ({_first_line(e)}). To work offline, pass a local file as "
            "checkpoint_path (--config.model.checkpoint_path=FILE or --checkpoint FILE on the command line), or run "
            f"`hf download {repository} {filenames[0]}` on a machine with a network and copy its cache (HF_HOME), or "
            "pass pretrained=False."
        ) from e
    raise UserError(f"the hub has no file {where}, and no pytorch_model.bin in that repository.")


def _from_url(source: Entry) -> Path:
    """Returns the path of a pickle that is not on the hub, in the folder where torch and timm store such files."""
    try:
        import torch  # needed to read the file, so checked before gigabytes are downloaded
    except ImportError as e:
        purpose = f"the weights {source.name} are a PyTorch pickle; reading them"
        raise missing_package_error("torch", purpose, "torch") from e

    assert source.url is not None
    path = Path(torch.hub.get_dir(), "checkpoints", source.filename)
    if not path.is_file():
        try:
            _download_url(source.url, path)
        except OSError as e:
            raise UserError(
                f"cannot download {source.url} ({_first_line(e)}). To work offline, pass the file as checkpoint_path, "
                f"or copy it to {path}."
            ) from e
    return path


def _download_url(url: str, path: Path) -> None:
    """Downloads a file. Resumes an earlier download that was interrupted."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    part = path.with_name(f"{path.name}.incomplete")
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s", url)
    downloaded = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={downloaded}-"} if downloaded else {})
    with urllib.request.urlopen(request, timeout=10) as response:
        length = response.headers.get("Content-Length")
        resumed = response.status == 206  # otherwise the server sends the file from the start
        with part.open("ab" if resumed else "wb") as file:
            shutil.copyfileobj(response, file, 2**20)
    if length is not None and part.stat().st_size != int(length) + (downloaded if resumed else 0):
        raise OSError("the connection was closed; run the command again to continue the download")
    part.replace(path)


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return line if len(line) <= 160 else f"{line[:160]}..."
