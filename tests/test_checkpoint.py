"""jaxvision/checkpoint.py: going on to the bit, after any kind of stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict
from support import tiny
from support.paths import TESTS

from jaxvision.checkpoint import Checkpoints
from jaxvision.errors import UserError
from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import largest_axis
from jaxvision.run.workdir import check_config, write_config

STATE = {"model": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "optimizer": {"step": jnp.uint32(7)}}
PLACES = jax.tree.map(lambda x: x.sharding, STATE)


def run(**options: object) -> tiny.Run:
    return tiny.Run(tiny.build(dropout=0.3), optax.adam(0.01), create={"ema_decay": 0.9}, **options)


def save(workdir: Path, *steps: int, **options: object) -> None:
    with Checkpoints(workdir, keep=len(steps), **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, jax.tree.map(lambda x: x + step, STATE), position={"step": step})  # noqa: B023


def folder(workdir: Path, step: int) -> Path:
    return workdir / "checkpoints" / str(step)


def assert_identical(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name


def test_saving_does_not_ask_whether_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX says so at one call only, which must be the run's: a SIGTERM that Orbax hears of is lost."""
    asked = []
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", asked.append)
    save(tmp_path, 1, 2)
    assert not asked


def test_six_steps_are_three_and_three(tmp_path: Path) -> None:
    """Parameters, BatchNorm, dropout keys, moments, average: equal bytes after a restart, whoever saved meanwhile."""
    straight = run()
    with Checkpoints(tmp_path) as checkpoints:
        straight.train(3)
        checkpoints.save(3, straight.state, position={"epoch": 1, "seed": 5}, metrics={"top1": 0.5})
        straight.train(3, start=3)  # at once: the state that is being written has been consumed by now

    again = run()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(again.abstract, again.shardings)
    assert (restored.step, restored.position, restored.metrics) == (3, {"epoch": 1, "seed": 5}, {"top1": 0.5})
    assert jax.tree.structure(restored.state) == jax.tree.structure(again.state)
    again.state = restored.state
    again.train(3, start=3)
    assert_identical(straight.arrays(), again.arrays())


def test_goes_on_with_another_number_of_devices(tmp_path: Path) -> None:
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


def test_a_part_can_be_read_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    part, places = {"model": STATE["model"]}, {"model": PLACES["model"]}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore(part, places)
    assert restored.state.keys() == {"model"}
    np.testing.assert_array_equal(restored.state["model"]["kernel"], STATE["model"]["kernel"] + 1)


@pytest.mark.parametrize(("mode", "kept", "best"), [("max", [20, 50, 60], 20), ("min", [40, 50, 60], 40)])
def test_keeps_the_newest_and_the_best(tmp_path: Path, mode: str, kept: list[int], best: int) -> None:
    top1 = {10: 0.2, 20: 0.9, 30: float("nan"), 40: 0.1, 50: 0.5}
    with Checkpoints(tmp_path, keep=2, best_mode=mode) as checkpoints:
        for step in (10, 20, 30, 40, 50, 60):
            metrics = {"top1": top1[step], "loss": 1.0} if step in top1 else None
            checkpoints.save(step, jax.tree.map(lambda x: x + step, STATE), position={}, metrics=metrics)  # noqa: B023
        checkpoints.wait()
        assert checkpoints.steps() == kept
    with Checkpoints(tmp_path, keep=2, best_mode=mode) as checkpoints:  # known after a restart, too
        assert (checkpoints.steps(), checkpoints.best_step()) == (kept, best)
        restored = checkpoints.restore(STATE, PLACES, step="best")
        assert restored.step == best
        assert restored.state["optimizer"]["step"] == 7 + best
        assert checkpoints.restore(STATE, PLACES, step=50).step == 50
        checkpoints.save(70, STATE, position={})
        checkpoints.wait()
        assert checkpoints.steps() == sorted({60, 70, best})


def test_the_newest_of_equals_is_the_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, top1 in ((1, 0.5), (2, 0.5), (3, 0.4), (4, 0.3)):
            checkpoints.save(step, STATE, position={}, metrics={"top1": top1})
            checkpoints.wait()
            assert checkpoints.best_step() == min(step, 2)
        assert checkpoints.steps() == [2, 4]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE, position={"step": "again"})
        assert checkpoints.restore(STATE, PLACES).position == {"step": 1}


