"""The statistics of BatchNorm, measured again for weights that were not trained with them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxvision import report
from jaxvision.classifier import Classifier
from jaxvision.data.dataset import open_dataset
from jaxvision.data.source import Source, Subset
from jaxvision.models.layers.norm import BatchNorm


def has_statistics(classifier: Classifier) -> bool:
    """Returns whether a model has BatchNorm layers."""
    return any(isinstance(module, BatchNorm) for _, module in nnx.iter_modules(classifier.model))


def same_statistics(members: Sequence[Classifier]) -> bool:
    """Returns whether the statistics of several models are equal, as those of runs with a frozen backbone are.

    Then they are also those of the average of the models.
    """
    first, *others = (jax.tree.leaves(nnx.state(member.model, nnx.BatchStat)) for member in members)
    return all(np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def measure_statistics(
    classifier: Classifier,
    data: Source,
    *,
    images: int = 2048,
    batch_size: int = 64,
    max_corrupt: int = 10,
    quiet: bool = False,
) -> Classifier:
    """Returns a classifier whose BatchNorm statistics are measured with its own weights.

    Those of averaged weights are not the average of the statistics. As in stochastic weight averaging (Izmailov et al.
    2018, https://arxiv.org/abs/1803.05407, and ``torch.optim.swa_utils.update_bn``), each statistic becomes its mean
    over batches of training images, drawn at random.

    Args:
      classifier: returned as it is if its model has no BatchNorm.
      data: the training images.
      images: number of them that are used, at most.
      batch_size: images per batch; all batches are full.
      max_corrupt: number of damaged images that are skipped. One more is an error.
      quiet: show no progress.

    Raises:
      UserError: too many damaged images.
    """
    if not has_statistics(classifier):
        return classifier
    batch_size = min(batch_size, len(data))
    n = min(images, len(data)) // batch_size * batch_size
    rows = np.random.default_rng(0).permutation(len(data))[:n]
    dataset = open_dataset(Subset(data, rows, name=data.name), max_corrupt=max_corrupt, log=lambda _: None)
    model = nnx.clone(classifier.model)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.momentum = 0.0  # keep nothing of earlier batches
    graph, state = nnx.split(nnx.view(model, use_running_average=False))
    preprocess = classifier.preprocess

    @jax.jit
    def step(state: nnx.State, batch: Mapping[str, Any]) -> nnx.State:
        view: Any = nnx.merge(graph, state)
        view(dataset.pipeline.prepare_eval(batch, preprocess))
        return nnx.state(view, nnx.BatchStat)

    total, number, batches = None, 0, dataset.eval_batches(batch_size=batch_size, preprocess=preprocess)
    with report.Console(io.StringIO() if quiet else None) as console:
        for batch in console.evaluation(batches, total=n // batch_size, name="BatchNorm statistics"):
            intact = np.flatnonzero(batch["mask"])
            if not len(intact):
                continue
            # Damaged images are black. Others take their place, so that all batches have one shape.
            found = step(state, {key: x[np.resize(intact, batch_size)] for key, x in batch.items()})
            number += 1
            total = found if total is None else jax.tree.map(np.add, jax.device_get(total), jax.device_get(found))
    measured = nnx.clone(classifier.model)
    nnx.update(measured, jax.tree.map(lambda x: x / number, total))
    return replace(classifier, model=measured)
