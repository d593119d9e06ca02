"""The keys of a config that are ``"auto"``: chosen by the model's family and the number of training images."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from jaxvision.errors import UserError
from jaxvision.models.base import FineTuning, Model
from jaxvision.run.sections import model_builder

AUTO = "auto"

#: Optimizers whose learning rates are those of AdamW.
_LIKE_ADAMW = ("adamw", "muon")


def recipe(images: int, fine_tuning: FineTuning = Model.fine_tuning) -> tuple[float, float]:
    """Returns the number of epochs and the learning rate that suit a number of training images, for fine-tuning.

    - epochs = 10 · (1,000 / images)^(1/3), from 15 to 5. Few images are repeated more often, but the number of steps
      grows with them, as in BiT's rule (https://arxiv.org/abs/1912.11370, which trains for much longer).
    - rate = the family's rate · (images / 1,000)^(1/4), from half to twice the family's rate. In few steps on few
      images, a small rate keeps more of the features that the head was fitted to. It is AdamW's, for batches of about
      32 images.

    Args:
      images: number of training images.
      fine_tuning: of the model. Default: that of convolutional networks.

    >>> [recipe(n) for n in (200, 2_000, 200_000)]
    [(15.0, 0.00033), (7.9, 0.00059), (5.0, 0.001)]
    """
    epochs = min(max(10 * (1000 / images) ** (1 / 3), 5.0), 15.0)
    rate = fine_tuning.learning_rate * min(max((images / 1000) ** (1 / 4), 0.5), 2.0)
    return round(epochs, 1), float(f"{rate:.1e}")


def resolve(config: ConfigDict, images: int) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns a config with values instead of ``"auto"``, and these values by key.

    Args:
      config: completed.
      images: number of training images.

    Raises:
      UserError: the learning rate is ``"auto"`` for an optimizer whose rates differ from AdamW's.
    """
    # A model may be built by a function, which has no attributes of a class.
    fine_tuning = getattr(model_builder(config.model.name), "fine_tuning", Model.fine_tuning)
    epochs, rate = recipe(images, fine_tuning)
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
        chosen["optimizer.learning_rate"] = rate
    if config.optimizer.layer_decay == AUTO:
        chosen["optimizer.layer_decay"] = fine_tuning.layer_decay
    resolved = config.copy_and_resolve_references()
    for key, value in chosen.items():
        section, name = key.split(".")
        with resolved.ignore_type():
            resolved[section][name] = value
    return resolved, chosen