def test_nothing_yet(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(STATE, PLACES) is None
        assert checkpoints.best_step() is None
        with pytest.raises(UserError, match=r"no checkpoint 'best' by 'top1' in .*; there are the steps \[\]"):
            checkpoints.restore(STATE, PLACES, step="best")


def largest(folder: Path) -> Path:
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("what", ["arrays", "about", "metrics"])
@pytest.mark.parametrize("how", [flip, cut, Path.unlink])
def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, what: str, how: object) -> None:
    save(tmp_path, 1, 2, 3)
    for step in (2, 3):
        how(largest(folder(tmp_path, step) / {"arrays": "state", "about": "about", "metrics": "metrics"}[what]))
    said: list[str] = []
    with Checkpoints(tmp_path, log=said.append) as checkpoints:
        restored = checkpoints.restore(STATE, PLACES)
        assert restored.step == 1
        assert restored.state["optimizer"]["step"] == 8
        assert [message.split(":")[0] for message in said] == [
            f"skipped a damaged checkpoint, step {step}" for step in (3, 2)
        ]
        assert checkpoints.steps() == [1]
        checkpoints.save(2, STATE, position={})  # the run comes by that step again
        checkpoints.save(3, STATE, position={})
    with Checkpoints(tmp_path, log=said.append) as checkpoints:
        assert checkpoints.restore(STATE, PLACES).step == 3
    assert len(said) == 2


@pytest.mark.parametrize("how", [flip, cut, Path.unlink])
def test_damage_to_any_file_does_no_harm(tmp_path: Path, how: object) -> None:
    """Whatever file it is: found, or of no consequence."""
    save(tmp_path / "good", 1, 2)
    files = [path.relative_to(tmp_path / "good") for path in folder(tmp_path / "good", 2).rglob("*") if path.is_file()]
    assert len(files) > 10
    for file in files:
        workdir = shutil.copytree(tmp_path / "good", tmp_path / str(file).replace("/", "-"))
        how(workdir / file)
        with Checkpoints(workdir, log=lambda message: None) as checkpoints:
            restored = checkpoints.restore(STATE, PLACES)
        assert restored.position == {"step": restored.step}
        for a, b in zip(jax.tree.leaves(restored.state), jax.tree.leaves(STATE), strict=True):
            np.testing.assert_array_equal(a, b + restored.step)


def test_checkpoints_that_are_gone_are_not_those_of_a_new_run(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.rmtree(tmp_path / "checkpoints")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="has saved checkpoints, but there are"):
        checkpoints.restore(STATE, PLACES)


