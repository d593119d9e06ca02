"""The train step of a config, lowered and compiled without hardware and without running it."""

from __future__ import annotations

import contextlib
import math
import re

import jax
import pytest
from support.plans import DIGITS, digits_config

from jaxvision import plan, run
from jaxvision.parallel.mesh import make_mesh
from jaxvision.run import program as run_program
from jaxvision.train import step as train_step


def test_fsdp_gathers_for_each_pass() -> None:
    """Parameters are gathered twice. Otherwise each device would hold the whole model between the two passes."""
    mesh = make_mesh({"fsdp": 8})
    given = digits_config(model={"name": "test_vit", "image_size": 32}, train={"scan": True}, sharding={"min_size": 1})
    full = run.complete(given)
    program = run_program.train_program(full, mesh, **DIGITS)
    text = program.step.trace(program.abstract, program.batch).lower().compile().as_text()
    blocks = program.abstract["model"]["blocks"]
    split = sum(x.size * 4 for x in jax.tree.leaves(blocks) if x.size % 8 == 0 and x.size > 8)
    whole = sum(x.size * 4 for x in jax.tree.leaves(program.abstract["model"]))
    (gathered,) = [row for row in plan.count_collectives(text, mesh) if row.kind == "all-gather"]
    assert split > whole / 2
    assert 2 * split < gathered.bytes < 2 * whole


@pytest.mark.parametrize("axes", [{"data": 1}, {"fsdp": 8}])
def test_the_step_is_traced_for_the_platform_of_its_mesh(axes: dict) -> None:
    """The branch for another platform would hold zeros in place of its intermediate values."""
    mesh = make_mesh(axes, devices=jax.devices()[: math.prod(axes.values())])
    full = run.complete(digits_config(model={"name": "test_vit", "image_size": 32}))
    program = run_program.train_program(full, mesh, **DIGITS)
    assert "platform_index" not in str(program.step.trace(program.abstract, program.batch).jaxpr)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_train_step_lowers_for_accelerators(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of each family lowers for GPUs and TPUs on a CPU-only machine, with XLA's own depthwise convolutions."""
    # The step is traced for the platform of its mesh, which is a CPU here: trace it for all of them.
    monkeypatch.setattr(train_step, "compiled_for", lambda mesh: contextlib.nullcontext())
    mesh = make_mesh({"data": 1}, devices=jax.devices()[:1])
    config = digits_config(model={"name": name, "image_size": 32, "dtype": "bfloat16"}, train={"ema_decay": 0.99})
    program = run_program.train_program(run.complete(config), mesh, **DIGITS)
    traced = program.step.trace(program.abstract, program.batch)
    depthwise = {}
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        groups = [int(n) for n in re.findall(r"feature_group_count = (\d+)", text)]
        depthwise[platform] = sum(n > 1 for n in groups)
    assert depthwise["cuda"] == depthwise["tpu"]
    assert (depthwise["tpu"] > 0) == (name == "test_efficientnet")
    assert depthwise["cpu"] == 0
