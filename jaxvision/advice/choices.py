"""The weights to choose from: their facts in the catalog, and the cost of their training on a device."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from jaxvision.advice.measure import Latency
from jaxvision.analysis.cost import model_info
from jaxvision.errors import UserError
from jaxvision.parallel.chips import Chip
from jaxvision.weights.catalog import Entry, lookup
from jaxvision.weights.listing import list_models

# Bytes in float32. A parameter has its value, its gradient and two moments of AdamW. Each output of a convolution or a
# linear layer takes up to five times its bytes: 3.3 to 4.6 times in the programs that XLA compiles for CPUs
# (configs/folder.py, batches of 8), 2.2 to 2.7 times in those for TPUs (docs/planning.md).
_BYTES_PER_PARAMETER = 4 * 4
_BYTES_PER_ACTIVATION = 5 * 4
# A step reads and writes the outputs of its convolutions and linear layers ten times or more: 10 times in ResNet-50's
# program for a TPU, 15 times in ViT-B's (docs/planning.md).
_PASSES = 10
# Forward and backward pass, and two operations per multiply-add.
_OPERATIONS_PER_MAC = 3 * 2


@dataclass(frozen=True)
class Trial:
    """The result of a probe on a sample of the user's images.

    Attributes:
      accuracy: cross-validated, in percent.
      standard_error: of the accuracy, in points.
      images: number of images that were held out in turn; of many classes only a fifth of the sample.
    """

    accuracy: float
    standard_error: float
    images: int

    def __str__(self) -> str:
        """Returns the accuracy and its standard error."""
        return f"{self.accuracy:.1f} ± {self.standard_error:.1f}"


@dataclass(frozen=True)
class Choice:
    """A set of weights, with the facts that a recommendation is made of.

    Attributes:
      name: such as ``"resnet50.a1_in1k"``.
      architecture: its part before the dot.
      image_size: side in pixels of the images in training, for which the numbers hold.
      top1: published ImageNet top-1 in percent.
      params: number of parameters.
      macs: multiply-adds per image.
      license: license of the weights.
      license_note: a note on weights that are not free for any use, otherwise None.
      is_offline: whether the weights are on this machine already.
      accumulate: microbatches into which a step is split so that training fits; None if it does not fit.
      training_bytes: estimated memory of a training step.
      images_per_second: upper bound of the training rate; None if the device's speed is unknown.
      training_seconds: lower bound of the duration of training; None if the rate or the number of images is unknown.
      latency: measured here; None if it was not requested.
      trial: a probe on the user's images; None if it was not requested.
    """

    name: str
    architecture: str
    image_size: int
    top1: float
    params: int
    macs: int
    license: str
    license_note: str | None
    is_offline: bool = False
    accumulate: int | None = None
    training_bytes: float = 0.0
    images_per_second: float | None = None
    training_seconds: float | None = None
    latency: Latency | None = None
    trial: Trial | None = None


def catalog_choices(*, license: str | None = None, max_params: str | float | None = None) -> list[Choice]:
    """Returns all weights with a published ImageNet accuracy that the limits allow.

    Args:
      license: a shell pattern of licenses, such as ``"apache-2.0"`` or ``"*"``. Default: all licenses that are free for
        any use.
      max_params: the most parameters, as a number or a string such as ``"30M"``. Default: no limit.

    Raises:
      UserError: an unknown license, a limit that is not a number, or limits that no weights meet.
    """
    entries = [lookup(name) for name in list_models(pretrained=True, license=license)]
    # timm's test models are trained, but only large enough for tests.
    entries = [e for e in entries if e.image_size in e.accuracy and not e.architecture.startswith("test_")]
    if license is None:
        entries = [entry for entry in entries if entry.license_note is None]
    if not entries:
        raise UserError(
            f"license: got {license!r}, expected a license of weights with a published ImageNet accuracy. Omit "
            "it to choose among all that are free for any use."
        )
    within = set(list_models(pretrained=True, max_params=max_params))
    if not any(entry.name in within for entry in entries):
        least = min(entries, key=lambda entry: entry.params or math.inf)
        raise UserError(
            f"max_params: got {max_params}, expected {least.params:,} or more: no model has fewer than {least.name}. "
            "Pass a larger number, such as 5M."
        )
    return [_choice(entry) for entry in entries if entry.name in within]


def _choice(entry: Entry) -> Choice:
    assert entry.params is not None
    return Choice(
        name=entry.name,
        architecture=entry.architecture,
        image_size=entry.image_size,
        top1=entry.accuracy[entry.image_size][0],
        params=entry.params,
        macs=entry.macs[entry.image_size],
        license=entry.license or "none stated",
        license_note=entry.license_note,
    )


@dataclass(frozen=True)
class Training:
    """How the models of a short list are trained.

    Attributes:
      chip: the device.
      batch_size: images per step.
      epochs: passes over the training images.
      images: number of training images; None if unknown.
    """

    chip: Chip
    batch_size: int
    epochs: float
    images: int | None

    def cost(self, choice: Choice) -> Choice:
        """Returns a choice with the cost of its training, in float32 with AdamW."""
        activations = _activations(choice.architecture, choice.image_size)
        rate = _images_per_second(self.chip, choice.macs, activations)
        memory = {
            parts: _BYTES_PER_PARAMETER * choice.params + _BYTES_PER_ACTIVATION * activations * self.batch_size // parts
            for parts in (1, 2, 4, 8, 16)
            if self.batch_size % parts == 0
        }
        # A device of unknown memory gets the benefit of the doubt.
        limit = self.chip.memory or math.inf
        accumulate = next((parts for parts, n in memory.items() if n <= limit), None)
        return replace(
            choice,
            accumulate=accumulate,
            training_bytes=memory[accumulate or max(memory)],
            images_per_second=rate,
            training_seconds=None if rate is None or self.images is None else self.epochs * self.images / rate,
        )


@functools.cache
def _activations(architecture: str, image_size: int) -> int:
    return model_info(architecture, image_size).total.activations


def _images_per_second(chip: Chip, macs: int, activations: int) -> float | None:
    """Returns the rate at which the chip's peak allows training, in float32; None if the peak is unknown."""
    if not chip.flops_float32:
        return None
    seconds = _OPERATIONS_PER_MAC * macs / chip.flops_float32
    if chip.bandwidth:
        seconds = max(seconds, _PASSES * 4 * activations / chip.bandwidth)
    return 1 / seconds
