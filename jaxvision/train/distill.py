"""Distillation: the student's loss also compares it with a frozen teacher, which sees the same augmented images."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxvision.augment.preprocess import Preprocess
from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models.base import Model
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.mode import eval_view
from jaxvision.train.blocks import Blocks
from jaxvision.train.loss import Loss
from jaxvision.train.state import gathered

#: What the student learns from the teacher.
KINDS = {
    "soft": "the teacher's probabilities at a temperature",
    "hard": "the class that the teacher predicts",
    "features": "the teacher's pooled features",
}


@dataclass(frozen=True, eq=False)
class Distillation:
    """A frozen teacher, and how a student learns from it. The teacher's arrays are arguments of the train step.

    Args:
      graph: structure of the teacher, from ``nnx.split``.
      shardings: of the arrays that the step takes, from `jaxvision.parallel.rules.state_shardings`.
      student: normalization of the images that the student gets.
      teacher: size and normalization of the images that the teacher takes. The device converts one to the other.
      kind: a key of `KINDS`. ``"soft"``: the KL divergence of the softmaxes at a temperature, times its square (Hinton
        et al., https://arxiv.org/abs/1503.02531). ``"hard"``: the cross entropy with the teacher's class (Touvron et
        al., https://arxiv.org/abs/2012.12877). ``"features"``: the mean squared error of the pooled features, after a
        linear projection of the student's (`add_projection`).
      weight: share w of the distillation in the loss, in [0, 1]: (1 - w) * loss + w * distillation.
      temperature: divides the logits of both, for ``"soft"``.
      blocks: how the teacher's blocks run, and where its parameters are gathered. None: on one device.
      cached: the step takes ``{"outputs": [n, d]}``, the results of `outputs` for each image of the dataset, instead of
        the teacher's arrays.

    Raises:
      UserError: `kind` is unknown, or an option is out of range.
    """

    graph: nnx.GraphDef
    shardings: Any
    student: Preprocess
    teacher: Preprocess
    kind: str = "soft"
    weight: float = 0.5
    temperature: float = 4.0
    blocks: Blocks | None = None
    cached: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name_error("teacher.kind", self.kind, KINDS)
        if not 0 <= self.weight <= 1:
            raise UserError(f"teacher.weight: got {self.weight}, expected a share of the loss, from 0 to 1.")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"teacher.temperature: got {self.temperature}, expected a number above 0, such as 4.")

    def __call__(
        self,
        model: Model,
        images: jax.Array,
        targets: jax.Array,
        *,
        loss: Loss,
        teacher: Any,
        index: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the student's logits [b, classes] and the losses of each image [b].

        A student with several heads learns the targets with its first and from the teacher with its last, as DeiT does.

        Args:
          model: the student, in training.
          images: float [b, h, w, c], normalized for the student.
          targets: labels [b] or probabilities [b, classes].
          loss: of the student's logits and the targets.
          teacher: the arrays of the teacher, or its outputs.
          index: numbers [b] of the images in their dataset, for a teacher whose outputs are cached.

        Returns:
          (logits, losses): losses has ``loss``, which is minimized, and its parts ``task_loss`` and
          ``distillation_loss``.
        """
        features = model.forward_features(images)
        heads = model.forward_heads(features)
        task = loss(heads[0], targets)
        if self.kind == "features":
            student = cast(Any, model).distill_projection(model.forward_head(features, pre_logits=True))
        else:
            student = heads[-1]
        if self.cached:
            wanted = teacher["outputs"][index]
        else:
            wanted = self.outputs(teacher, convert_images(images, self.student, self.teacher))
        distillation = self._compare(student.astype(jnp.float32), wanted)
        total = (1 - self.weight) * task + self.weight * distillation
        losses = {"loss": total, "task_loss": task, "distillation_loss": distillation}
        return sum(heads[1:], heads[0]) / len(heads), losses

    def outputs(self, teacher: nnx.State, images: jax.Array) -> jax.Array:
        """Returns the teacher's logits [b, classes], or its pooled features [b, d]; float32.

        Args:
          teacher: the arrays of the teacher.
          images: float [b, h, w, c], normalized for the teacher.
        """
        if self.blocks is not None:
            teacher = self.blocks.gather(teacher)
        model = eval_view(nnx.merge(self.graph, teacher))
        if self.blocks is not None:
            model = nnx.view(model, run_blocks=self.blocks, raise_if_not_found=False)
        features = model.forward_features(images)
        return model.forward_head(features, pre_logits=self.kind == "features").astype(jnp.float32)

    def _compare(self, student: jax.Array, teacher: jax.Array) -> jax.Array:
        """Returns the distillation loss of each image [b]."""
        if self.kind == "features":
            return jnp.square(student - teacher).mean(-1)
        if self.kind == "hard":
            return optax.softmax_cross_entropy_with_integer_labels(student, teacher.argmax(-1))
        t = self.temperature
        logs = jax.nn.log_softmax(student / t), jax.nn.log_softmax(teacher / t)
        return t**2 * optax.losses.kl_divergence_with_log_targets(*logs)


def convert_images(images: jax.Array, given: Preprocess, wanted: Preprocess) -> jax.Array:
    """Returns normalized images with another size and normalization.

    Args:
      images: float [b, h, w, c].
      given: their normalization.
      wanted: the size and the normalization of the result.

    >>> half = Preprocess(image_size=2, mean=(0.5,), std=(0.5,))
    >>> convert_images(jnp.ones((1, 4, 4, 1)), half, Preprocess(image_size=2, mean=(0.0,), std=(1.0,))).ravel()
    Array([1., 1., 1., 1.], dtype=float32)
    """
    b, *size, c = images.shape
    if size != [wanted.image_size] * 2:
        method = "bilinear" if wanted.interpolation == "bilinear" else "bicubic"
        images = jax.image.resize(images, (b, wanted.image_size, wanted.image_size, c), method)
    if (given.mean, given.std) == (wanted.mean, wanted.std):
        return images
    pairs = (given.mean, given.std, wanted.mean, wanted.std)
    mean, std, new_mean, new_std = (jnp.asarray(x, images.dtype).reshape(1, 1, 1, c) for x in pairs)
    return (images * std + (mean - new_mean)) / new_std


def add_projection(model: Model, features: int, *, rngs: nnx.Rngs) -> Model:
    """Adds the layer that projects the student's pooled features to the teacher's, in place; returns the model.

    The layer trains like the head, and is part of checkpoints. `without_projection` removes it before the export.

    Args:
      model: the student.
      features: width of the teacher's pooled features.
      rngs: stream ``params``.
    """
    cast(Any, model).distill_projection = linear_head(model.num_features, features, rngs=rngs)
    return model


def without_projection(model: Model) -> Model:
    """Returns a model without the layer of `add_projection`, in place. It need not have one."""
    if hasattr(model, "distill_projection"):
        del cast(Any, model).distill_projection
    return model


def weights_checksum(state: nnx.State) -> int:
    """Returns a checksum of the parameters and statistics of a model, independent of their sharding.

    All processes must call it.

    >>> weights_checksum(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))) > 0
    True
    """
    checksum = 0
    for x in jax.tree.leaves(nnx.filter_state(state, nnx.Not(nnx.RngState))):
        values = np.asarray(x if x.is_fully_addressable else gathered(x))
        checksum = zlib.crc32(np.ascontiguousarray(values).tobytes(), checksum)
    return checksum
