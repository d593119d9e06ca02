"""Training: the train step and its parts."""

from __future__ import annotations

from jaxvision.train.blocks import Blocks
from jaxvision.train.ema import EMA
from jaxvision.train.loss import Loss, make_loss
from jaxvision.train.optim import create_optimizer, decay_mask, layer_scales
from jaxvision.train.partial import LoRALinear, add_lora, freeze, merge_lora, parameter_counts, unfreeze
from jaxvision.train.schedule import make_schedule
from jaxvision.train.state import (
    TrainState,
    abstract_state,
    create_state,
    evaluated_state,
    gather_model,
    initialize,
)
from jaxvision.train.step import check_finite, make_train_step

__all__ = [
    "EMA",
    "Blocks",
    "LoRALinear",
    "Loss",
    "TrainState",
    "abstract_state",
    "add_lora",
    "check_finite",
    "create_optimizer",
    "create_state",
    "decay_mask",
    "evaluated_state",
    "freeze",
    "gather_model",
    "initialize",
    "layer_scales",
    "make_loss",
    "make_schedule",
    "make_train_step",
    "merge_lora",
    "parameter_counts",
    "unfreeze",
]
