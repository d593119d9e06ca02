"""Weight files from the Hugging Face hub, kept in its cache."""

from __future__ import annotations

import logging
from pathlib import Path

from jaxvision.errors import UserError, missing_package
from jaxvision.weights.catalog import Entry

logger = logging.getLogger(__name__)


def fetch(source: Entry | str, *, revision: str | None = None) -> Path:
    """Returns the local path of a weight file, downloaded unless the hub's cache has it.

    A file in the cache is used as it is, without a request: it works offline and loads the same weights every time.
    ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_TOKEN`` are honoured.

    Args:
      source: a row of the catalog, or a repository of timm-format weights such as ``"timm/resnet50.a1_in1k"``.
      revision: branch, tag or commit of the repository; None is its main branch.

    Raises:
      UserError: nothing is published, no such repository or file, or the hub is not reached.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as e:
        raise missing_package("huggingface_hub", "fetching weights", "huggingface") from e

    if isinstance(source, Entry):
        repository, filename = source.hub_id, source.filename
        if repository is None:
            raise UserError(
                f"timm publishes no weights for {source.name!r}; pass pretrained=False or a checkpoint_path"
            )
        if source.license_note:
            logger.warning(source.license_note)
    else:
        repository, filename = source, "model.safetensors"

    try:
        return Path(huggingface_hub.hf_hub_download(repository, filename, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # not in the cache
    except ValueError as e:
        raise UserError(f"{repository!r} is not the name of a repository on the hub: {_first_line(e)}") from e

    where = f"{repository}/{filename}" + (f" at revision {revision}" if revision else "")
    logger.info("downloading %s", where)
    try:
        # One small request first: without a network it fails at once, where a download would retry for half a minute.
        url = huggingface_hub.hf_hub_url(repository, filename, revision=revision)
        huggingface_hub.get_hf_file_metadata(url, timeout=10)
        return Path(huggingface_hub.hf_hub_download(repository, filename, revision=revision))
    except RepositoryNotFoundError as e:
        raise UserError(f"the hub has no repository {repository!r}, or it is private (then set HF_TOKEN)") from e
    except EntryNotFoundError as e:
        raise UserError(f"the hub has no file {where}; weights are read from safetensors files only") from e
    except Exception as e:  # which exception says "no network" differs between releases of huggingface_hub
        raise UserError(
            f"cannot fetch {where} from the hub ({_first_line(e)}). Offline ways: checkpoint_path=<a local "
            f".safetensors file> (on a command line --config.model.checkpoint_path=... or --checkpoint); on a machine "
            f"with a network `hf download {repository} {filename}`, and its cache (HF_HOME) copied here; or "
            f"pretrained=False"
        ) from e


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return line if len(line) <= 160 else f"{line[:160]}..."
