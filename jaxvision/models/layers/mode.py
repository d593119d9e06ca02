"""Training and evaluation views of a model.

Models have no ``train=`` argument. A view is a second module that shares the model's Variables and differs only in the
mode of its layers: dropout and stochastic depth are on or off, and BatchNorm uses the statistics of the batch or the
running ones. The original model is not modified.
"""

from __future__ import annotations

from typing import TypeVar

from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def train_view(model: M, *, batch_norm_group: int | None = None) -> M:
    """Returns a view of `model` for training: dropout and stochastic depth on, BatchNorm statistics updated.

    Frozen BatchNorm layers keep their statistics. Dropout and stochastic depth are on in frozen blocks, too.

    Args:
      model: any model, or a module that contains one.
      batch_norm_group: number of images that BatchNorm normalizes together. None: the whole batch.

    >>> import jaxvision
    >>> model = jaxvision.create_model("test_resnet", num_classes=10)
    >>> training = train_view(model)     # shares the parameters of `model`
    """
    view = nnx.view(model, deterministic=False, use_running_average=False, raise_if_not_found=False)
    return view if batch_norm_group is None else nnx.view(view, batch_norm_group=batch_norm_group)


def eval_view(model: M) -> M:
    """Returns a view of `model` for evaluation, which is deterministic: no dropout, running BatchNorm statistics."""
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