def test_a_step_that_is_written_anew_is_never_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor if the process ends in between, before the new one is whole or just after."""
    save(tmp_path, 1)
    moved, later = {"step": "anew"}, jax.tree.map(lambda x: x + 1, STATE)

    def anew(workdir: Path) -> None:
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(1, later, position=moved, metrics={"top1": 0.5}, anew=True)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_seal", lambda self, step: self._manager.wait_until_finished())  # and no further
        anew(tmp_path)
    aside = tmp_path / "checkpoints" / "1.aside"
    assert aside.exists()
    for case in ("begun", "whole"):
        workdir = shutil.copytree(tmp_path, tmp_path.with_name(case))
        if case == "begun":
            shutil.rmtree(folder(workdir, 1))
        with Checkpoints(workdir) as checkpoints:
            assert checkpoints.restore(STATE, PLACES).position == {"step": 1}
        anew(workdir)
        shutil.copytree(aside, workdir / "checkpoints" / "1.aside")  # sealed, and the process ended before it removed
        with Checkpoints(workdir) as checkpoints:
            assert checkpoints.restore(STATE, PLACES).position == moved
            assert checkpoints.best_step() == 1
        assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["1"]

    with Checkpoints(tmp_path) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", raise_no_space)
        with pytest.raises(UserError, match=r"no space left on the disk\); the one of step 1 stands"):
            checkpoints.save(1, later, position=moved, anew=True)
        assert checkpoints.restore(STATE, PLACES).position == {"step": 1}


def raise_no_space(*args: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


def test_where_all_are_damaged_nothing_starts_afresh_unasked(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for step in (1, 2):
        cut(largest(folder(tmp_path, step)))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(
            UserError, match=r"no checkpoint in .* can be read \(step 2: .*; step 1: .*\); remove the folder"
        ),
    ):
        checkpoints.restore(STATE, PLACES)
    assert folder(tmp_path, 2).exists()


def test_leftovers_of_an_interrupted_save(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    unfinished = folder(tmp_path, 3).with_name("3.orbax-checkpoint-tmp-1700000000")
    (unfinished / "state").mkdir(parents=True)
    folder(tmp_path, 4).mkdir()  # a folder without content
    (folder(tmp_path, 2) / "checksums.json").unlink()  # whole, but the process ended before it could say so
    said: list[str] = []
    with Checkpoints(tmp_path, read_only=True, log=said.append) as checkpoints:
        assert checkpoints.restore(STATE, PLACES).step == 2
    assert unfinished.exists()  # perhaps another process is writing it
    assert folder(tmp_path, 4).exists()
    assert [message.split(":")[0] for message in said] == [
        "the checkpoint of step 2 has no checksums.json, which come last",
        "skipped a damaged checkpoint, step 4",
    ]
    said.clear()
    with Checkpoints(tmp_path, log=said.append) as checkpoints:
        assert checkpoints.restore(STATE, PLACES).step == 2
        checkpoints.save(3, STATE, position={})
    assert said[0] == "the checkpoint of step 3 was interrupted while it was saved; skipped"
    assert not unfinished.exists()
    assert not folder(tmp_path, 4).exists()


def test_another_model_is_an_error_and_not_damage(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    other = {"model": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(4)}, "optimizer": {}}
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="is of another model or optimizer") as error:
            checkpoints.restore(other, jax.tree.map(lambda x: x.sharding, other))
        assert "not in it: model.bias;" in str(error.value)
        assert "other shapes: model.kernel (2, 3) -> (2, 4)" in str(error.value)
        renamed = {"model": {"weight": jnp.zeros((2, 3))}}
        with pytest.raises(UserError, match=r"not in it: model\.weight; only in it: model\.kernel$"):
            checkpoints.restore(renamed, jax.tree.map(lambda x: x.sharding, renamed))
        assert checkpoints.steps() == [1, 2]


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of a file fails in the background as a full disk does: in the middle of writing."""
    resource = pytest.importorskip("resource")
    big = {"model": {"kernel": jax.random.bits(jax.random.key(0), (2**20,))}}  # 4 MiB that cannot be compressed
    places = jax.tree.map(lambda x: x.sharding, big)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, big, position={"step": 1})
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        checkpoints.save(2, big, position={"step": 2})
        with pytest.raises(
            UserError, match=r"^the checkpoint of step 2 could not be written .*; the one of step 1 stands"
        ):
            checkpoints.wait()
        assert [path.name for path in checkpoints.directory.iterdir()] == ["1"]  # nothing is left half-written
        checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Checkpoints(tmp_path, keep=1, log=lambda message: None) as checkpoints:
        restored = checkpoints.restore(big, places)
        assert restored.position == {"step": 1}
        np.testing.assert_array_equal(restored.state["model"]["kernel"], big["model"]["kernel"])
        checkpoints.save(2, big, position={})  # there is room again
        checkpoints.wait()
        assert checkpoints.steps() == [2]


def test_the_first_error_is_the_one_that_is_read(tmp_path: Path) -> None:
    said: list[str] = []

    def fail_twice() -> None:
        with Checkpoints(tmp_path, log=said.append) as checkpoints:
            checkpoints._failure = OSError(28, "No space left on device")
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        fail_twice()
    assert "no space left on the disk" in said[0]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_in_the_middle_of_saving(tmp_path: Path) -> None:
    """In processes of their own: one is killed while it saves step 4, one goes on from there, one is never stopped."""

    def start(workdir: str, *arguments: int) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, TESTS / "support" / "resume.py", tmp_path / workdir, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    def end(process: subprocess.Popen, status: int = 0) -> dict[str, str]:
        out, err = process.communicate()
        assert process.returncode == status, err
        assert "Traceback" not in err
        return dict(line.split(": ", 1) for line in out.splitlines())

    straight, killed = start("straight", 6), start("killed", 6, 4)
    assert end(killed, -signal.SIGKILL)["start"] == "0"
    resumed = end(start("killed", 6))
    if resumed["start"] == "2":
        assert resumed["said"] == "the checkpoint of step 4 was interrupted while it was saved; skipped"
    else:  # the disk was faster than the signal
        assert resumed["start"] == "4"
    assert resumed["digest"] == end(straight)["digest"]


