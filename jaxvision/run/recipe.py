"""The keys of a config that are ``"auto"``: chosen by the model's family and the number of training images."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from jaxvision.errors import UserError
from jaxvision.models.base import Model
from jaxvision.run.sections import model_builder

AUTO = "auto"

#: Optimizers whose learning rates are those of AdamW.
_LIKE_ADAMW = ("adamw", "muon")


def fine_tuning_epochs(images: int) -> float:
    """Returns the number of epochs that suits a number of training images, for fine-tuning.

    10 · (1,000 / images)^(1/3), from 15 to 5. Few images are repeated more often, but the number of steps grows with
    them, as in BiT's rule (https://arxiv.org/abs/1912.11370, which trains for much longer).

    >>> [fine_tuning_epochs(n) for n in (200, 2_000, 200_000)]
    [15.0, 7.9, 5.0]
    """
    return round(min(max(10 * (1000 / images) ** (1 / 3), 5.0), 15.0), 1)


def resolve(config: ConfigDict, images: int) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns a config with values instead of ``"auto"``, and these values by key.

    Args:
      config: completed.
      images: number of training images.

    Raises:
      UserError: the learning rate is ``"auto"`` for an optimizer whose rates differ from AdamW's.
    """
    # A function that builds a model does not declare `fine_tuning`.
    fine_tuning = getattr(model_builder(config.model.name), "fine_tuning", Model.fine_tuning)
    epochs = fine_tuning_epochs(images)
    options = config.train
    chosen: dict[str, Any] = {}
    if options.epochs == AUTO and options.steps is None:
        chosen["train.epochs"] = epochs
    elif options.steps is not None:
        epochs = options.steps * config.data.batch_size / images
    else:
        epochs = options.epochs
    if config.schedule.warmup_epochs == AUTO:
        chosen["schedule.warmup_epochs"] = round(epochs / 10, 2)
    if config.optimizer.learning_rate == AUTO:
        if config.optimizer.name not in _LIKE_ADAMW:
            raise UserError(
                f"config.optimizer.learning_rate: got 'auto' for {config.optimizer.name!r}, expected a number, because "
                f"only {' and '.join(_LIKE_ADAMW)} have a rule. Set config.optimizer.learning_rate."
            )
        chosen["optimizer.learning_rate"] = fine_tuning.learning_rate
    if config.optimizer.layer_decay == AUTO:
        chosen["optimizer.layer_decay"] = fine_tuning.layer_decay
    resolved = config.copy_and_resolve_references()
    for key, value in chosen.items():
        section, name = key.split(".")
        with resolved.ignore_type():
            resolved[section][name] = value
    return resolved, chosen
