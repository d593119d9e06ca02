"""Leaves that no optimizer may touch."""

from __future__ import annotations

from flax import nnx


class Frozen(nnx.Variable):
    """A parameter that is part of the model but not of training.

    It is not an `nnx.Param`, so ``nnx.Optimizer(model, tx, wrt=nnx.Param)`` and ``nnx.grad`` pass it by: it gets no
    gradient and no optimizer state in anyone's loop. `jaxvision.train.partial.freeze` makes them.
    """
