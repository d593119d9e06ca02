"""From a config to a result.

`training.train` is the whole story on one page: from `sections` (what a config may say) by way of `program` (the step,
from shapes alone) to `evaluation` (what came out, and the report). `planning.plan` compiles the same step for devices
that need not be there.
"""

from jaxvision.run.config import complete, explain_keys
from jaxvision.run.planning import plan, plan_scaling
from jaxvision.run.training import train

__all__ = ["complete", "explain_keys", "plan", "plan_scaling", "train"]
