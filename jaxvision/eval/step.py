"""The evaluation step. It is compiled once, for padded batches whose mask ensures that every image counts once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxvision.augment.preprocess import Preprocess
from jaxvision.data.pipeline import InputPipeline
from jaxvision.errors import UserError, unknown_name_error
from jaxvision.eval.metrics import Evaluation, summarize
from jaxvision.models.layers.mode import eval_view
from jaxvision.parallel.mesh import batch_sharding, replicated
from jaxvision.platform import compiled_for
from jaxvision.train.loss import PROBABILITIES, Loss, make_loss, probabilities_of

Batch = Mapping[str, Any]
EvalStep = Callable[[nnx.State, Batch], dict[str, jax.Array]]
Forward = Callable[[Any, jax.Array], jax.Array]


def identity(model: nnx.Module) -> nnx.Module:
    """Returns the model unchanged: the `model_of` for the graph of a model alone."""
    return model


def call(model: Any, images: jax.Array) -> jax.Array:
    """Returns the logits of a model: the `forward` without an ensemble or views."""
    return model(images)


def make_eval_step(
    graph: nnx.GraphDef,
    *,
    mesh: Mesh,
    prepare: Callable[[Batch], jax.Array],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    probabilities: str = "softmax",
    model_of: Callable[[Any], nnx.Module] = identity,
    forward: Forward = call,
    with_probabilities: bool = False,
) -> EvalStep:
    """Returns the function (state, batch) -> predictions of the batch.

    Args:
      graph: structure of a model, or of an object that contains a model. `state` holds its values.
      mesh: the devices. The batch is split over its batch axes.
      prepare: (batch) -> images float [b, h, w, c], normalized.
      loss: (logits [b, classes], labels [b]) -> [b].
      probabilities: how logits become probabilities, for the confidence: ``"softmax"``, or ``"sigmoid"`` for a model
        that was trained with the sigmoid loss.
      model_of: (merged object) -> model, such as ``lambda state: state.model`` for a training state.
      forward: (model, images) -> logits [b, classes]. Default: a call of the model.
      with_probabilities: whether the result has ``"probabilities"`` [b, classes] too.

    Returns:
      The step, compiled at its first call. Its batch has ``"label"``, ``"index"`` and ``"mask"`` [b] and what `prepare`
      reads. Its result is a dictionary of arrays [b], replicated to all processes.

    Raises:
      UserError: `probabilities` is unknown.

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
    if probabilities not in PROBABILITIES:
        raise unknown_name_error("probabilities", probabilities, PROBABILITIES)

    def eval_step(state: nnx.State, batch: Batch) -> dict[str, jax.Array]:
        with compiled_for(mesh):
            model = eval_view(model_of(nnx.merge(graph, state)))
            logits = forward(model, prepare(batch)).astype(jnp.float32)
        _, classes = logits.shape
        # Among equal logits top_k takes the lowest class, as argmax does.
        _, best = jax.lax.top_k(logits, min(5, classes))
        prediction = best[:, 0]
        each = PROBABILITIES[probabilities](logits)
        result = {
            "label": batch["label"],
            "index": batch["index"],
            "mask": batch["mask"],
            "prediction": prediction,
            "confidence": jnp.take_along_axis(each, prediction[:, None], 1)[:, 0],
            "in_top5": (best == batch["label"][:, None]).any(axis=1),
            "loss": loss(logits, batch["label"]),
        }
        return result | ({"probabilities": each} if with_probabilities else {})

    return jax.jit(eval_step, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))


@functools.lru_cache(maxsize=8)
def cached_eval_step(
    graph: nnx.GraphDef,
    mesh: Mesh,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    probabilities: str,
    preprocess: Preprocess,
    model_of: Callable[[Any], nnx.Module],
    pipeline: InputPipeline,
    forward: Forward = call,
    with_probabilities: bool = False,
) -> EvalStep:
    """Returns `make_eval_step` for images of a dataset; equal arguments return the same compiled step.

    Args:
      graph, mesh, loss, probabilities, model_of, forward, with_probabilities: as for `make_eval_step`.
      preprocess: the evaluation transform.
      pipeline: how the images reach the model.
    """
    return make_eval_step(
        graph,
        mesh=mesh,
        loss=loss,
        probabilities=probabilities,
        prepare=lambda batch: pipeline.prepare_eval(batch, preprocess),
        model_of=model_of,
        forward=forward,
        with_probabilities=with_probabilities,
    )


def evaluation_loss(
    *,
    kind: str | Callable[..., Loss] = "softmax",
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    **options: Any,
) -> tuple[Loss, str]:
    """Returns the loss of an evaluation, and how logits become probabilities.

    Args:
      kind: as for `jaxvision.train.loss.make_loss`.
      label_smoothing, target_threshold: of the training; an evaluation leaves the targets as they are.
      **options: keyword arguments of your own function.

    Raises:
      UserError: `kind` is unknown, or an option is out of range.

    Example:
      >>> evaluation_loss(kind="sigmoid", label_smoothing=0.1)[1]
      'sigmoid'
    """
    return make_loss(kind=kind, **options), probabilities_of(kind)


def evaluate_batches(step: EvalStep, state: nnx.State, batches: Iterable[Batch], *, classes: int) -> Evaluation:
    """Returns the evaluation of a model on the images of `batches`.

    Args:
      step: from `make_eval_step`.
      state: as the step takes it.
      batches: of equal shape. Rows where ``"mask"`` is False do not count.
      classes: number of classes of the model.

    Raises:
      UserError: there are no images, or a label is outside [0, classes).
    """
    return summarize(**predict_batches(step, state, batches), classes=classes)


def predict_batches(step: EvalStep, state: nnx.State, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """Returns what a step returns for the images of `batches`, without the padding: arrays of n rows.

    Args:
      step, state, batches: as for `evaluate_batches`.

    Raises:
      UserError: there are no images.
    """
    parts: list[dict[str, np.ndarray]] = []
    running = None
    for batch in batches:
        # The next step is queued before the results of the previous one are fetched. The device never waits, and
        # holds at most two batches.
        running, done = step(state, batch), running
        if done is not None:
            parts.append(_without_padding(done))
    if running is None:
        raise UserError("evaluation: the dataset has no images.")
    parts.append(_without_padding(running))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _without_padding(result: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    host: dict[str, np.ndarray] = jax.device_get(result)
    mask = host.pop("mask")
    return {key: value[mask] for key, value in host.items()}
