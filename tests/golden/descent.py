"""A small problem for the optimizers, the same in JAX and PyTorch, and the cases in which they are compared.

`make_trajectories.py` runs timm's and PyTorch's optimizers and schedules on it and stores where they get to.
"""

from __future__ import annotations

import numpy as np
from golden import fill

STEPS = 20
KEPT = (2, 20)  # the parameters are stored after these steps
PEAK = 0.05

#: Shapes in JAX's layout. The first convolution, the head, the positions, the norm and the bias are not Muon's;
#: the last three do not decay.
SHAPES = {
    "conv_stem.kernel": (1, 1, 3, 4),
    "conv.kernel": (2, 2, 3, 4),
    "hidden.kernel": (4, 6),
    "hidden.bias": (6,),
    "norm.scale": (6,),
    "zero.kernel": (4, 4),  # starts at zero, as the last layer of a branch may
    "pos_embed": (1, 3, 4),
    "head.kernel": (6, 3),
}
UNDECAYED = ("hidden.bias", "norm.scale", "pos_embed")
HIDDEN = ("conv.kernel", "hidden.kernel", "zero.kernel")
LAYERS = ("conv_stem|pos_embed", "conv", "hidden|norm|zero", "head")  # for layer-wise rates

#: case -> arguments of `create_optimizer` but the learning rate, which is PEAK or a case of SCHEDULES
OPTIMIZERS = {
    "sgd": {"name": "sgd", "weight_decay": 0.1},
    "sgd without momentum": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.1},
    "sgd nesterov": {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "clip_norm": 0.5},
    "adamw": {"name": "adamw", "weight_decay": 0.1},
    "adamw betas epsilon": {"name": "adamw", "betas": (0.8, 0.95), "epsilon": 1e-3, "weight_decay": 0.1},
    "adamw layers schedule": {"name": "adamw", "weight_decay": 0.1, "layer_decay": 0.5, "schedule": "cosine warmup"},
    "lamb": {"name": "lamb", "weight_decay": 0.1},
    "lamb without decay": {"name": "lamb", "weight_decay": 0.0},
    "lamb betas epsilon clip": {
        "name": "lamb",
        "betas": (0.8, 0.95),
        "epsilon": 1e-3,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
    },
    "lamb layers schedule": {"name": "lamb", "weight_decay": 0.1, "layer_decay": 0.5, "schedule": "cosine warmup"},
    "muon": {"name": "muon", "weight_decay": 0.1},
    "muon without nesterov": {"name": "muon", "weight_decay": 0.1, "momentum": 0.8, "nesterov": False},
}

#: case -> arguments of `make_schedule` but the learning rate, which is PEAK
SCHEDULES = {
    "cosine": {"name": "cosine", "steps": STEPS},
    "cosine warmup": {"name": "cosine", "steps": STEPS, "warmup_steps": 5, "warmup_from": 0.1, "end": 0.2},
    "linear": {"name": "linear", "steps": STEPS},
    "linear warmup": {"name": "linear", "steps": STEPS, "warmup_steps": 5, "end": 0.2},
    "step": {"name": "step", "steps": STEPS, "milestones": (0.5, 0.75), "factor": 0.1},
    "step warmup": {"name": "step", "steps": STEPS, "warmup_steps": 5, "milestones": (0.5, 0.75), "factor": 0.3},
    "constant": {"name": "constant", "steps": STEPS},
    "constant warmup": {"name": "constant", "steps": STEPS, "warmup_steps": 5, "warmup_from": 0.1},
}


def start() -> dict[str, np.ndarray]:
    """Returns the parameters at step 0, by name, in float64."""
    parameters = {name: fill.uniform(name, shape).astype(np.float64) for name, shape in SHAPES.items()}
    return parameters | {"zero.kernel": np.zeros(SHAPES["zero.kernel"])}


def gradient(name: str, step: int, value: np.ndarray) -> np.ndarray:
    """Returns the gradient at `step`: a pull toward zero, and noise whose size changes up to a hundredfold per step."""
    return 0.3 * value + 10.0 ** (step % 3 - 1) * fill.uniform(f"{name} {step}", SHAPES[name])


def layer_scale(name: str, decay: float) -> float:
    """Returns the factor of a parameter on the learning rate."""
    layer = next(i for i, names in enumerate(LAYERS) if name.split(".")[0] in names.split("|"))
    return decay ** (len(LAYERS) - 1 - layer)
