"""The Variable types of parameters that do not train: frozen ones, and those of layers that were replaced."""

from __future__ import annotations

from typing import Any

from flax import nnx

from jaxvision.errors import UserError


class Frozen(nnx.Variable):
    """A parameter of the model that is not trained.

    It is not an `nnx.Param`, so in any training loop ``nnx.Optimizer(model, tx, wrt=nnx.Param)`` keeps no state for it
    and ``nnx.grad`` computes no gradient. `jaxvision.freeze` converts parameters to this type.
    """


class Replaced(Frozen):
    """A parameter of a layer that its model no longer has. Views made before still hold the layer."""

    def get_value(self, **options: Any) -> Any:
        """Raises, because a view that computes with the old layer is not a view of the model.

        Raises:
          UserError: always.
        """
        raise UserError(
            "view of a model: got a view from before reset_classifier or add_lora replaced this layer, expected a "
            "later one. Make the view again: training = jaxvision.train_view(model)."
        )


def convert(variable: nnx.Variable, to: type[nnx.Variable]) -> None:
    """Changes the type of a Variable in place, so that every view that shares it agrees."""
    variable.__class__ = to


def replace_layer(owner: nnx.Module, attribute: str, layer: Any) -> None:
    """Sets an attribute of a module to another layer. Views that hold the previous one raise when they compute with it.

    Args:
      owner: the module.
      attribute: its attribute, which may not exist yet.
      layer: a module without a Variable of the previous layer, or ``nnx.data(None)``.
    """
    previous = getattr(owner, attribute, None)
    setattr(owner, attribute, layer)
    if isinstance(previous, nnx.Module):
        for _, leaf in nnx.iter_graph(previous):
            if isinstance(leaf, nnx.Param | Frozen):
                convert(leaf, Replaced)
