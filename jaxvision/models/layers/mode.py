"""The one switch between training and evaluation.

No model takes a ``train=`` argument. A view shares the model's Variables and differs only in how its layers behave:
dropout and stochastic depth act or not, BatchNorm uses the batch or its running statistics. There is
no mutation, so there is no toggle to forget.
"""

from __future__ import annotations

from typing import TypeVar

from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def train_view(model: M, *, batch_norm_group: int | None = None) -> M:
    """Returns a view of `model` that drops out, skips paths and updates BatchNorm statistics.

    With `batch_norm_group`, BatchNorm normalizes so many images together, not the whole batch.
    Frozen BatchNorm layers keep their statistics; dropout and stochastic depth act in frozen blocks, too.

    >>> import jaxvision
    >>> model = jaxvision.create_model("test_resnet", num_classes=10)
    >>> training = train_view(model)     # shares the parameters of `model`
    """
    view = nnx.view(model, deterministic=False, use_running_average=False, raise_if_not_found=False)
    return view if batch_norm_group is None else nnx.view(view, batch_norm_group=batch_norm_group)


def eval_view(model: M) -> M:
    """Returns a view of `model` that computes the same logits for the same images, every time."""
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
