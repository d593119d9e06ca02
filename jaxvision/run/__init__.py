"""Runs: a config becomes a trained, evaluated and exported model, or a plan of what its training would cost.

`train` reads as one straight line in `jaxvision.run.training`. `plan` compiles the same train step for devices that are
not at hand.
"""

from jaxvision.run.config import complete, explain_keys
from jaxvision.run.planning import plan, plan_scaling
from jaxvision.run.training import train

__all__ = ["complete", "explain_keys", "plan", "plan_scaling", "train"]
