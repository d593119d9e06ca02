"""Weights with the names of other libraries give these libraries' outputs, which tests/golden/foreign.json stores.

The file also stores the names and shapes of the libraries' tensors. `support.foreign` makes up their values, so neither
PyTorch nor the libraries are needed here; tests/golden/make_foreign.py updates the file.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from golden import fill
from support.foreign import write
from support.paths import TESTS
from support.weight_files import logits

from jaxvision.create import create_model

GOLDEN = json.loads((TESTS / "golden" / "foreign.json").read_text(encoding="utf-8"))
#: timm standardizes kernels with an epsilon other than Google's.
STANDARDIZED = {"google-vit-stages": 1e-4, "big-vision-bit": 2e-5}
SLOW = ("torchvision-resnext", "transformers-resnet50", "google-vit-stages", "big-vision-bit")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in GOLDEN]
)
def test_outputs_equal_those_of_the_library(name, tmp_path):
    row = GOLDEN[name]
    path = write(tmp_path / f"model{row['suffix']}", row["shapes"])
    model = create_model(row["architecture"], checkpoint_path=path, **row["options"])
    side = row["options"].get("image_size", 64)
    got = logits(model, fill.images((2, side, side, 3)))
    expected = np.asarray(row["logits"])
    assert np.abs(got[:, :8] - expected).max() <= STANDARDIZED.get(name, 1e-5) * np.abs(expected).max()
