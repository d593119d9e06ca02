"""Evaluation: one jitted step over padded, masked batches, so that every image counts exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.eval.metrics import Evaluation, summarize
from jaxvision.models.layers.mode import eval_view
from jaxvision.parallel.mesh import batch_sharding, replicated

Batch = Mapping[str, Any]
EvalStep = Callable[[nnx.State, Batch], dict[str, jax.Array]]
_PROBABILITIES: dict[str, Callable[[jax.Array], jax.Array]] = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


def make_eval_step(
    graph: nnx.GraphDef,
    *,
    mesh: Mesh,
    prepare: Callable[[Batch], jax.Array],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    probabilities: str = "softmax",
    model_of: Callable[[Any], nnx.Module] = lambda merged: merged,
) -> EvalStep:
    """Returns the function (state, batch) -> what the model said about each image.

    Args:
      graph: structure of what `state` is the state of: a model, or something that a model can be had from.
      mesh: the devices; the batch is split over its batch axes.
      prepare: from the batch as the pipeline gives it to images [b, h, w, c] as the model wants them.
      loss: (logits [b, classes], labels [b]) -> [b].
      probabilities: how logits become probabilities, for the confidence: ``"softmax"``, or ``"sigmoid"`` for a model
        that was trained with that loss.
      model_of: from the merged object to the model; for a training state ``jaxvision.train.state.evaluated_model``
        (the averaged weights) or ``lambda state: state.model``.

    Returns:
      The step, compiled at its first call. Its batch has ``"label"``, ``"index"`` and ``"mask"`` [b], and what
      `prepare` reads. Its result has arrays [b], whole on every device, so that each process knows all.

    Raises:
      UserError: no such kind of probabilities.

    Example:
      >>> from jaxvision.parallel.mesh import make_mesh
      >>> graph, state = nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> step = make_eval_step(graph, mesh=make_mesh(), prepare=lambda batch: batch["image"],
      ...                       loss=lambda logits, labels: jnp.zeros(len(labels)))
      >>> batch = {"image": np.ones((8, 4), np.float32), "label": np.zeros(8, np.int32), "index": np.arange(8),
      ...          "mask": np.arange(8) < 6}
      >>> evaluate_batches(step, state, [batch], classes=3).count
      6
    """
    if probabilities not in _PROBABILITIES:
        raise unknown_name_error("kind of probabilities", probabilities, _PROBABILITIES)

    def eval_step(state: nnx.State, batch: Batch) -> dict[str, jax.Array]:
        model = eval_view(model_of(nnx.merge(graph, state)))
        logits = model(prepare(batch)).astype(jnp.float32)  # type: ignore[operator]
        _, classes = logits.shape
        # top_k takes the lower class of equals, as argmax does.
        _, best = jax.lax.top_k(logits, min(5, classes))
        prediction = best[:, 0]
        return {
            "label": batch["label"],
            "index": batch["index"],
            "mask": batch["mask"],
            "prediction": prediction,
            "confidence": jnp.take_along_axis(_PROBABILITIES[probabilities](logits), prediction[:, None], 1)[:, 0],
            "in_top5": (best == batch["label"][:, None]).any(axis=1),
            "loss": loss(logits, batch["label"]),
        }

    return jax.jit(eval_step, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))


def evaluate_batches(step: EvalStep, state: nnx.State, batches: Iterable[Batch], *, classes: int) -> Evaluation:
    """Returns what the model is worth on the images of `batches`.

    Args:
      step: from `make_eval_step`.
      state: what the step was made for.
      batches: of equal shape; the rows that ``"mask"`` leaves out do not count.
      classes: number of classes of the model.

    Raises:
      UserError: there are no images, or a label is outside [0, classes).
    """
    parts: list[dict[str, np.ndarray]] = []
    running = None
    for batch in batches:
        # The device always has the next batch to work on while the last one's answers are fetched, and never more.
        running, done = step(state, batch), running
        if done is not None:
            parts.append(_kept(done))
    if running is None:
        raise UserError("evaluation: the data set has no images")
    parts.append(_kept(running))
    return summarize(**{key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, classes=classes)


def _kept(result: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    host: dict[str, np.ndarray] = jax.device_get(result)
    mask = host.pop("mask")
    return {key: value[mask] for key, value in host.items()}
