"""jaxvision.parallel: the mesh, the table of shardings, and several processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from support import tiny
from support.paths import TESTS
from support.processes import run_together

from jaxvision.errors import UserError
from jaxvision.parallel import distributed
from jaxvision.parallel.mesh import batch_devices, batch_sharding, check_batch_size, make_mesh, shard_batch
from jaxvision.parallel.rules import largest_axis, state_shardings

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs the eight fake devices of conftest.py")


def abstract() -> object:
    return tiny.Run(tiny.build(), optax.adam(0.1), create={"ema_decay": 0.9}).abstract


def specs(table: object, mesh: object) -> dict[str, P]:
    shardings = state_shardings(abstract(), mesh, table)
    leaves = jax.tree_util.tree_leaves_with_path(shardings)
    return {jax.tree_util.keystr(p, simple=True, separator=".").removesuffix(".value"): s.spec for p, s in leaves}


@pytest.mark.parametrize(
    ("axes", "sizes"),
    [
        (None, {"data": 8}),
        ({"data": -1}, {"data": 8}),
        ({"data": 4, "model": 2}, {"data": 4, "model": 2}),
        ({"data": -1, "model": 4}, {"data": 2, "model": 4}),
        ({"data": 1, "fsdp": -1}, {"data": 1, "fsdp": 8}),
    ],
)
def test_mesh(axes: dict | None, sizes: dict) -> None:
    mesh = make_mesh(axes)
    assert dict(mesh.shape) == sizes
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3}, "data=3 does not tile 8 devices"),
        ({"data": 4}, "data=4 does not tile 8 devices"),
        ({"data": -1, "model": 3}, "data=-1, model=3 does not tile 8 devices"),
        ({"data": -1, "model": -1}, "at most one is -1"),
        ({"data": 0}, "got data=0, expected sizes of 1 or more"),
    ],
)
def test_mesh_errors(axes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_mesh(axes)


@dataclass(frozen=True)
class Chip:
    """A device of one of several nodes, with the attributes that JAX gives it."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "a GPU"


@pytest.mark.parametrize(
    ("axes", "across"), [({"data": -1, "fsdp": 4}, "data"), ({"data": 1, "fsdp": -1}, "fsdp"), ({"data": -1}, "data")]
)
def test_one_axis_lies_across_the_nodes(axes: dict, across: str) -> None:
    chips = [Chip(i, slice_index=i % 2, process_index=i % 2) for i in range(8)]  # nodes alternate
    mesh = make_mesh(axes, devices=chips)
    nodes = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    along = mesh.axis_names.index(across)
    rows = np.moveaxis(nodes, along, 0).reshape(nodes.shape[along], -1)
    assert (rows == rows[:, :1]).all()  # along every other axis all devices are of one node
    half = len(rows) // 2
    assert (rows[:half] == rows[0, 0]).all()
    assert (rows[half:] == 1 - rows[0, 0]).all()
    with pytest.raises(UserError, match="got tensor=7, expected an axis that 2 divides"):
        make_mesh({"tensor": 7}, devices=chips[:7])


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "message"),
    [
        (30, 1, r"got 30, expected a multiple of 8 devices\. The nearest: 24 or 32"),
        (5, 1, r"got 5, expected a multiple of 8 devices\. The nearest: 8\."),
        (
            24,
            2,
            r"^data\.batch_size: got 24, expected a multiple of 8 devices times 2 microbatches\. The nearest: 16 or 32",
        ),
        (0, 1, r"data\.batch_size: got 0, expected 1 or more"),
    ],
)
def test_batch_size_errors(batch_size: int, accumulate: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_batch_size(batch_size, make_mesh(), what="data.batch_size", accumulate=accumulate)


def test_batches_are_split_over_data_and_fsdp_only() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "model": 2})
    assert batch_devices(mesh) == 4
    check_batch_size(4, mesh, what="data.batch_size")
    assert batch_sharding(mesh).spec == P(("data", "fsdp"))
    batch = {"image": np.arange(16).reshape(8, 2), "label": np.arange(8)}
    on_devices = shard_batch(batch, mesh)
    for key, x in on_devices.items():
        np.testing.assert_array_equal(x, batch[key])
        assert {shard.data.shape[0] for shard in x.addressable_shards} == {2}


