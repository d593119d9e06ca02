"""The config of a run that has been started, from its workdir."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxvision.errors import UserError
from jaxvision.run.config import complete


def recorded_config(workdir: str | Path) -> ConfigDict | None:
    """Returns the complete config of the run in a workdir; None if no run has been started there.

    Args:
      workdir: the workdir, or the folder ``export`` in it.

    Raises:
      UserError: ``config.json`` is damaged, or it has a key or names a function that this version does not find.
    """
    folder = Path(workdir)
    record = _read(folder)
    if record is None and folder.resolve().name == "export":
        record = _read(folder.resolve().parent)
    if record is None:
        return None
    record.get("checkpoint", {}).pop("best_mode", None)  # a key of earlier versions
    return complete(record)


def _read(folder: Path) -> dict[str, Any] | None:
    """Returns the config of the run in a folder, as `config_record` makes it; None if there is no run.

    Raises:
      UserError: ``config.json`` is damaged.
    """
    path = folder / "config.json"
    try:
        record = json.loads(path.read_text())
    except OSError:
        return None
    except ValueError as e:
        raise UserError(f"{path}: got invalid JSON ({e}), expected the config of a run. Restore the file.") from e
    # An export has a config.json as well.
    return record if isinstance(record, dict) and {"source", "model", "train"} <= record.keys() else None
