"""The decision tree and the ranking, on rows that the tests define."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from jaxvision.advice.rule import Case, Situation, find_case, shortlist


class Row(NamedTuple):
    architecture: str
    top1: float
    macs: int


# "Learning or few images: ResNet-50. More than 100,000 images: a ViT. Fast inference: EfficientNet-B0 or B1. A good
# GPU: ViT-B or EfficientNet-B4. Mobile: EfficientNet-Lite or B0."
@pytest.mark.parametrize(
    ("situation", "picks"),
    [
        (Situation(), ["resnet50"]),
        (Situation(images=800), ["resnet50"]),
        (Situation(images=100_000), ["resnet50"]),
        (Situation(images=100_001), ["vit_small_patch16_224"]),
        (Situation(images=100_001, is_large=True), ["vit_base_patch16_224", "vit_small_patch16_224"]),
        (Situation(images=800, is_large=True), ["vit_base_patch16_224", "efficientnet_b4"]),
        (Situation(images=100_000, is_large=True), ["vit_base_patch16_224", "efficientnet_b4"]),
        (Situation(images=800, metric="speed"), ["efficientnet_b0", "efficientnet_b1"]),
        (Situation(images=500_000, is_large=True, metric="speed"), ["efficientnet_b0", "efficientnet_b1"]),
        (Situation(images=800, is_mobile=True), ["tf_efficientnet_lite0", "efficientnet_b0"]),
        (Situation(images=500_000, is_large=True, is_mobile=True), ["tf_efficientnet_lite0", "efficientnet_b0"]),
        (Situation(is_large=True, metric="size"), ["tf_efficientnet_lite0", "efficientnet_b0"]),
        (Situation(is_mobile=True, metric="speed"), ["efficientnet_b0", "efficientnet_b1"]),
        (Situation(images=800, is_large=True, metric="accuracy"), []),
    ],
)
def test_the_tree_names_the_models_of_the_guide(situation: Situation, picks: list[str]) -> None:
    assert list(find_case(situation).picks) == picks


CASE = Case("x", lambda now: True, ("second", "first"), 100, "because")
ROWS = [
    Row("first", 70, 90),
    Row("second", 60, 95),
    Row("second", 65, 80),  # other weights of the same architecture
    Row("best", 90, 100),
    Row("too large", 95, 101),
    Row("half", 80, 50),
    Row("worse than half", 75, 49),
    Row("quarter", 50, 20),
]


def names(rows: list[Row]) -> list[str]:
    return [row.architecture for row in rows]


def test_picks_come_first_then_the_best_of_each_cost() -> None:
    rows = shortlist(ROWS, CASE)
    assert names(rows) == ["second", "first", "best", "half", "quarter"]
    assert rows[0].top1 == 65
    assert names(shortlist(ROWS, CASE, length=3)) == ["second", "first", "best"]


def test_candidates_that_are_missing() -> None:
    assert names(shortlist(ROWS[5:], CASE)) == ["half", "worse than half", "quarter"]
    assert names(shortlist(ROWS[:1], CASE)) == ["first"]
    assert shortlist([], CASE) == []