def test_data_parallelism_replicates_everything() -> None:
    assert set(specs([(r".*", P())], make_mesh()).values()) == {P()}


def test_moments_and_averages_are_laid_out_as_their_parameter() -> None:
    found = specs([(r"conv\.kernel", P(None, None, None, "data")), (r".*", P())], make_mesh())
    split = {name for name, spec in found.items() if spec != P()}
    assert split == {
        f"{prefix}.conv.kernel"
        for prefix in ("model", "optimizer.opt_state.0.mu", "optimizer.opt_state.0.nu", "ema.params")
    }


def test_fully_sharded_table() -> None:
    mesh = make_mesh()
    found = specs([(r"fc\.bias", P()), (r".*", largest_axis("data", mesh, min_size=1))], mesh)
    assert found["model.conv.kernel"] == P(None, None, None, "data")  # [3, 3, 3, 8]
    assert found["model.fc.kernel"] == P("data")  # [8, 4]
    assert found["model.bn.mean"] == P("data")  # [8]
    assert found["optimizer.opt_state.0.count"] == P()
    rule = largest_axis("data", mesh)
    assert rule((1024, 1024)) == P(None, "data")
    assert rule((1024, 8)) == P()  # too small to be worth a collective
    assert rule((1023, 1025)) == P()  # not divisible


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            [(r"conv\.kernal", P("data")), (r".*", P())],
            r"kernal' matches no parameter\. The nearest name is 'conv\.kernel'",
        ),
        ([(r"conv", P())], "no pattern matches 'bn.bias'"),
        (
            [(r"fc\.bias", P("data")), (r".*", P())],
            r"sharding of 'fc.bias': .* dimension 0 of shape \(4,\) is not divisible by the 8",
        ),
        (
            [(r"fc\.bias", P(None, "data")), (r".*", P())],
            r"sharding of 'fc.bias': .* expected at most 1 entries for shape \(4,\)",
        ),
        ([(r".*", P("dta"))], "got 'dta', expected an axis of the mesh. Did you mean 'data'"),
    ],
)
def test_table_errors(table: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        state_shardings(abstract(), make_mesh(), table)


def test_initialize_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((*a, k)))
    assert not distributed.initialize({"SLURM_NTASKS": "4", "JAXVISION_DISTRIBUTED": "0"})
    triple = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    for environment in (
        triple,
        {"JAXVISION_DISTRIBUTED": "1"},
        {"SLURM_STEP_NUM_TASKS": "4"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
    ):
        assert distributed.initialize(environment)
    heartbeat = {"heartbeat_timeout_seconds": distributed.HEARTBEAT}
    assert calls == [("host:1234", 4, 3, heartbeat), *[(None, None, None, heartbeat)] * 3]
    with pytest.raises(UserError, match="JAX_PROCESS_ID must be set, too"):
        distributed.initialize({key: triple[key] for key in list(triple)[:2]})
    with pytest.raises(UserError, match="got JAX_PROCESS_ID=4, expected a number from 0"):
        distributed.initialize({**triple, "JAX_PROCESS_ID": "4"})


def test_two_processes_train_and_save_as_one(tmp_path: Path) -> None:
    """Each has four devices and half of the batch: same losses as one process with eight devices, one checkpoint."""
    results = run_together(TESTS / "support" / "two_processes.py", tmp_path, processes=2, devices=4)
    found = {out.splitlines()[-2].split("/")[0] for out in results}
    assert found == {"found", "state"}  # one process finds the damage in its file, the other is informed
    printed = [out.splitlines()[-1] for out in results]
    assert printed[0] == printed[1]
    losses = [float(x) for x in printed[0].split()]
    one = tiny.Run(tiny.build(dropout=0.2), optax.sgd(0.1, momentum=0.9), create={"ema_decay": 0.9}, devices=8)
    np.testing.assert_allclose(losses, [m["loss"] for m in one.train(4)], rtol=1e-5)