def test_config_is_written_once_and_then_compared(tmp_path: Path) -> None:
    config = ConfigDict({"model": {"name": "resnet50", "image_size": (224, 224)}, "optim": {"learning_rate": 0.1}})
    assert not check_config(tmp_path / "run", config.to_dict())
    assert not (tmp_path / "run").exists()
    write_config(tmp_path / "run", config.to_dict())
    written = json.loads((tmp_path / "run/config.json").read_text())
    assert written == {"model": {"name": "resnet50", "image_size": [224, 224]}, "optim": {"learning_rate": 0.1}}
    assert check_config(tmp_path / "run", config)  # a tuple is the list that JSON made of it
    changed = {"model": {"name": "resnet18", "image_size": (224, 224)}, "optim": {"learning_rate": 0.2}, "seed": 1}
    with pytest.raises(UserError) as error:
        check_config(tmp_path / "run", changed)
    assert (
        "model.name 'resnet50' -> 'resnet18'; optim.learning_rate 0.1 -> 0.2; seed (not set) -> 1; "
        "take another workdir" in str(error.value)
    )
    assert json.loads((tmp_path / "run/config.json").read_text()) == written


def test_config_keys_that_may_differ(tmp_path: Path) -> None:
    write_config(tmp_path, {"seed": 1, "report": {"every": 10, "images": 4}, "reports": 1})
    new = {"seed": 1, "report": {"every": 20}, "reports": 1}
    assert check_config(tmp_path, new, may_differ=("report",))
    with pytest.raises(UserError, match="reports 1 -> 2"):
        check_config(tmp_path, {**new, "reports": 2}, may_differ=("report", "report.every"))


def test_config_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        check_config(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use the workdir"):
        write_config(tmp_path / "file" / "run", {})
    with (
        pytest.raises(UserError, match=r"could not be written.*there is no earlier one"),
        Checkpoints(tmp_path / "file" / "run") as checkpoints,
    ):
        checkpoints.save(1, {"x": jax.numpy.ones(3)}, position={})


@pytest.mark.parametrize(
    ("options", "message"), [({"keep": 0}, "keep at least 1"), ({"best_mode": "up"}, "'max' or 'min'")]
)
def test_errors(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Checkpoints(tmp_path, **options)


def test_the_config_travels_with_the_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1, config={"model": {"name": "resnet50"}})
    about = json.loads((folder(tmp_path, 1) / "about" / "metadata").read_text())
    assert about["config"] == {"model": {"name": "resnet50"}}


def test_a_state_of_flax_keeps_its_types(tmp_path: Path) -> None:
    state = nnx.state(nnx.Dropout(0.5, rngs=nnx.Rngs(3)))
    places = jax.tree.map(lambda x: x.sharding, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, position={})
        restored = checkpoints.restore(state, places).state
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        assert bool((a == b).all())


def test_what_is_no_checkpoint_is_told_of(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder(tmp_path, 2).write_text("a file")
    said: list[str] = []
    with Checkpoints(tmp_path, log=said.append) as checkpoints:
        assert checkpoints.restore(STATE, PLACES).step == 1
    assert said == [f"{folder(tmp_path, 2)} is a file and no checkpoint; skipped"]


@pytest.mark.parametrize("text", ["{", "[]", '{"top1": "high"}', ""])
def test_the_best_is_not_lost_without_a_word(tmp_path: Path, text: str) -> None:
    """Where its metrics are damaged nobody can know that it is the best."""
    with Checkpoints(tmp_path) as checkpoints:
        for step, top1 in ((1, 0.9), (2, 0.5)):
            checkpoints.save(step, STATE, position={}, metrics={"top1": top1})
    (folder(tmp_path, 1) / "metrics" / "metrics").write_text(text)
    said: list[str] = []
    with Checkpoints(tmp_path, log=said.append) as checkpoints:
        assert checkpoints.best_step() == 2
    assert said == ["the metrics of the checkpoint of step 1 are damaged; it will not be taken for the best"]


@pytest.mark.parametrize("text", ["", "{}", "[]", "{"])
def test_checksums_that_are_none_are_damaged(tmp_path: Path, text: str) -> None:
    save(tmp_path, 1, 2)
    (folder(tmp_path, 2) / "checksums.json").write_text(text)
    said: list[str] = []
    with Checkpoints(tmp_path, log=said.append) as checkpoints:
        assert checkpoints.restore(STATE, PLACES).step == 1
    assert said == ["skipped a damaged checkpoint, step 2: checksums.json is damaged"]


def test_a_run_of_a_version_with_fewer_keys_goes_on(tmp_path: Path) -> None:
    write_config(tmp_path, {"train": {"steps": 1}})
    assert check_config(tmp_path, {"train": {"steps": 1, "new": None}})
    with pytest.raises(UserError, match=r"train\.new \(not set\) -> 3"):
        check_config(tmp_path, {"train": {"steps": 1, "new": 3}})
