"""Training and evaluation views of a model.

Models have no ``train=`` argument. A view is a second module that shares the model's Variables and differs only in the
mode of its layers: dropout and stochastic depth are on or off, and BatchNorm uses the statistics of the batch or the
running ones. The original model is not modified.
"""

from __future__ import annotations

from typing import TypeVar

from flax import nnx

from jaxvision.errors import UserError

M = TypeVar("M", bound=nnx.Module)


def train_view(model: M, *, batch_norm_group: int | None = None) -> M:
    """Returns a view of `model` for training: dropout and stochastic depth on, BatchNorm statistics updated.

    Frozen BatchNorm layers keep their statistics. Dropout and stochastic depth are on in frozen blocks, too. The view
    shares the Variables of `model`, so `jaxvision.freeze` also freezes views that exist already. A view that holds a
    layer which `reset_classifier` or `jaxvision.add_lora` has replaced raises when it is called.

    Calling the view updates its BatchNorm statistics and its random streams in place. `nnx.jit` and `nnx.grad` write
    these updates back. A module that is passed to plain `jax.jit` or `jax.grad` is a copy there, and its updates are
    lost unless the function returns them, for example as ``nnx.state(view, nnx.BatchStat)``. A plain JAX transformation
    that captures the view instead of taking it as an argument raises Flax's ``TraceContextError``.

    Args:
      model: any model, or a module that contains one.
      batch_norm_group: number of images that BatchNorm normalizes together. None: the whole batch.

    Raises:
      UserError: `batch_norm_group` is given, and the model has no BatchNorm.

    >>> import jaxvision
    >>> model = jaxvision.create_model("test_resnet", num_classes=10)
    >>> training = train_view(model)     # shares the parameters of `model`
    """
    view = nnx.view(model, deterministic=False, use_running_average=False, raise_if_not_found=False)
    if batch_norm_group is None:
        return view
    try:
        return nnx.view(view, batch_norm_group=batch_norm_group)
    except ValueError as e:  # no layer takes it
        raise UserError(
            f"train.batch_norm_group: got {batch_norm_group}, but the model has no BatchNorm. Set it to None."
        ) from e


def eval_view(model: M) -> M:
    """Returns a view of `model` for evaluation, which is deterministic: no dropout, running BatchNorm statistics."""
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
