"""A small config, a plan with round numbers, and the devices of a TPU grid, for the tests of planning."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from ml_collections import ConfigDict

from jaxvision import plan
from jaxvision.data.pipeline import FromMemory


def digits_config(**sections: dict) -> ConfigDict:
    """Returns a config of a small ResNet on 8 x 8 digits; `sections` replace its keys."""
    config = ConfigDict({"source": {"name": "digits"}, "model": {"name": "test_resnet", "image_size": 32}})
    config.update(ConfigDict({"data": {"batch_size": 16}, "optimizer": {"name": "adamw", "learning_rate": 1e-3}}))
    config.update(ConfigDict(sections))
    return config


#: The properties of the digits, as `train_program` takes them.
DIGITS = {"num_classes": 10, "pipeline": FromMemory((8, 8, 1)), "steps_per_epoch": 10.0}


def make_plan(**changes: object) -> plan.Plan:
    """Returns a plan of two collectives on a chip with round numbers; `changes` replace its fields."""
    chip = plan.Chip("x", 100.0, flops=1000.0, flops_float32=500.0, bandwidth=50.0, link=1.0)
    rows = (
        plan.Collective("all-reduce", "data", 4, 1, 20, 30.0),
        plan.Collective("all-gather", "data", 4, 2, 40, 15.0),
    )
    fields = {
        "chip": chip,
        "mesh": {"data": 4},
        "zero1": False,
        "batch_size": 8,
        "bytes": {"parameters": 60, "batch": 30},
        "flops": 500.0,
        "bytes_accessed": 100.0,
        "collectives": rows,
    }
    return plan.Plan(**{**fields, **changes})


def grid(*sides: int) -> list[SimpleNamespace]:
    """Returns devices with coordinates, in libtpu's order."""
    return [SimpleNamespace(coords=(*place[::-1], 0)) for place in np.ndindex(*sides[::-1])]
