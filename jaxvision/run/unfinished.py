"""The model of a checkpoint, for a run that was stopped for good."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from flax import nnx

from jaxvision.checkpoint import Checkpoints, saved_steps
from jaxvision.classifier import Classifier
from jaxvision.errors import UserError
from jaxvision.parallel.mesh import make_mesh, replicated
from jaxvision.run import result
from jaxvision.run.program import build_model
from jaxvision.run.recorded import read_classifier_record, recorded_config
from jaxvision.train.loss import probabilities_of
from jaxvision.train.state import abstract_state, create_state


def load_checkpoint(
    workdir: str | Path, *, step: int | str | None = None, log: Callable[[str], None] = print
) -> tuple[Classifier, int]:
    """Returns the classifier of a checkpoint, and its step. The run may continue meanwhile.

    Reads only the workdir: neither the data nor the functions of the config are needed, except a model of your own.
    Uses one device, whatever the run used.

    Args:
      workdir: folder of the run.
      step: ``"newest"``, ``"best"`` by the validation data, or the number of a step. None: the best if there is one,
        else the newest.
      log: called with each warning, such as that a damaged checkpoint was skipped.

    Raises:
      UserError: there is no run or no such checkpoint, or a file of the run cannot be read.
    """
    config = recorded_config(workdir)
    if config is None or not saved_steps(workdir):
        raise UserError(f"{workdir}: got no checkpoint, expected the workdir of a run that has saved one.")
    record = read_classifier_record(workdir)
    build = functools.partial(
        build_model, config, len(record.classes), record.in_channels, record.preprocess, weights=False
    )
    # The optimizer is not read, so any will do.
    create = functools.partial(create_state, tx=optax.identity(), ema_decay=config.train.ema_decay)
    _, abstract = abstract_state(create, build)
    one_device = replicated(make_mesh(devices=jax.devices()[:1]))
    shardings = jax.tree.map(lambda _: one_device, abstract)
    best, mode = record.best, record.best_mode
    with Checkpoints(workdir, best=best, best_mode=mode, read_only=True, log=log) as checkpoints:
        if step is None:
            step = "newest" if checkpoints.best_step() is None else "best"
        chosen = result.restore_chosen(abstract, shardings, checkpoints, step)
    classifier = result.gather_classifier(
        chosen,
        graph=nnx.graphdef(nnx.eval_shape(build)),
        abstract=abstract["model"],
        classes=record.classes,
        preprocess=record.preprocess,
        probabilities=probabilities_of(config.loss.kind),
    )
    return classifier, chosen.step
