"""Every architecture computes what timm computes: logits of real timm, committed in tests/golden/golden.json.

The weights are made from a seed and their names (`golden.fill`), written to a file in timm's form and read by
`load_timm`, so PyTorch is needed only to make the numbers anew (tests/golden/make_golden.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import fill
from kinds import KINDS
from safetensors.numpy import save_file

from jaxvision.models import registry
from jaxvision.weights import catalog, timm

GOLDEN = json.loads((Path(__file__).parent / "golden" / "golden.json").read_text(encoding="utf-8"))["golden"]


def cases() -> list:
    found = []
    for case in GOLDEN:
        architecture, size = case.split()
        quick = architecture in KINDS and int(size) <= 128
        found.append(
            pytest.param(architecture, int(size), id=case.replace(" ", "-"), marks=[] if quick else [pytest.mark.slow])
        )
    return found


def test_every_architecture_has_golden_logits():
    assert {case.split()[0] for case in GOLDEN} == set(registry.architectures())


@pytest.mark.parametrize(("architecture", "size"), cases())
def test_logits_are_timms(architecture: str, size: int, tmp_path: Path):
    row = GOLDEN[f"{architecture} {size}"]
    model = registry.build_abstract(architecture, image_size=size, num_classes=1000, **row.get("options", {}))
    entry = catalog.lookup(architecture)
    assert (entry.classifier, entry.first_conv) == (model.classifier_names, model.first_conv)
    tensors = {}
    for name, leaf in timm.weights(model).items():
        key = timm.timm_name(name)
        tensors[key] = fill.tensor(key, timm.timm_shape(name, leaf.shape), gain=row["gain"])
    save_file(tensors, tmp_path / "model.safetensors")
    model = timm.load_timm(model, tmp_path / "model.safetensors", head="load")

    graph, state = nnx.split(model)
    images = fill.images((2, size, size, 3))
    logits = np.asarray(jax.jit(lambda state, images: nnx.merge(graph, state)(images))(state, jnp.asarray(images)))

    expected = np.asarray(row["logits"])
    error = np.abs(logits[:, : expected.shape[1]] - expected).max() / row["std"]
    assert error < 1e-4
    np.testing.assert_allclose(np.linalg.norm(logits, axis=1), row["norm"], rtol=2e-5)
