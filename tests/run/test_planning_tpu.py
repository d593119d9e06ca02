"""The plan of a config, compiled for TPUs by libtpu."""

from __future__ import annotations

import pytest
from support.plans import digits_config

from jaxvision import plan, run
from jaxvision.parallel.mesh import mesh_text


@pytest.mark.slow
@pytest.mark.libtpu
def test_plan_for_a_pod() -> None:
    """A chip of 8 and a chip of 256 hold the same bytes. Gradients are summed over all chips."""
    given = digits_config(data={"batch_size": 8}, model={"dtype": "bfloat16"})
    options = {"num_classes": 10, "compare": False}
    results = run.plan_scaling(given, ["v5e:2x4", "v5e:16x16"], **options)
    (small,), (pod,) = (result.plans for result in results.values())
    assert (small.batch_size, pod.batch_size) == (8, 256)
    assert small.bytes["parameters"] == pod.bytes["parameters"] > 0
    assert small.flops == pod.flops
    for done, devices in ((small, 8), (pod, 256)):
        reduced = [row for row in done.collectives if row.kind == "all-reduce" and row.devices == devices]
        assert sum(row.bytes for row in reduced) >= done.bytes["parameters"] / 2  # bfloat16 gradients
        assert done.seconds_without_overlap > done.step_seconds >= done.seconds["interconnect"] > 0

    large = digits_config(data={"batch_size": 2**17}, model={"image_size": 160})
    (too_large,) = run.plan(large, topology="v5e:1x1", num_classes=10, search=False).plans
    assert too_large.out_of_memory
    assert too_large.total > too_large.chip.memory


@pytest.mark.slow
@pytest.mark.libtpu
def test_meshes_of_a_vit() -> None:
    """What a device of each mesh holds and sends, for a ViT whose blocks are a loop."""
    given = digits_config(
        model={"name": "test_vit", "image_size": 160, "dtype": "bfloat16"},
        train={"scan": True, "ema_decay": 0.99},
        sharding={"min_size": 1},
    )
    result = run.plan(given, topology="v5e:2x4", num_classes=8, search=False)
    plans = {mesh_text(done.mesh, zero1=done.zero1): done for done in result.plans}
    assert plans.keys() == {"data=8", "data=8, ZeRO-1", "fsdp=8"}
    assert result.plans[0] is min(result.plans, key=lambda done: done.seconds_without_overlap)
    data, zero1, fsdp = plans["data=8"], plans["data=8, ZeRO-1"], plans["fsdp=8"]
    whole = data.bytes["parameters"]
    assert zero1.bytes["parameters"] == whole > 7 * fsdp.bytes["parameters"]
    for kind in ("optimizer", "ema"):
        assert data.bytes[kind] > 7 * zero1.bytes[kind] == 7 * fsdp.bytes[kind]

    assert fsdp.bytes["activations and gradients"] < data.bytes["activations and gradients"]

    def gathered(done: plan.Plan) -> float:
        return sum(row.bytes for row in done.collectives if row.kind == "all-gather")

    assert gathered(data) == 0
    assert 0.9 * whole < gathered(zero1) < 1.1 * whole  # the updated parameters, in float32
    assert (
        0.75 * whole < gathered(fsdp) < 2.1 * whole
    )  # for each pass, in bfloat16 where the compiler casts before it sends


@pytest.mark.libtpu
def test_quick_compiles_the_same_step_with_less_effort() -> None:
    """The name of XLA's option for the effort level has changed between versions of JAX."""
    given = digits_config(data={"batch_size": 64})
    best, quick = (
        run.plan(given, topology="v5e:1x1", num_classes=10, search=False, quick=quick).plans[0]
        for quick in (False, True)
    )
    assert quick.flops == best.flops
    assert quick.bytes["parameters"] == best.bytes["parameters"]
    assert quick.bytes_accessed > 1.1 * best.bytes_accessed


@pytest.mark.slow
@pytest.mark.libtpu
def test_remat_on_a_tpu() -> None:
    """XLA undoes rematerialization on CPUs but not on TPUs. For a loop of blocks, "products" is the default."""
    arenas = {}
    for remat in (None, "products", "nothing"):
        given = digits_config(
            data={"batch_size": 64},
            model={"name": "test_vit", "image_size": 160, "dtype": "bfloat16", "depth": 12},
            train={"remat": remat, "scan": True},
        )
        (done,) = run.plan(given, topology="v5e:1x1", num_classes=10, search=False).plans
        arenas[remat] = done.bytes["activations and gradients"]
    assert arenas["nothing"] < 0.7 * arenas["products"]
    assert arenas["products"] == arenas[None]
