"""The head that a run starts with: a linear probe of the weights, before they are fine-tuned.

A random head sends gradients of random directions into the weights, which distorts their features before the head has
learned anything. A head that is fitted first avoids this: Kumar et al., "Fine-Tuning can Distort Pretrained Features
and Underperform Out-of-Distribution", https://arxiv.org/abs/2202.10054.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jaxvision.checkpoint import Checkpoint
from jaxvision.data.dataset import Dataset, take
from jaxvision.data.source import stratified_split
from jaxvision.errors import UserError
from jaxvision.eval.split import share_damaged
from jaxvision.features.extraction import extract_sharded
from jaxvision.features.probe import LARGE, check_size, fit_probe, set_head
from jaxvision.models.base import Model
from jaxvision.train.loss import probabilities_of
from jaxvision.train.state import state_of

if TYPE_CHECKING:
    from jaxvision.run.context import RunContext

#: Largest product of images, features and classes for which all training images are probed. It is 6.4e8 for CIFAR-10
#: with 1,280 features; that fit takes a few minutes on two cores.
LARGEST_FIT = 1e9
LEAST_PER_CLASS = 20  # mean number of images per class in the sample of a larger dataset


def check_head(config: ConfigDict, model: Model) -> None:
    """Checks that a model can start with a probe as its head if the config asks for it.

    Args:
      config: completed.
      model: with arrays or abstract.

    Raises:
      UserError: the head is not linear or has no bias, the loss is not a softmax loss, or `train.head_init` has an
        unknown value.
    """
    given, where = config.train.head_init, "config.train.head_init"
    if given is None:
        return
    if given != "probe":
        raise UserError(f"{where}: got {given!r}, expected 'probe' or None.")
    if probabilities_of(config.loss.kind) != "softmax":
        raise UserError(
            f"{where}: got 'probe' with the loss {config.loss.kind!r}, expected a softmax loss, because a probe is a "
            f"logistic regression over all classes. Set {where}=None."
        )
    for path in model.classifier_names:
        head: Any = functools.reduce(getattr, path.split("."), model)
        kernel, bias = (getattr(head, name, None) for name in ("kernel", "bias"))
        if kernel is None or bias is None or kernel.size != model.num_features * model.num_classes:
            raise UserError(
                f"{where}: got 'probe' with the head {path} of {model.architecture}, a {type(head).__name__}, expected "
                f"a linear layer of {model.num_features} features with a bias. Set {where}=None."
            )


def images_to_probe(run: RunContext) -> Dataset:
    """Returns the training images, or of a large dataset as many of each class as can be fitted in minutes.

    Args:
      run: the context.

    Raises:
      UserError: there are too many classes.
    """
    images, classes = run.data["train"], len(run.classes)
    n, most = len(images), max(LARGEST_FIT // (run.program.features * classes), LEAST_PER_CLASS * classes)
    check_size(min(n, int(most)), classes, where="config.train.head_init", fix="Set --config.train.head_init=None.")
    if n <= most:
        return images
    labels = np.zeros(n, int) if images.source.labels is None else np.asarray(images.source.labels)
    _, rows = stratified_split(labels, most / n, seed=0)
    single = np.flatnonzero(np.bincount(labels)[labels] == 1)  # of which `stratified_split` holds out none
    return take(images, np.union1d(rows, single))


def start_with_probe(run: RunContext, leaves: nnx.State, images: Dataset) -> Checkpoint:
    """Returns the start of a run with a probe as its head. The run evaluates it before its first step.

    All processes must call it. They fit the same features, and all take the result of process 0, because another
    processor may round differently.

    Args:
      run: the context.
      leaves: state of the model, sharded. Its arrays become those of the result and cannot be used any more.
      images: from `images_to_probe`.

    Raises:
      UserError: the training images have a single class, features are not finite, or too many images are damaged.
    """
    program = run.program
    with run.clock.phase("probe"):
        weight, bias = _fit(run, leaves, images)
        model = nnx.merge(program.model_graph, leaves)
        set_head(model, weight, bias)
        state = state_of(program.create, program.model_graph, nnx.state(model), program.shardings)
    return Checkpoint(step=0, state=state, position={"evaluation_due": True}, metrics={})


def _fit(run: RunContext, leaves: nnx.State, images: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns weight [d, classes] and bias [classes] of the probe."""
    classes, every = len(run.classes), run.data["train"]
    of_all = "" if images is every else f" of {len(every):,}"
    run.console.note(f"probing: features of {len(images):,}{of_all} training images ...")
    parts = extract_sharded(
        run.program.model_graph,
        leaves,
        images,
        preprocess=run.program.preprocess,
        mesh=run.mesh,
        batch_size=run.eval_batch_size,
        name="probe",
        workers=run.workers,
        console=run.console,
    )
    values, _, label = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    share_damaged(images)
    log = run.console.note if values.size * classes > LARGE else lambda _: None  # a short fit needs no progress
    probe = fit_probe(values, label, classes, log=log)
    if probe.folds:
        run.console.note(
            f"probe: {probe.accuracy:.2%} ± {probe.standard_error:.2%} (standard error) in the cross-validation, "
            f"regularization {probe.regularization:.2g}"
        )
    present = np.bincount(label, minlength=classes) > 0
    # The bias of a class without images is so low that a few steps would not raise it.
    bias = np.where(present, probe.bias, probe.bias[present].min())
    if jax.process_count() == 1:
        return probe.weight, bias
    return multihost_utils.broadcast_one_to_all((probe.weight, bias))
