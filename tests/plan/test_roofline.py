"""The times of a plan, against a roofline by hand."""

from __future__ import annotations

import json

from support.plans import make_plan

from jaxvision import plan


def test_roofline_by_hand() -> None:
    done = make_plan()
    assert done.fits
    assert done.total == 90
    assert (make_plan(start=95).total, make_plan(end=95).total) == (95, 95)
    assert not make_plan(end=101).fits
    # All-reduce sends 2 x 3/4 of 20, all-gather 3/4 of 40, along slower links.
    assert done.seconds == {"compute": 0.5, "memory": 2.0, "interconnect": 30 / 30 + 30 / 15}
    assert (done.step_seconds, done.seconds_without_overlap) == (3.0, 5.0)
    assert done.efficiency == (2 / 5, 2 / 3)
    assert done.mfu == 0.5 / 3
    assert make_plan(collectives=()).efficiency == (1.0, 1.0)
    assert make_plan(float32=True).seconds["compute"] == 1.0
    assert make_plan(collectives=()).seconds == {"compute": 0.5, "memory": 2.0}
    memory_only = make_plan(chip=plan.Chip("8GB", 100.0), collectives=())
    assert memory_only.step_seconds is memory_only.seconds_without_overlap is memory_only.efficiency is None
    too_large = make_plan(out_of_memory=True)
    assert not too_large.fits
    assert too_large.step_seconds is None
    assert too_large.seconds_without_overlap is too_large.efficiency is None
    assert json.loads(json.dumps(done.as_dict()))["step_seconds"] == 3.0
    assert done.flags == "--config.mesh.data=4 --config.sharding.zero1=false"
    assert make_plan(mesh={"fsdp": 8}, zero1=True).flags == (
        "--config.mesh.data=1 --config.mesh.fsdp=8 --config.sharding.zero1=true"
    )
