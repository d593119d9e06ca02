"""Checkpoints: a resumed run has bit-identical results, and the newest and the best are kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import tiny
from support.damage import SHARDINGS, STATE, folder, save

from jaxvision.checkpoint import Checkpoints, saved_steps
from jaxvision.errors import UserError
from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import largest_axis


def run(**options: object) -> tiny.Run:
    return tiny.Run(tiny.build(dropout=0.3), optax.adam(0.01), create={"ema_decay": 0.9}, **options)


def assert_identical(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name


def test_saving_does_not_consume_the_preemption_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX reports a SIGTERM to one caller only, which must be the run."""
    asked = []
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", asked.append)
    save(tmp_path, 1, 2)
    assert not asked


def test_six_steps_equal_three_and_three(tmp_path: Path) -> None:
    """Parameters, BatchNorm, dropout keys, moments and average are equal bytes after a restart."""
    straight = run()
    with Checkpoints(tmp_path) as checkpoints:
        straight.train(3)
        checkpoints.save(3, straight.state, position={"epoch": 1, "seed": 5}, metrics={"top1": 0.5})
        straight.train(3, start=3)  # at once, so the memory of the state that is being written is reused

    resumed = run()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(resumed.abstract, resumed.shardings)
    assert (restored.step, restored.position, restored.metrics) == (3, {"epoch": 1, "seed": 5}, {"top1": 0.5})
    assert jax.tree.structure(restored.state) == jax.tree.structure(resumed.state)
    resumed.state = restored.state
    resumed.train(3, start=3)
    assert_identical(straight.arrays(), resumed.arrays())


def test_resumes_on_another_number_of_devices(tmp_path: Path) -> None:
    one = run()
    one.train(2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, one.state, position={})
    table = [(r".*", largest_axis("data", make_mesh(), min_size=1))]
    eight = run(devices=8, table=table)
    with Checkpoints(tmp_path) as checkpoints:
        eight.state = checkpoints.restore(eight.abstract, eight.shardings).state
    assert_identical(one.arrays(), eight.arrays())
    for x, sharding in zip(jax.tree.leaves(eight.state), jax.tree.leaves(eight.shardings), strict=True):
        assert x.sharding == sharding
    eight.train(1, start=2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, eight.state, position={})
        one.state = checkpoints.restore(one.abstract, one.shardings).state
    assert_identical(one.arrays(), eight.arrays())


def test_a_part_is_restored_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    part, shardings = {"model": STATE["model"]}, {"model": SHARDINGS["model"]}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore(part, shardings)
    assert restored.state.keys() == {"model"}
    np.testing.assert_array_equal(restored.state["model"]["kernel"], STATE["model"]["kernel"] + 1)


def test_leaves_are_restored_alone(tmp_path: Path) -> None:
    state = {"model": {"kernel": jnp.ones(3), "bias": jnp.zeros(2)}}
    leaf = {"model": {"bias": state["model"]["bias"]}}
    shardings = jax.tree.map(lambda x: x.sharding, leaf)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, position={})
        with pytest.raises(UserError, match=r"only in it: model\.kernel"):
            checkpoints.restore(leaf, shardings)
        restored = checkpoints.restore(leaf, shardings, subset=True)
    assert jax.tree.structure(restored.state) == jax.tree.structure(leaf)


