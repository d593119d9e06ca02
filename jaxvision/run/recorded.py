"""What a workdir records of a run when it starts: its config, and the classes and the transform of its checkpoints.

Reading it imports no function that the config names and opens no data, so it works on another machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxvision.augment.preprocess import Preprocess
from jaxvision.errors import UserError
from jaxvision.run.sections import SECTIONS
from jaxvision.run.workdir import write_json

if TYPE_CHECKING:
    from jaxvision.run.context import RunContext

_CLASSIFIER = "classifier.json"


@dataclass(frozen=True, kw_only=True)
class ClassifierRecord:
    """What is needed beside the config to make a classifier of a checkpoint: what the run took from its data.

    Attributes:
      classes: names of the classes.
      in_channels: channels of the images.
      preprocess: the evaluation transform.
      best, best_mode: options of the run's `Checkpoints`.
    """

    classes: tuple[str, ...]
    in_channels: int
    preprocess: Preprocess
    best: str | None
    best_mode: str


def recorded_config(workdir: str | Path) -> ConfigDict | None:
    """Returns the config of the run in a workdir, as it was recorded; None if no run has been started there.

    Args:
      workdir: the workdir, or the folder ``export`` in it.

    Raises:
      UserError: ``config.json`` is damaged.
    """
    folder = Path(workdir)
    record = _read_config(folder)
    if record is None and folder.resolve().name == "export":
        record = _read_config(folder.resolve().parent)
    return None if record is None else ConfigDict(record)


def _read_config(folder: Path) -> dict[str, Any] | None:
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
    if not (isinstance(record, dict) and {"source", "model", "train"} <= record.keys()):
        return None  # that of an export
    if missing := [name for name in SECTIONS if not isinstance(record.get(name), dict)]:
        raise UserError(f"{path}: got no section {missing[0]!r}, expected the config of a run. Restore the file.")
    return record


def write_classifier_record(run: RunContext) -> None:
    """Writes ``classifier.json`` into the workdir of a run. Only process 0 writes.

    Raises:
      UserError: the file cannot be written.
    """
    if jax.process_index() != 0:
        return
    record = ClassifierRecord(
        classes=run.classes,
        in_channels=run.data["train"].pipeline.channels,
        preprocess=run.program.preprocess,
        best=run.checkpoint_options["best"],
        best_mode=run.checkpoint_options["best_mode"],
    )
    write_json(epath.Path(run.workdir) / _CLASSIFIER, asdict(record))


def read_classifier_record(workdir: str | Path) -> ClassifierRecord:
    """Returns what `write_classifier_record` wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = Path(workdir) / _CLASSIFIER
    try:
        record = json.loads(path.read_text())
        classes, preprocess = record.pop("classes"), Preprocess(**record.pop("preprocess"))
        if not (isinstance(classes, list) and type(record["in_channels"]) is int):
            raise TypeError("classes or in_channels of another type")
        return ClassifierRecord(classes=tuple(map(str, classes)), preprocess=preprocess, **record)
    except OSError as e:
        raise UserError(
            f"{path}: cannot read the names of the classes ({e.strerror or e}). Rerun the training command, which "
            "writes the file before its first step. You can then stop it."
        ) from e
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise UserError(
            f"{path}: got a damaged file ({e}), expected the classes of a run. Rerun the training command, which "
            "writes the file before its first step. You can then stop it."
        ) from e
