"""Runs: a config becomes a trained, evaluated and exported model, or a plan of what its training would cost.

`train` reads as one straight line in `jaxvision.run.training`. `plan` compiles the same train step for devices that
this machine does not have. Names are imported on first use, so that `train` does not import `jaxvision.plan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxvision.lazy import lazy_names

if TYPE_CHECKING:
    from jaxvision.run.config import complete
    from jaxvision.run.explain import explain_keys
    from jaxvision.run.planning import plan, plan_scaling
    from jaxvision.run.training import train

__all__ = ["complete", "explain_keys", "plan", "plan_scaling", "train"]

_HOME = {
    "config": ("complete",),
    "explain": ("explain_keys",),
    "planning": ("plan", "plan_scaling"),
    "training": ("train",),
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
