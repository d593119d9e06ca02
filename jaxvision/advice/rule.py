"""The rule: which case of the decision tree a situation is, and the short list that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

METRICS = ("accuracy", "speed", "size")


@dataclass(frozen=True)
class Situation:
    """What the decision tree looks at.

    Attributes:
      images: number of images; None if unknown.
      is_large: whether a TPU or a GPU with 16 GB or more trains.
      is_mobile: whether the model is used on a phone or a small board.
      metric: what counts most, one of `METRICS`; None leaves it to the tree.
    """

    images: int | None = None
    is_large: bool = False
    is_mobile: bool = False
    metric: str | None = None


@dataclass(frozen=True)
class Case:
    """One case of the decision tree.

    Attributes:
      name: what the situation is.
      applies: whether a situation is this case, unless an earlier case applies.
      picks: the architectures that it recommends, preferred first.
      macs: the most multiply-adds per image, at the size of the training images.
      reason: why, as a clause.
    """

    name: str
    applies: Callable[[Situation], bool]
    picks: tuple[str, ...]
    macs: float
    reason: str


VIT, SMALL_VIT = "vit_base_patch16_224", "vit_small_patch16_224"
_VIT_REASON = "Vision Transformers gain more from many images than convolutional networks do"

#: The decision tree: the first case that applies counts.
CASES = (
    Case(
        "best accuracy on a GPU with 16 GB or more, or on a TPU",
        lambda now: now.metric == "accuracy" and now.is_large,
        (),
        200e9,
        "you asked for accuracy, and nothing else counts",
    ),
    Case(
        "best accuracy on a small device",
        lambda now: now.metric == "accuracy",
        (),
        20e9,
        "you asked for accuracy, and nothing else counts",
    ),
    Case(
        "a phone, a small board or a small file",
        lambda now: now.metric == "size" or (now.is_mobile and now.metric is None),
        ("tf_efficientnet_lite0", "efficientnet_b0"),
        1e9,
        "EfficientNet-Lite is EfficientNet without the layers that small devices and 8-bit integers handle badly "
        "(squeeze-and-excitation, swish)",
    ),
    Case(
        "fast inference",
        lambda now: now.metric == "speed",
        ("efficientnet_b0", "efficientnet_b1"),
        1e9,
        "EfficientNet-B0 and B1 are accurate for their few multiply-adds",
    ),
    Case(
        "more than 100,000 images on a GPU with 16 GB or more, or on a TPU",
        lambda now: (now.images or 0) > 100_000 and now.is_large,
        (VIT, SMALL_VIT),
        20e9,
        _VIT_REASON,
    ),
    Case("more than 100,000 images", lambda now: (now.images or 0) > 100_000, (SMALL_VIT,), 5e9, _VIT_REASON),
    Case(
        "a GPU with 16 GB or more, or a TPU",
        lambda now: now.is_large,
        (VIT, "efficientnet_b4"),
        20e9,
        "the device has the memory and the speed for a ViT-B or an EfficientNet-B4, whose pretrained features are "
        "better than those of smaller models",
    ),
    Case(
        "learning, few images or a small device",
        lambda now: True,
        ("resnet50",),
        5e9,
        "ResNet-50 trains well with one recipe, on few images and on modest hardware",
    ),
)


def find_case(situation: Situation) -> Case:
    """Returns the case of the decision tree that a situation is.

    Example:
      >>> find_case(Situation(images=800)).picks, find_case(Situation(images=800, is_large=True)).picks[1]
      (('resnet50',), 'efficientnet_b4')
    """
    return next(case for case in CASES if case.applies(situation))


class Candidate(Protocol):
    """What the rule needs to know about a set of weights."""

    @property
    def architecture(self) -> str: ...
    @property
    def top1(self) -> float: ...
    @property
    def macs(self) -> int: ...


C = TypeVar("C", bound=Candidate)


def shortlist(candidates: Iterable[C], case: Case, *, length: int = 5) -> list[C]:
    """Returns the recommended candidate and its alternatives, best first.

    1. The picks of the case, in its order, each with its most accurate weights.
    2. The most accurate candidate within the case's multiply-adds, within half of them, a quarter, and so on, the most
       accurate first.

    An architecture appears once. Accuracy is the published ImageNet top-1.

    Args:
      candidates: the weights to choose from.
      case: the case of the decision tree.
      length: the most candidates to return.
    """
    ranked = [row for row in sorted(candidates, key=lambda row: -row.top1) if row.macs <= case.macs]
    chosen: dict[str, C] = {}

    def choose_first(rows: Iterable[C]) -> None:
        row = next((row for row in rows if row.architecture not in chosen), None)
        if row is not None:
            chosen[row.architecture] = row

    for pick in case.picks:
        choose_first(row for row in ranked if row.architecture == pick)
    picked = len(chosen)
    for halvings in range(length - picked):
        choose_first(row for row in ranked if row.macs <= case.macs / 2**halvings)
    rows = list(chosen.values())
    return rows[:picked] + sorted(rows[picked:], key=lambda row: -row.top1)
