"""The Variable type of frozen parameters."""

from __future__ import annotations

from flax import nnx


class Frozen(nnx.Variable):
    """A parameter of the model that is not trained.

    It is not an `nnx.Param`, so in any training loop ``nnx.Optimizer(model, tx, wrt=nnx.Param)`` keeps no state for it
    and ``nnx.grad`` computes no gradient. `jaxvision.freeze` converts parameters to this type.
    """
