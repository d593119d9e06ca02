"""The evaluation of an ensemble: of each member, and of their average."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvision import report
from jaxvision.data.dataset import Dataset
from jaxvision.ensemble import Ensemble, to_logits
from jaxvision.eval.metrics import Evaluation, summarize, summarize_probabilities
from jaxvision.eval.split import predict_split
from jaxvision.eval.step import cached_eval_step, identity
from jaxvision.parallel.mesh import replicated
from jaxvision.train.loss import Loss


def evaluate_ensemble(
    ensemble: Ensemble, images: Dataset, *, loss: Loss, probabilities: str, **options: Any
) -> tuple[list[Evaluation], Evaluation]:
    """Returns the evaluation of each member, and that of their average.

    The host holds the probabilities of all images of two members at a time: [n, classes] in float32.

    Args:
      ensemble: the classifiers.
      images: from `jaxvision.data.open_dataset`.
      loss: (logits [b, classes], labels [b]) -> [b].
      probabilities: how logits become probabilities.
      **options: further arguments of `predict_members`.

    Raises:
      UserError: as for `evaluate_split`.
    """
    members: list[Evaluation] = []
    average: Any = 0
    predicted = predict_members(ensemble, images, loss=loss, probabilities=probabilities, **options)
    for weight, rows in zip(ensemble.weights, predicted, strict=True):
        average = average + np.float32(weight) * rows.pop("probabilities")
        members.append(summarize(**rows, classes=len(ensemble.classes)))
    label, index = members[0].label, members[0].index
    losses = loss(to_logits(jnp.asarray(average), probabilities), jnp.asarray(label))
    return members, summarize_probabilities(average, label, index, np.asarray(losses))


def predict_members(
    ensemble: Ensemble,
    images: Dataset,
    *,
    mesh: jax.sharding.Mesh,
    loss: Loss,
    probabilities: str,
    batch_size: int,
    workers: int | None,
    name: str,
    console: report.Console,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the predictions of each member, as `predict_split` returns them, with the probabilities of all classes.

    Args:
      ensemble, images, loss, probabilities: as for `evaluate_ensemble`.
      mesh, batch_size, workers, console: as for `predict_split`.
      name: name of the split.

    Raises:
      UserError: as for `predict_split`.
    """
    for i, member in enumerate(ensemble.members):
        graph, state = nnx.split(member.model)
        preprocess = ensemble.preprocess(i)
        step_of = functools.partial(
            cached_eval_step,
            graph,
            mesh,
            loss,
            probabilities,
            preprocess,
            identity,
            forward=ensemble.forward(i),
            with_probabilities=True,
        )
        yield predict_split(
            images,
            state=jax.device_put(state, replicated(mesh)),
            name=name if len(ensemble.members) == 1 else f"{name}, model {i + 1} of {len(ensemble.members)}",
            step_of=step_of,
            mesh=mesh,
            preprocess=preprocess,
            batch_size=batch_size,
            workers=workers,
            process=(0, 1),
            console=console,
        )


def observed_probabilities(probabilities: np.ndarray, label: np.ndarray, kind: str) -> np.ndarray:
    """Returns the probabilities of what was observed, for `jaxvision.ensemble.fit_weights`: [n] or [n * classes].

    Args:
      probabilities: [n, classes].
      label: [n] class numbers.
      kind: ``"softmax"``: what is observed is the label of an image. ``"sigmoid"``: each class, present or absent.

    Example:
      >>> observed_probabilities(np.array([[0.25, 0.75]]), np.array([1]), "softmax")
      array([0.75])
      >>> observed_probabilities(np.array([[0.25, 0.75]]), np.array([1]), "sigmoid")
      array([0.75, 0.75])
    """
    is_label = np.arange(probabilities.shape[1]) == label[:, None]
    if kind == "softmax":
        return probabilities[is_label]
    return np.where(is_label, probabilities, 1 - probabilities).ravel()
