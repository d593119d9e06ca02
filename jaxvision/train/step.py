"""The train step: one function, compiled once, for one device or many."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvision.errors import UserError
from jaxvision.models.layers.materialize import materialize
from jaxvision.models.layers.mode import train_view
from jaxvision.parallel.mesh import batch_axes, batch_sharding, replicated
from jaxvision.platform import compiled_for
from jaxvision.train.blocks import Blocks
from jaxvision.train.distill import Distillation
from jaxvision.train.loss import Loss, are_labels, mean_weights, weighted_sum, zero_padding
from jaxvision.train.schedule import as_schedule

Batch = Mapping[str, Any]
#: (batch, step) -> (images float [b, h, w, c], normalized; targets [b] or [b, classes]).
Prepare = Callable[[Batch, jax.Array], tuple[jax.Array, jax.Array]]


def make_train_step(
    graph: nnx.GraphDef,
    *,
    mesh: Mesh,
    shardings: Any,
    loss: Loss,
    prepare: Prepare,
    learning_rate: float | optax.Schedule,
    accumulate: int = 1,
    blocks: Blocks | None = None,
    batch_norm_group: int | None = None,
    distillation: Distillation | None = None,
) -> Callable[..., tuple[nnx.State, dict[str, jax.Array]]]:
    """Returns the function (state, batch) -> (state, metrics); with a teacher (state, batch, teacher).

    It is compiled once, at the first call. It donates its input state: do not use that state afterwards.

    Args:
      graph: structure of the `TrainState`, from `abstract_state`. The parameters that its optimizer was created for
        train.
      mesh: the devices. The batch is split over its batch axes. BatchNorm normalizes over the whole batch on any number
        of devices, because the compiler splits a program that is written for the whole batch.
      shardings: shardings of the state, from `state_shardings`.
      loss: from `make_loss`.
      prepare: from the batch of the pipeline and the number of updates so far to images and targets, such as
        augmentation. It runs inside the step. Key random numbers by (seed, step, index of the image), so that a resumed
        run equals one that was never interrupted.
      learning_rate: that of the optimizer, for the metrics.
      accumulate: microbatches per step. The step needs the memory of one and computes the loss and the gradient of the
        whole batch, summed in float32 at least, except that BatchNorm normalizes within a microbatch and updates its
        statistics once for each.
      blocks: how the model's blocks run, and where its parameters are gathered. None: the model runs its blocks itself.
      batch_norm_group: number of consecutive images that BatchNorm normalizes together; its running statistics are
        updated with the mean over the groups. None: the whole batch.
      distillation: the teacher from which the model also learns. The step then takes the teacher's arrays as its third
        argument and does not change them.

    Returns:
      The step. Its batch has ``"mask"`` [b], False for padding, and what `prepare` reads. Its metrics are scalars,
      replicated: ``loss`` (mean over the images that are not padding), ``grad_norm`` (before clipping),
      ``learning_rate``, ``finite`` and, if targets are labels, ``accuracy``. With a teacher also the parts of the loss,
      ``task_loss`` and ``distillation_loss``.

      If the loss or the gradient is not finite, ``finite`` is False and the returned state equals the input bit for
      bit. `check_finite` turns that into an error.

    Example:
      >>> from functools import partial
      >>> from jaxvision.parallel.mesh import make_mesh
      >>> from jaxvision.parallel.rules import state_shardings
      >>> from jaxvision.train.loss import make_loss
      >>> from jaxvision.train.state import abstract_state, create_state, initialize
      >>> mesh, tx = make_mesh(), optax.sgd(0.1)
      >>> create, model = partial(create_state, tx=tx), lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> graph, abstract = abstract_state(create, model)
      >>> shardings = state_shardings(abstract, mesh)
      >>> state = initialize(create, model, shardings)
      >>> step = make_train_step(graph, mesh=mesh, shardings=shardings, loss=make_loss(), learning_rate=0.1,
      ...                        prepare=lambda batch, step: (batch["image"], batch["label"]))
      >>> batch = {"image": jnp.ones((8, 4)), "label": jnp.arange(8) % 3, "mask": jnp.ones(8, bool)}
      >>> state, metrics = step(state, batch)
      >>> sorted(metrics)
      ['accuracy', 'finite', 'grad_norm', 'learning_rate', 'loss']
    """
    schedule = as_schedule(learning_rate)

    def train_step(state: nnx.State, batch: Batch, teacher: Any = None) -> tuple[nnx.State, dict[str, jax.Array]]:
        with compiled_for(mesh):
            return update(state, batch, teacher)

    def update(state: nnx.State, batch: Batch, teacher: Any) -> tuple[nnx.State, dict[str, jax.Array]]:
        ts = nnx.merge(graph, state, copy=True)  # `state` stays as it is, for a step that is not finite
        updates_made = ts.optimizer.step[...]
        images, targets = prepare(batch, updates_made)
        examples = (images, zero_padding(targets, batch["mask"]), mean_weights(batch["mask"]), batch.get("index"))

        trainable = ts.optimizer.wrt
        training = train_view(ts.model, batch_norm_group=batch_norm_group)
        if blocks is not None:
            training = nnx.view(training, run_blocks=blocks, raise_if_not_found=False)
        structure, params, rest = nnx.split(training, trainable, ...)  # type: ignore[misc]

        def objective(params: nnx.State, rest: nnx.State, examples: tuple[Any, ...]) -> tuple[jax.Array, Any]:
            images, targets, weights, index = examples
            if blocks is not None:
                params, rest = blocks.gather(params), blocks.gather(rest)
            model = nnx.merge(structure, params, rest, copy=True)
            if distillation is None:
                logits = model(images)
                losses = {"loss": loss(logits, targets)}
            else:
                logits, losses = distillation(model, images, targets, loss=loss, teacher=teacher, index=index)
            sums = {name: weighted_sum(values, weights) for name, values in losses.items()}
            if are_labels(targets):
                sums["accuracy"] = weighted_sum((logits.argmax(-1) == targets).astype(jnp.float32), weights)
            return sums["loss"], (sums, nnx.state(model, nnx.Not(trainable)))

        gradient = jax.grad(objective, has_aux=True)
        if accumulate == 1:
            grads, (sums, rest) = gradient(params, rest, examples)
        else:

            def add(carry: tuple[Any, Any], examples: Any) -> tuple[tuple[Any, Any], Any]:
                total, rest = carry
                grads, (sums, rest) = gradient(params, rest, examples)
                return (jax.tree.map(lambda total, new: total + new.astype(total.dtype), total, grads), rest), sums

            # In bfloat16 a sum would stop growing when its parts are 256 times smaller.
            zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.promote_types(p.dtype, jnp.float32)), params)
            (total, rest), sums = jax.lax.scan(add, (zeros, rest), microbatches(examples, accumulate, mesh))
            grads = jax.tree.map(lambda total, p: total.astype(p.dtype), total, params)
            sums = jax.tree.map(jnp.sum, sums)

        grads = materialize(grads)  # read by the optimizer, its clipping and the norm below
        nnx.update(ts.model, rest)
        ts.optimizer.update(ts.model, grads)
        if ts.ema is not None:
            ts.ema.update(ts.model, updates_made)

        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(grad_norm)
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), nnx.state(ts), state)
        rate = jnp.asarray(schedule(updates_made), jnp.float32)
        return new_state, {**sums, "grad_norm": grad_norm, "learning_rate": rate, "finite": finite}

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh), *([distillation.shardings] if distillation else [])),
        out_shardings=(shardings, replicated(mesh)),
    )


def microbatches(examples: Any, n: int, mesh: Mesh) -> Any:
    """Returns arrays [b, ...] as [n, b / n, ...], for `jax.lax.scan`.

    Microbatch i has the examples i, i + n, i + 2n, ..., an equal part of each device's share, so that no example moves
    between devices.

    Args:
      examples: a pytree of arrays [b, ...].
      n: number of microbatches; must divide b.
      mesh: the devices.

    Raises:
      UserError: n does not divide b.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, batch_axes(mesh)))

    def split(x: jax.Array) -> jax.Array:
        b, *rest = x.shape
        if b % n:
            raise UserError(f"train.accumulate: got {n}, expected a divisor of the batch size {b}.")
        return jax.lax.with_sharding_constraint(x.reshape(b // n, n, *rest).swapaxes(0, 1), sharding)

    return jax.tree.map(split, examples)


def check_finite(metrics: Mapping[str, Any], step: int) -> None:
    """Raises if the loss or the gradient of a step is not finite.

    Such a step does not change the state. Reading the metrics waits for the step to finish, so check the metrics of
    each step some steps later, and before each checkpoint.

    Args:
      metrics: from the train step, on the device or the host.
      step: number of that step, for the message.

    Raises:
      UserError: the loss or the gradient is not finite; the message names the step.

    Example:
      >>> check_finite({"loss": float("nan"), "grad_norm": 1.0, "learning_rate": 0.1, "finite": False}, 17)
      Traceback (most recent call last):
      ...
      jaxvision.errors.UserError: step 17: the loss is nan (gradient norm 1, learning rate 0.1). ...
    """
    if bool(metrics["finite"]):
        return
    loss, norm, rate = (float(metrics[key]) for key in ("loss", "grad_norm", "learning_rate"))
    if math.isfinite(loss):
        what = f"the gradient norm is {norm:g} (loss {loss:g}, learning rate {rate:g})"
    else:
        what = f"the loss is {loss:g} (gradient norm {norm:g}, learning rate {rate:g})"
    raise UserError(
        f"step {step}: {what}. This step was not saved. Lower optimizer.learning_rate, raise schedule.warmup_epochs or "
        f"set optimizer.clip_norm=1.0, and check that all labels are below num_classes."
    )
