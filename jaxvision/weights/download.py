"""Files from the Hugging Face hub and from other addresses: one process downloads, the others wait for its file."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from jaxvision.disk import hold_lock
from jaxvision.errors import UserError, first_line
from jaxvision.network import download_part

logger = logging.getLogger(__name__)


def from_hub(repository: str, filenames: Sequence[str], revision: str | None, *, alternative: str = "") -> Path:
    """Returns the path of the first of `filenames` that a repository has, in the hub's cache. Downloads it if need be.

    The cache names a file by the SHA-256 digest that the hub states for it, and links to it from the repository's
    folder. The file is compared with that name each time. A cache without links, such as a copy of one or one on
    Windows, does not keep the digest, so a file in it is not compared.

    Args:
      repository: on the hub, such as ``"timm/resnet50.a1_in1k"``.
      filenames: names of a file in it, preferred first.
      revision: branch, tag or commit. None for the main branch.
      alternative: what else works without a network, as the end of a sentence, for the error if the hub cannot be
        reached.

    Raises:
      UserError: the repository, revision or file does not exist, the hub cannot be reached, or the file is damaged.
    """
    if revision is not None and (not re.fullmatch(r"\w[\w./-]*", revision) or ".." in revision):
        raise UserError(f"revision: got {revision[:300]!r}, expected a branch, a tag or a commit of the repository.")
    path = find_cached(repository, filenames, revision)
    if path is None:
        from huggingface_hub import constants

        folder = "--".join(["models", *repository.split("/")])
        with _lock(Path(constants.HF_HUB_CACHE, ".locks", folder, "jaxvision.lock"), repository):
            # Another process may have downloaded it while this one waited.
            path = find_cached(repository, filenames, revision)
            path = path or _download(repository, filenames, revision, alternative)
    _check_digest(path)
    return path


def find_cached(repository: str, filenames: Sequence[str], revision: str | None) -> Path | None:
    """Returns the path of the first of `filenames` that the hub's cache has; None if it has none of them.

    Raises:
      UserError: no repository can have this name, or the cache cannot be read.
    """
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    for name in filenames:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            pass
        except OSError as e:
            raise UserError(
                f"{e.filename or huggingface_hub.constants.HF_HUB_CACHE}: cannot read the cache of the hub: "
                f"{e.strerror or e}. Set HF_HOME to a folder."
            ) from e
        except ValueError as e:
            raise UserError(
                f"weights: got {repository[:300]!r}, expected a repository on the hub such as 'timm/resnet50.a1_in1k' "
                f"({first_line(e)})."
            ) from e
    return None


def _download(repository: str, filenames: Sequence[str], revision: str | None, alternative: str) -> Path:
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
            f"cannot download {where} from the hub ({first_line(e)}). To work offline, pass a local file as "
            "checkpoint_path (--config.model.checkpoint_path=FILE or --checkpoint FILE on the command line), or run "
            f"`hf download {repository} {filenames[0]}` on a machine with a network and copy its cache (HF_HOME), or "
            f"pass pretrained=False (--config.model.pretrained=False){alternative}."
        ) from e
    others = "".join(f", and no {name}" for name in filenames[1:])
    raise UserError(f"the hub has no file {where}{others} in that repository.")


def _check_digest(path: Path) -> None:
    """Raises if a file of the hub's cache does not have the SHA-256 digest by which the cache names it."""
    if not path.is_symlink():
        return
    # One link only: the file itself may be a link into a store that names files in another way.
    file = path.parent / os.readlink(path)
    if not re.fullmatch(r"[0-9a-f]{64}", file.name):
        return
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != file.name:
        raise UserError(
            f"{path} is damaged: got the sha256 {digest}, expected {file.name}, which the hub states. Delete "
            f"{path.resolve()} and run the command again to download it, or pass the file as checkpoint_path to use it "
            "as it is."
        )


def from_url(url: str, path: Path) -> Path:
    """Returns `path`, after downloading the file from an address unless it exists. An interrupted download resumes.

    The size of the file is compared with the one that the server states; a digest of it is not known.

    Raises:
      UserError: the address cannot be reached, or the connection was closed early.
    """
    if path.is_file():
        return path
    try:
        with _lock(path.with_name(f".{path.name}.lock"), url) as is_locked:
            if not path.is_file():  # else another process has downloaded it while this one waited
                _download_url(url, path, resume=is_locked)
    except OSError as e:
        raise UserError(
            f"cannot download {url} ({first_line(e)}). To work offline, pass the file as checkpoint_path, or copy it "
            f"to {path}."
        ) from e
    return path


def _download_url(url: str, path: Path, *, resume: bool) -> None:
    """Downloads a file. Resumes an earlier download, unless another process may be writing it at the same time."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    part = path.with_name(f"{path.name}.incomplete" if resume else f"{path.name}.{secrets.token_hex(8)}.incomplete")
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s", url)
    download_part(url, part)
    part.replace(path)


def _lock(path: Path, what: str) -> AbstractContextManager[bool]:
    """Waits until no other process has the lock, and holds it, as `hold_lock`. Says that it waits for `what`."""
    return hold_lock(path, lambda: logger.warning("waiting for another process that downloads %s", what))
