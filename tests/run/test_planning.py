"""The plan of a config, compiled for the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict
from support import tiny
from support.plans import DIGITS, digits_config

from jaxvision import plan, run
from jaxvision.analysis.cost import model_info
from jaxvision.augment.preprocess import Preprocess
from jaxvision.parallel import chips
from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import STATE
from jaxvision.run import program as run_program
from jaxvision.train.partial import parameter_counts


def test_plan_allocates_nothing() -> None:
    before = {id(x) for x in jax.live_arrays()}
    given = digits_config(train={"ema_decay": 0.99, "accumulate": 3})
    result = run.plan(given, device="h100", num_classes=10, channels=1, search=False)
    left = [x.nbytes for x in jax.live_arrays() if id(x) not in before]
    assert sum(left) < 10_000, left

    (done,) = result.plans
    model = run_program.build_model(run.complete(digits_config()), 10, 1, Preprocess(image_size=32), weights=False)
    parameters, _ = parameter_counts(tiny.nnx.state(model))
    statistics = sum(x.size for x in jax.tree.leaves(tiny.nnx.state(model, tiny.nnx.BatchStat)))
    assert done.bytes["parameters"] == 4 * parameters
    assert done.bytes["statistics"] == 4 * statistics
    assert done.bytes["ema"] == 4 * (parameters + statistics)
    assert 0 <= done.bytes["optimizer"] - 4 * 2 * parameters < 32  # two moments and a few counters
    largest = 4 * 3 * 3 * 192 * 96  # layer4.0.conv1.kernel
    assert done.start == sum(done.bytes[kind] for kind in STATE) + largest
    assert done.end == done.bytes["ema"] + largest  # instead of the weights that it averages
    assert (result.requested_batch_size, done.batch_size) == (16, 18)  # three microbatches
    assert done.bytes["batch"] == 18 * (32 * 32 + 4 + 4 + 1)
    assert done.fits
    # The microbatches are a loop. XLA would count one iteration; the plan counts the operations of all 18 images.
    forward = 2 * model_info(model, image_size=32).total.multiply_adds
    assert 2.4 * 18 * forward < done.flops < 3.2 * 18 * forward
    assert done.seconds.keys() == {"compute", "memory"}
    assert result.largest is None


def lower(step: Any, given: ConfigDict) -> str:
    mesh = make_mesh({"data": 1}, devices=jax.devices()[:1])
    program = run_program.train_program(run.complete(given), mesh, **DIGITS)
    return step.trace(program.abstract, program.batch).lower().as_text()


def test_plan_and_train_compile_the_same_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Any] = []
    build = run_program.make_train_step

    def record(*args: Any, **options: Any) -> Any:
        steps.append(build(*args, **options))
        return steps[-1]

    def record_and_stop(*args: Any, **options: Any) -> Any:
        record(*args, **options)
        raise InterruptedError  # before the run initializes anything

    given = digits_config(train={"steps": 1}, mesh={"data": 1}, data={"batch_size": 128}, augment={"flip": 0.5})
    monkeypatch.setattr(run_program, "make_train_step", record)
    run.plan(given, device="8GB", num_classes=10, channels=1, stored=8, search=False)
    monkeypatch.setattr(run_program, "make_train_step", record_and_stop)
    with pytest.raises(InterruptedError):
        run.train(given, tmp_path)
    monkeypatch.undo()
    *_, planned, trained = steps
    assert lower(planned, given) == lower(trained, given)


@pytest.mark.slow
def test_recomputed_operations_are_not_model_flops() -> None:
    configs = [digits_config(train={"remat": remat}) for remat in (None, "nothing")]
    once, twice = (run.plan(given, device="h100", num_classes=10, search=False).plans[0] for given in configs)
    assert once.model_flops_fraction == 1
    assert twice.flops > 1.1 * once.flops
    assert twice.flops * twice.model_flops_fraction == pytest.approx(once.flops)


def test_assumptions_mention_quick() -> None:
    done = plan.Plan(chips.TPUS["v5e"], {"data": 1}, False, 8, {}, 1e12, bytes_accessed=1e9)
    facts = {"topology": "v5e:1x1", "num_classes": 10, "stored": None, "compiled_for": "tpu", "is_present": False}
    assert not [line for line in plan.describe_assumptions(done, **facts) if "--quick" in line]
    assert [line for line in plan.describe_assumptions(done, quick=True, **facts) if "--quick" in line]
