"""Weight files from the Hugging Face hub, kept in its cache."""

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
    """Returns the local path of a weight file, downloaded unless the hub's cache has it.

    A file in the cache is used as it is, without a request: it works offline and loads the same weights every time.
    A download that broke off is taken up where it stopped. ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_ENDPOINT`` and
    ``HF_TOKEN`` are honoured.

    Args:
      source: a row of the catalog, or a repository of timm-format weights such as ``"timm/resnet50.a1_in1k"``. Where a
        repository has no safetensors file its ``pytorch_model.bin`` is taken, as timm does; torch reads it.
      revision: branch, tag or commit of the repository; None is its main branch.

    Raises:
      UserError: nothing is published, no such repository, revision or file, the hub is not reached, or what came is not
        the file that the catalog knows by its sha256.
    """
    if not isinstance(source, Entry):
        return _from_hub(source, "model.safetensors", revision)
    if not source.published:
        others = [entry.tag for entry in entries(source.architecture) if entry.published]
        which = f"; of {source.architecture} there are {', '.join(others)}" if others else " or for any tag of it"
        raise UserError(
            f"timm publishes no weights for {source.name!r}{which}; pass pretrained=False or a checkpoint_path"
        )
    if source.license_note:
        logger.warning(source.license_note)
    if source.hub_id is not None:
        path = _from_hub(source.hub_id, source.filename, revision)
    elif revision is not None:
        raise UserError(f"the weights {source.name} are not on the hub but at {source.url}: they have no revisions")
    else:
        path = _from_url(source)
    if source.sha256 is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != source.sha256:
            raise UserError(
                f"{path} is not the file that is known as {source.name}: its sha256 is {digest}, not {source.sha256}; "
                f"remove it to fetch it again, or pass it as checkpoint_path to use it as it is"
            )
    return path


def _from_hub(repository: str, filename: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import (
            EntryNotFoundError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as e:
        raise missing_package_error("huggingface_hub", "fetching weights", "huggingface") from e

    if revision is not None and (not re.fullmatch(r"\w[\w./-]*", revision) or ".." in revision):
        raise UserError(f"a revision is a branch, a tag or a commit of the repository, not {revision[:300]!r}")
    for name in dict.fromkeys((filename, "pytorch_model.bin")):
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            pass  # not in the cache
        except ValueError as e:
            text = _first_line(e)
            raise UserError(f"{repository[:300]!r} is not the name of a repository on the hub: {text}") from e

    where = f"{repository}/{filename}" + (f" at revision {revision}" if revision else "")
    logger.info("downloading %s", where)
    try:
        for name in dict.fromkeys((filename, "pytorch_model.bin")):
            try:
                # One small request first: without a network it fails at once, where a download would go on trying.
                url = huggingface_hub.hf_hub_url(repository, name, revision=revision)
                huggingface_hub.get_hf_file_metadata(url, timeout=10)
            except EntryNotFoundError:
                continue
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    except RepositoryNotFoundError as e:
        raise UserError(f"the hub has no repository {repository!r}, or it is private (then set HF_TOKEN)") from e
    except RevisionNotFoundError as e:
        raise UserError(f"the repository {repository} on the hub has no revision {revision!r}") from e
    except Exception as e:  # which exception says "no network" differs between releases of huggingface_hub
        raise UserError(
            f"cannot fetch {where} from the hub ({_first_line(e)}). Offline ways: checkpoint_path=<a local "
            f".safetensors file> (on a command line --config.model.checkpoint_path=... or --checkpoint); on a machine "
            f"with a network `hf download {repository} {filename}`, and its cache (HF_HOME) copied here; or "
            f"pretrained=False"
        ) from e
    raise UserError(f"the hub has no file {where}, nor a pytorch_model.bin beside it")


def _from_url(source: Entry) -> Path:
    """Returns the path of a pickle that is on no hub: in the folder where torch and timm keep such files."""
    try:
        import torch  # which has to read it later; told before gigabytes are fetched
    except ImportError as e:
        raise missing_package_error(
            "torch", f"the weights {source.name} are a PyTorch pickle; reading them", "torch"
        ) from e
    from huggingface_hub import constants

    assert source.url is not None
    path = Path(torch.hub.get_dir(), "checkpoints", source.filename)
    if path.is_file():
        return path
    part = path.with_name(f"{path.name}.incomplete")
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("downloading %s", source.url)
        have = part.stat().st_size if part.is_file() else 0
        request = urllib.request.Request(source.url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=10) as response:
            length = response.headers.get("Content-Length")
            go_on = response.status == 206  # else the server begins anew
            with part.open("ab" if go_on else "wb") as file:
                shutil.copyfileobj(response, file, 2**20)
        if length is not None and part.stat().st_size != int(length) + (have if go_on else 0):
            raise OSError("the connection broke off; the next attempt goes on from there")
        part.replace(path)
    except OSError as e:
        raise UserError(
            f"cannot fetch {source.url} ({_first_line(e)}). Offline ways: the file as checkpoint_path, "
            f"or a copy of it at {path}"
        ) from e
    return path


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return line if len(line) <= 160 else f"{line[:160]}..."