@pytest.mark.parametrize(("mode", "kept", "best"), [("max", [20, 50, 60], 20), ("min", [40, 50, 60], 40)])
def test_keeps_the_newest_and_the_best(tmp_path: Path, mode: str, kept: list[int], best: int) -> None:
    top1 = {10: 0.2, 20: 0.9, 30: float("nan"), 40: 0.1, 50: 0.5}
    with Checkpoints(tmp_path, keep=2, best_mode=mode) as checkpoints:
        for step in (10, 20, 30, 40, 50, 60):
            metrics = {"top1": top1[step], "loss": 1.0} if step in top1 else None
            checkpoints.save(step, jax.tree.map(lambda x: x + step, STATE), position={}, metrics=metrics)  # noqa: B023
        checkpoints.wait()
        assert checkpoints.steps() == saved_steps(tmp_path) == kept
    with Checkpoints(tmp_path, keep=2, best_mode=mode) as checkpoints:  # read from disk after a restart
        assert (checkpoints.steps(), checkpoints.best_step()) == (kept, best)
        restored = checkpoints.restore(STATE, SHARDINGS, step="best")
        assert restored.step == best
        assert restored.state["optimizer"]["step"] == 7 + best
        assert checkpoints.restore(STATE, SHARDINGS, step=50).step == 50
        checkpoints.save(70, STATE, position={})
        checkpoints.wait()
        assert checkpoints.steps() == sorted({60, 70, best})


def test_the_first_of_equals_is_the_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, top1 in ((1, 0.5), (2, 0.5), (3, 0.4), (4, 0.3)):
            checkpoints.save(step, STATE, position={}, metrics={"top1": top1})
            checkpoints.wait()
            assert checkpoints.best_step() == 1
        assert checkpoints.steps() == [1, 4]
        for step, top1 in ((5, math.nan), (6, math.inf)):
            checkpoints.save(step, STATE, position={}, metrics={"top1": top1})
        assert checkpoints.best_step() == 1
    with Checkpoints(tmp_path, best=None) as checkpoints:
        assert checkpoints.best_step() is None
    with Checkpoints(tmp_path, best_mode="min") as checkpoints:
        checkpoints.save(7, STATE, position={}, metrics={"top1": 0.6})
        assert checkpoints.best_step() == 1
        checkpoints.save(8, STATE, position={}, metrics={"top1": 0.4})
        checkpoints.wait()
        assert checkpoints.best_step() == 8


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE, position={"step": "again"})
        assert checkpoints.restore(STATE, SHARDINGS).position == {"step": 1}


def test_an_empty_workdir_has_no_checkpoint(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(STATE, SHARDINGS) is None
        assert checkpoints.best_step() is None
        message = r"no checkpoint 'best' \(no evaluation on validation data chose one\), expected one of the steps \[\]"
        with pytest.raises(UserError, match=message):
            checkpoints.restore(STATE, SHARDINGS, step="best")


def test_another_model_is_an_error_and_not_damage(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    other = {"model": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(4)}, "optimizer": {}}
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="got another model or optimizer") as error:
            checkpoints.restore(other, jax.tree.map(lambda x: x.sharding, other))
        assert "missing in it: model.bias;" in str(error.value)
        assert "other shapes: model.kernel (2, 3) -> (2, 4)" in str(error.value)
        renamed = {"model": {"weight": jnp.zeros((2, 3))}}
        with pytest.raises(UserError, match=r"missing in it: model\.weight; only in it: model\.kernel\)"):
            checkpoints.restore(renamed, jax.tree.map(lambda x: x.sharding, renamed))
        assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"), [({"keep": 0}, "expected 1 or more"), ({"best_mode": "up"}, "expected 'max' or 'min'")]
)
def test_invalid_options_are_errors(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Checkpoints(tmp_path, **options)


def test_each_checkpoint_holds_the_config(tmp_path: Path) -> None:
    save(tmp_path, 1, config={"model": {"name": "resnet50"}})
    about = json.loads((folder(tmp_path, 1) / "about" / "metadata").read_text())
    assert about["config"] == {"model": {"name": "resnet50"}}


def test_a_flax_state_keeps_its_types(tmp_path: Path) -> None:
    state = nnx.state(nnx.Dropout(0.5, rngs=nnx.Rngs(3)))
    shardings = jax.tree.map(lambda x: x.sharding, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, position={})
        restored = checkpoints.restore(state, shardings).state
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        assert bool((a == b).all())
