"""Weights of other libraries give the outputs of these libraries, which are computed here."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from golden import fill
from support.foreign_models import CASES, reference
from support.weight_files import logits

from jaxvision.create import create_model

pytestmark = pytest.mark.timm


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_those_of_the_library(name, tmp_path):
    package = "open_clip" if name.startswith("open-clip") else name.partition("-")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install '.[reference]'")
    case = CASES[name]
    expected = reference(case, tmp_path / "model.safetensors")
    # The folder is the one that `save_pretrained` of transformers writes.
    model = create_model(case.architecture, checkpoint_path=tmp_path, **case.options)
    got = logits(model, fill.images((2, *[case.options.get("image_size", 64)] * 2, 3)))
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_teacher_of_a_checkpoint_of_dino(tmp_path, caplog):
    """DINO saves the networks that it trains with prefixes and a head; the teacher is the average of the student."""
    import torch
    from support.weight_files import assert_loads, torch_state

    networks = {}
    for seed, network in enumerate(("teacher", "student")):
        state = {f"module.backbone.{name}": x for name, x in torch_state("test_vit", seed).items()}
        networks[network] = state | {"module.head.mlp.0.weight": torch.ones(2, 2)}
    torch.save({"student": networks["student"], "teacher": networks["teacher"], "epoch": 3}, tmp_path / "dino.pth")
    assert_loads(tmp_path / "dino.pth", 0, "test_vit")
    assert "loading the entry 'teacher', not 'student'" in caplog.text
