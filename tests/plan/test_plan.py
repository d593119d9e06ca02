"""jaxvision plan: what is read from a compiled step, held to counts by hand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from support import tiny

from jaxvision import cli, main, plan, run
from jaxvision.analysis.cost import model_info, operations
from jaxvision.data.image_path import FromMemory
from jaxvision.errors import UserError
from jaxvision.parallel.mesh import make_mesh, mesh_text
from jaxvision.parallel.rules import largest_axis, state_bytes, state_shardings
from jaxvision.plan import chips, program_text
from jaxvision.run import program as run_program
from jaxvision.run.config import load
from jaxvision.train.partial import parameter_counts

# Instructions as XLA writes them for CPUs, GPUs and TPUs. The loop runs five times, once by the compiler's note and
# once by the number that its condition compares with; a fusion that reduces and keeps a slice is a reduce-scatter.
PROGRAM = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}
%condition (state: (s32[], f32[16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}
%body (state: (s32[], f32[16])) -> (s32[], f32[16]) {
  %r = f32[16]{0:T(128)} all-reduce(%x), channel_id=2, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[16]) tuple(%i, %r)
}
%all-reduce-scatter.3 (x: f32[64]) -> f32[8] {
  %r.1 = f32[64]{0} all-reduce(%x), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[8]{0} dynamic-slice(%r.1, %i), dynamic_slice_sizes={8}
}
ENTRY %main (x: f32[16]) -> f32[16] {
  %r.2 = (f32[1000]{0}, bf16[10,2]{1,0:T(8,128)(2,1)S(1)}) all-reduce(%a, %b), channel_id=1, replica_groups=mesh['a'=8] {'a'}, to_apply=%add
  %g = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%y), channel_id=4, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %g.1 = bf16[16]{0} all-gather-done(%g)
  %p = f32[6]{0} collective-permute(%y), channel_id=5, source_target_pairs={{0,1},{1,0}}
  %q = (f32[6]{0}, f32[6]{0}) collective-permute-start(%y), channel_id=6, source_target_pairs={{0,1},{1,0}}
  %w = (s32[], f32[16]) while(%init), condition=%condition, body=%body
  %w.1 = (s32[], f32[16]) while(%init), condition=%x, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %fusion = f32[8]{0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %done = f32[16]{0} get-tuple-element(%w), index=1
}
"""  # noqa: E501


def test_collectives_of_a_program() -> None:
    rows = plan.collectives(PROGRAM, AbstractMesh((4, 2), ("data", "fsdp")))
    found = {(row.kind, row.axis, row.devices): (row.count, row.bytes) for row in rows}
    assert found == {
        ("all-reduce", "data+fsdp", 8): (1, 4000 + 40),
        ("all-reduce", "fsdp", 2): (10, 10 * 64),
        ("all-gather", "data", 4): (1, 32),
        ("collective-permute", "fsdp", 2): (2, 48),
        ("reduce-scatter", "data+fsdp", 8): (1, 256),
    }
    sent = {row.kind: row.sent for row in rows if row.devices != 2}
    assert sent == {"all-reduce": 2 * 4040 * 7 / 8, "all-gather": 32 * 3 / 4, "reduce-scatter": 256 * 7 / 8}
    assert rows[0].bytes == 4040  # the largest first


def test_traffic_of_a_program() -> None:
    """A loop of 5 that reads a row of 10 floats and writes it to another array, and copies to and from fast memory."""
    text = """
%fused (rows: f32[5,10], i: s32[], out: f32[5,10]) -> f32[5,10] {
  %rows = f32[5,10]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %out = f32[5,10]{1,0} parameter(2)
  %row = f32[1,10]{1,0} dynamic-slice(%rows, %i, %i), dynamic_slice_sizes={1,10}
  %tanh = f32[1,10]{1,0} tanh(%row)
  ROOT %written = f32[5,10]{1,0} dynamic-update-slice(%out, %tanh, %i, %i)
}
%condition (state: (s32[], f32[5,10], f32[5,10])) -> pred[] {
  %limit = s32[] constant(5)
  ROOT %lt = pred[] compare(%k, %limit), direction=LT
}
%body (state: (s32[], f32[5,10], f32[5,10])) -> (s32[], f32[5,10], f32[5,10]) {
  %i = s32[] get-tuple-element(%state), index=0
  %rows = f32[5,10]{1,0} get-tuple-element(%state), index=1
  %out = f32[5,10]{1,0} get-tuple-element(%state), index=2
  %new = f32[5,10]{1,0} fusion(%rows, %i, %out), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[5,10], f32[5,10]) tuple(%i, %rows, %new)
}
ENTRY %main (x: f32[5,10]) -> f32[7] {
  %w = (s32[], f32[5,10], f32[5,10]) while(%init), condition=%condition, body=%body
  %far = f32[70]{0} constant({...})
  %start = (f32[7]{0:S(1)}, f32[70]{0}, u32[]{:S(2)}) slice-start(%far), slice={[0:7]}
  %near = f32[7]{0:S(1)} slice-done(%start)
  ROOT %sum = f32[7]{0:S(1)} add(%near, %near)
}
"""
    loop, condition, copied = 5 * (40 + 4 + 40), 4 + 1, 28  # a condition counts once: it moves nothing worth a product
    assert plan.traffic(text) == loop + condition + copied


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
    ],
)
def test_groups_of_devices(text: str, groups: list) -> None:
    np.testing.assert_array_equal(program_text._groups(f"%r = f32[] all-reduce(%x), {text}, to_apply=%add", 4), groups)


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 4, "model": 2}])
def test_collectives_of_a_compiled_step(axes: dict) -> None:
    """Five steps of a linear model in a scan: each sums a gradient of 24 x 3 floats over the axis of the batch."""
    mesh = make_mesh(axes)

    def steps(w: jax.Array, x: jax.Array) -> jax.Array:
        def one(w: jax.Array, _: None) -> tuple[jax.Array, None]:
            return w - jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w), None

        return jax.lax.scan(one, w, None, length=5)[0]

    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    step = jax.jit(steps, in_shardings=(whole, split), out_shardings=whole)
    traced = step.trace(jax.ShapeDtypeStruct((24, 3), "float32"), jax.ShapeDtypeStruct((16, 24), "float32"))
    (row,) = plan.collectives(traced.lower().compile().as_text(), mesh)
    assert (row.kind, row.axis, row.devices, row.bytes) == ("all-reduce", "data", axes["data"], 5 * 24 * 3 * 4)
    assert operations(traced.jaxpr.jaxpr) == 5 * 2 * (2 * 16 * 24 * 3)  # forward, and the weight's gradient


def test_operations_of_convolutions() -> None:
    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((0, 0), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).sum()

    shapes = jnp.ones((2, 2, 3, 5)), jnp.ones((4, 8, 8, 3))
    forward = 2 * (4 * 4 * 4 * 5) * (2 * 2 * 3)
    assert operations(jax.make_jaxpr(loss)(*shapes).jaxpr) == forward
    # The zeros that a stride puts into the image's gradient are not counted as work.
    assert operations(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*shapes).jaxpr) == pytest.approx(
        3 * forward, rel=0.2
    )


def test_bytes_of_the_state_by_hand() -> None:
    made = tiny.Run(tiny.build(dropout=0.1), optax.adam(0.1), create={"ema_decay": 0.9})
    parameters = 3 * 3 * 3 * 8 + (8 + 8) + (8 * 4 + 4)  # convolution; norm; classifier
    counts = 4 + 4  # of Adam, and of the updates made
    expected = {
        "parameters": 4 * parameters,
        "statistics": 4 * 16,
        "optimizer": 4 * 2 * parameters + counts,
        "ema": 4 * (parameters + 16),
    }
    found = state_bytes(made.abstract, made.shardings)
    assert {kind: found[kind] for kind in expected} == expected
    assert 0 < found["other"] <= 48  # dropout's key and counter

    # Each of 8 devices holds an eighth of what is split: the leaves whose shape has a multiple of 8.
    mesh = make_mesh({"fsdp": 8})
    split = state_shardings(made.abstract, mesh, ((r".*", largest_axis("fsdp", mesh, min_size=1)),))
    parameters = (216 + 16 + 32) // 8 + 4
    found = state_bytes(made.abstract, split)
    assert found["parameters"] == 4 * parameters
    assert found["optimizer"] == 4 * 2 * parameters + counts
    assert found["ema"] == 4 * (parameters + 16 // 8)


def a_plan(**changes: object) -> plan.Plan:
    chip = plan.Chip("x", 100.0, flops=1000.0, flops_float32=500.0, bandwidth=50.0, link=1.0)
    rows = (
        plan.Collective("all-reduce", "data", 4, 1, 20, 30.0),
        plan.Collective("all-gather", "data", 4, 2, 40, 15.0),
    )
    facts = {
        "chip": chip,
        "mesh": {"data": 4},
        "zero1": False,
        "batch_size": 8,
        "bytes": {"parameters": 60, "batch": 30},
        "flops": 500.0,
    }
    return plan.Plan(**{**facts, "accessed": 100.0, "collectives": rows, **changes})


def test_roofline_by_hand() -> None:
    done = a_plan()
    assert done.fits
    assert done.total == 90
    # All-reduce sends 2 x 3/4 of 20, all-gather 3/4 of 40, along slower links.
    assert done.seconds == {"compute": 0.5, "memory": 2.0, "interconnect": 30 / 30 + 30 / 15}
    assert (done.step_seconds, done.in_turn_seconds) == (3.0, 5.0)
    assert done.efficiency == (2 / 5, 2 / 3)
    assert done.mfu == 0.5 / 3
    assert a_plan(collectives=()).efficiency == (1.0, 1.0)
    assert a_plan(float32=True).seconds["compute"] == 1.0
    assert a_plan(collectives=()).seconds == {"compute": 0.5, "memory": 2.0}
    memory_only = a_plan(chip=plan.Chip("8GB", 100.0), collectives=())
    assert memory_only.step_seconds is memory_only.in_turn_seconds is memory_only.efficiency is None
    refused = a_plan(refused=True)
    assert not refused.fits
    assert refused.step_seconds is None
    assert refused.in_turn_seconds is refused.efficiency is None
    assert json.loads(json.dumps(done.as_dict()))["step_seconds"] == 3.0
    assert done.flags == "--config.mesh.data=4 --config.sharding.zero1=false"
    assert a_plan(mesh={"fsdp": 8}, zero1=True).flags == (
        "--config.mesh.data=1 --config.mesh.fsdp=8 --config.sharding.zero1=true"
    )


def test_the_flags_of_a_mesh_choose_it(file: Path) -> None:
    chosen = a_plan(mesh={"data": 2, "fsdp": 8}, zero1=True)
    parsed, _ = main.parse([f"--config={file}", *chosen.flags.split()])
    assert parsed is not None
    assert parsed.mesh.to_dict() == chosen.mesh
    assert parsed.sharding.zero1


def test_the_best_mesh_fits_and_is_the_fastest() -> None:
    slow, fast, large = a_plan(accessed=200.0), a_plan(), a_plan(bytes={"parameters": 101}, accessed=1.0)
    assert plan.best([slow, large, fast]) is fast
    # Beside each other these two take 3 s; in turn, one takes longer.
    assert plan.best([a_plan(accessed=150.0), fast]) is fast
    assert plan.best([large, a_plan(bytes={"parameters": 200})]) is large


@pytest.mark.parametrize("start", [1, 8, 16, 64, 500, 4096])
@pytest.mark.parametrize("limit", [1000, 5000, 90])
@pytest.mark.parametrize("refuses", [False, True])
def test_search_finds_the_largest_batch(start: int, limit: int, refuses: bool) -> None:
    """Of a memory that is a line with a bend, whether or not the compiler tells how much too much it was."""
    tried = []

    def used(batch: int) -> float:
        tried.append(batch)
        n = 50 + 7 * batch + max(batch - 60, 0) * 2
        return math.inf if refuses and n > limit else n

    found = plan.largest(used, limit, start, empty=45, tries=16)
    exact = max(b for b in range(1000) if 50 + 7 * b + max(b - 60, 0) * 2 <= limit)
    assert found == (exact // 8 * 8 if exact >= 16 else exact)
    assert len(tried) == len(set(tried)) <= (16 if refuses else 6)


def test_search_gives_up() -> None:
    tried: list[int] = []
    assert plan.largest(lambda batch: tried.append(batch) or (10 if batch < 24 else math.inf), 20, 17) == 17
    assert tried == [17, 32, 24]  # the next multiple of 8, 16, is known to fit
    tried.clear()
    assert plan.largest(lambda batch: tried.append(batch) or math.inf, 10, 1000, tries=4) == 0
    assert len(tried) == 4
    assert plan.largest(lambda batch: 20, 10, 1) == 0


def config(**sections: dict) -> ConfigDict:
    given = ConfigDict({"source": {"name": "digits"}, "model": {"name": "test_resnet", "image_size": 32}})
    given.update(ConfigDict({"data": {"batch_size": 16}, "optimizer": {"name": "adamw", "learning_rate": 1e-3}}))
    given.update(ConfigDict(sections))
    return given


def test_plan_of_a_config_allocates_nothing() -> None:
    before = {id(x) for x in jax.live_arrays()}
    answer = run.plan(
        config(train={"ema_decay": 0.99, "accumulate": 3}), device="h100", num_classes=10, channels=1, search=False
    )
    left = [x.nbytes for x in jax.live_arrays() if id(x) not in before]
    assert sum(left) < 10_000, left

    (done,) = answer.plans
    model = run_program.build_model(run.complete(config()), 10, 1, 32, weights=False)
    parameters, _ = parameter_counts(tiny.nnx.state(model))
    statistics = sum(x.size for x in jax.tree.leaves(tiny.nnx.state(model, tiny.nnx.BatchStat)))
    assert done.bytes["parameters"] == 4 * parameters
    assert done.bytes["statistics"] == 4 * statistics
    assert done.bytes["ema"] == 4 * (parameters + statistics)
    assert 0 <= done.bytes["optimizer"] - 4 * 2 * parameters < 32  # two moments, and some counters
    assert (answer.asked, done.batch_size) == (16, 18)  # three microbatches
    assert done.bytes["batch"] == 18 * (32 * 32 + 4 + 4 + 1)
    assert done.fits
    # The microbatches are a loop, of which XLA counts one: the operations are those of 18 images all the same.
    forward = 2 * model_info(model, image_size=32).total.multiply_adds
    assert 2.4 * 18 * forward < done.flops < 3.2 * 18 * forward
    assert done.seconds.keys() == {"compute", "memory"}
    assert answer.largest is None


def abstract_arguments(given: ConfigDict) -> tuple:
    full = run.complete(given)
    mesh = make_mesh({"data": 1}, devices=jax.devices()[:1])
    program = run_program.train_program(full, mesh, num_classes=10, images=FromMemory((8, 8, 1)), steps_per_epoch=10.0)
    return program.abstract, program.batch


def test_the_plan_is_of_the_step_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `train` compiles is, letter for letter, what `plan` compiled."""
    steps: list[Any] = []
    build = run_program.make_train_step

    def noted(*args: Any, **options: Any) -> Any:
        steps.append(build(*args, **options))
        if sys._getframe(2).f_code.co_name == "train":
            raise InterruptedError  # before anything is initialized
        return steps[-1]

    monkeypatch.setattr(run_program, "make_train_step", noted)
    given = config(train={"steps": 1}, mesh={"data": 1}, data={"batch_size": 128}, augment={"flip": 0.5})
    run.plan(given, device="8GB", num_classes=10, channels=1, stored=8, search=False)
    with pytest.raises(InterruptedError):
        run.train(given, tmp_path)
    texts = [step.trace(*abstract_arguments(given)).lower().as_text() for step in (steps[-2], steps[-1])]
    assert texts[0] == texts[1]


FILE = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({"source": {"name": "digits"}, "model": {"name": "test_resnet", "image_size": 32},
                       "data": {"batch_size": 8}, "optimizer": {"name": "sgd", "learning_rate": 0.1}})
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def test_command(capsys: pytest.CaptureFixture, file: Path) -> None:
    arguments = ["plan", "--config", str(file), "--device", "8GB", "--num-classes", "10"]
    assert cli.main([*arguments, "--no-search", "--config.data.batch_size", "24"]) == 0
    out = capsys.readouterr().out
    assert "test_resnet: 24 images a step on 1 x 8GB (data=1)" in out
    assert "it fits" in out
    assert "there is" in out
    assert "6.000" in out  # three quarters of 8 GiB
    assert cli.main([*arguments, "--json", "--no-search"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plans"][0]["batch_size"] == 8
    assert found["plans"][0]["fits"]


def test_command_tells_what_does_not_fit(capsys: pytest.CaptureFixture, file: Path) -> None:
    arguments = ["plan", "--config", str(file), "--device", "0.05GB", "--num-classes", "10"]
    assert cli.main([*arguments, "--config.data.batch_size=512"]) == 1
    out = capsys.readouterr().out
    assert "it does NOT fit" in out
    largest = int(out.partition("largest batch that fits: ")[2].partition(",")[0])
    assert 16 < largest < 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e"], "a topology is a TPU and its grid, such as v5e:2x4; got 'v5e'"),
        (["--topology", "v5:2x4"], "unknown TPU 'v5'; did you mean"),
        (["--device", "h10"], "unknown device (or memory, such as 8GB) 'h10'; did you mean 'h100'"),
        ([], "a plan is for TPUs (--topology v5e:2x4) or for a GPU"),
        (["--device", "h100", "--topology", "v5e:2x4"], "a plan is for TPUs"),
        (["--device", "h100", "--config.data.batchsize=3"], "unknown config key 'data.batchsize'; did you mean data."),
        (["--device", "h100", "--batch-size", "3"], "unrecognized arguments: --batch-size; see"),
        (["--device", "h100", "--foo", "--config.seed=1"], "unrecognized arguments: --foo; see"),
        (["--topology", "v5e:2x4x4"], "the grid of a v5e has 2 sides of at most 16 chips"),
        (["--topology", "v6e:32x16"], "the grid of a v6e has 2 sides of at most 16 chips"),
        (["--device", "0GB"], "a device has some memory"),
        (["--device", "h100", "--num-classes", "0"], "1 or more classes"),
        (["--device", "h100", "--config.data.batch_size", "8", "16"], "unknown flag '16'"),
        (["--device", "h100", "--config.data.batch_size=0"], "1 or more classes, channels, pixels and images"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture, file: Path, arguments: list[str], message: str) -> None:
    assert cli.main(["plan", "--config", str(file), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_what_is_computed_twice_is_no_work_of_the_model(file: Path) -> None:
    found = []
    for remat in (None, "nothing"):
        given = run.complete(load(str(file)))
        given.train.remat = remat
        found += run.plan(given, device="h100", num_classes=10, compare=False, search=False).plans
    once, twice = found
    assert once.useful == 1
    assert twice.flops > 1.1 * once.flops
    assert twice.flops * twice.useful == pytest.approx(once.flops)


def test_without_libtpu(capsys: pytest.CaptureFixture, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert cli.main(["plan", "--config", str(file), "--topology", "v5e:2x4"]) == 2
    assert (
        capsys.readouterr().err
        == "error: compiling for a TPU needs the package 'libtpu'; in the checkout: pip install '.[tpu]'\n"
    )


def grid(*sides: int) -> list[SimpleNamespace]:
    """Returns chips as libtpu numbers them."""
    return [SimpleNamespace(coords=(*place[::-1], 0)) for place in np.ndindex(*sides[::-1])]


@pytest.mark.parametrize(
    ("sides", "group", "links"),
    [
        ((2, 4), range(8), 2),  # two lines, open at their ends
        ((16, 16), range(256), 4),  # two rings
        ((16, 16), range(16), 2),  # one ring
        ((16, 16), range(8), 1),  # half of it is a line
        ((16, 16), range(0, 256, 16), 2),
        ((1, 1), [0], 0),
    ],
)
def test_links(sides: tuple[int, int], group: range, links: int) -> None:
    chip, everyone = plan.Chip("x", 1.0, link=10.0, torus=16), grid(*sides)
    assert plan.link_speed(chip, [everyone[i] for i in group], everyone) == 10.0 * links


def test_meshes_that_are_compared() -> None:
    three = [({"data": -1}, False), ({"data": -1}, True), ({"data": 1, "fsdp": -1}, False)]
    assert plan.candidates(grid(2, 4)) == three
    assert plan.candidates(grid(16, 16)) == [*three, ({"data": 16, "fsdp": 16}, False)]
    assert mesh_text({"data": 16, "fsdp": 16}) == "data=16, fsdp=16"
    assert mesh_text({"data": 1, "fsdp": 8}) == "fsdp=8"
    assert mesh_text({"fsdp": 1}, zero1=True) == "data=1, ZeRO-1"


@pytest.mark.libtpu
def test_grids() -> None:
    devices, chip = plan.topology("v5e:2x4")
    assert (len(devices), chip.name, plan.link_speed(chip, devices, devices)) == (8, "v5e", 2 * chip.link)
    devices, chip = plan.topology("v5p:4x4x4")
    assert plan.link_speed(chip, devices, devices) == 6 * chip.link
    mesh = make_mesh({"data": 4, "fsdp": 16}, devices=devices)
    assert [plan.link_speed(chip, list(x), devices) for x in (mesh.devices[:, 0], mesh.devices[0])] == [
        2 * chip.link,
        4 * chip.link,
    ]
    with pytest.raises(UserError, match="does not lie along the sides of these TPUs' grid"):
        make_mesh({"data": 8, "fsdp": 8}, devices=devices)
    two = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2).devices
    mesh = make_mesh({"data": 2, "fsdp": 8}, devices=two)
    assert [{chip.slice_index for chip in row} for row in mesh.devices] == [{0}, {1}]
    assert len(plan.topology("v5e:1x1")[0]) == 1
    with pytest.raises(UserError, match="libtpu knows no topology 'v5e:3x5'"):
        plan.topology("v5e:3x5")


@pytest.mark.slow
@pytest.mark.libtpu
def test_plan_for_a_pod(file: Path) -> None:
    """A chip of 8 and a chip of 256 hold the same; gradients are summed over all of them."""
    given = config(data={"batch_size": 8}, model={"dtype": "bfloat16"})
    options = {"num_classes": 10, "compare": False}
    answers = run.plan_scaling(given, ["v5e:2x4", "v5e:16x16"], **options)
    (small,), (pod,) = (answer.plans for answer in answers.values())
    assert (small.batch_size, pod.batch_size) == (8, 256)
    assert small.bytes["parameters"] == pod.bytes["parameters"] > 0
    assert small.flops == pod.flops
    for done, devices in ((small, 8), (pod, 256)):
        reduced = [row for row in done.collectives if row.kind == "all-reduce" and row.devices == devices]
        assert sum(row.bytes for row in reduced) >= done.bytes["parameters"] / 2  # bfloat16 gradients
        assert done.in_turn_seconds > done.step_seconds >= done.seconds["interconnect"] > 0

    large = config(data={"batch_size": 2**17}, model={"image_size": 160})
    (refused,) = run.plan(large, topology="v5e:1x1", num_classes=10, search=False).plans
    assert refused.refused
    assert refused.total > refused.chip.memory


@pytest.mark.slow
@pytest.mark.libtpu
def test_meshes_of_a_vit() -> None:
    """What each mesh holds and sends, of a ViT whose blocks are a loop."""
    given = config(
        model={"name": "test_vit", "image_size": 160, "dtype": "bfloat16"},
        train={"scan": True, "ema_decay": 0.99},
        sharding={"min_size": 1},
    )
    answer = run.plan(given, topology="v5e:2x4", num_classes=8, search=False)
    plans = {mesh_text(done.mesh, zero1=done.zero1): done for done in answer.plans}
    assert plans.keys() == {"data=8", "data=8, ZeRO-1", "fsdp=8"}
    assert answer.plans[0] is min(answer.plans, key=lambda done: done.in_turn_seconds)
    data, zero1, fsdp = plans["data=8"], plans["data=8, ZeRO-1"], plans["fsdp=8"]
    whole = data.bytes["parameters"]
    assert zero1.bytes["parameters"] == whole > 7 * fsdp.bytes["parameters"]
    for kind in ("optimizer", "ema"):
        assert data.bytes[kind] > 7 * zero1.bytes[kind] == 7 * fsdp.bytes[kind]

    assert fsdp.bytes["activations and gradients"] < data.bytes["activations and gradients"]

    def gathered(done: plan.Plan) -> float:
        return sum(row.bytes for row in done.collectives if row.kind == "all-gather")

    assert gathered(data) == 0
    assert 0.9 * whole < gathered(zero1) < 1.1 * whole  # what was updated, in float32
    assert 0.75 * whole < gathered(fsdp) < 2.1 * whole  # for each pass; in bfloat16, where the compiler casts before


@pytest.mark.libtpu
def test_quick_is_another_program_of_the_same_step() -> None:
    """The compiler's least effort; JAX has had several names for it."""
    given = config(data={"batch_size": 64})
    best, quick = (
        run.plan(given, topology="v5e:1x1", num_classes=10, search=False, quick=quick).plans[0]
        for quick in (False, True)
    )
    assert quick.flops == best.flops
    assert quick.bytes["parameters"] == best.bytes["parameters"]
    assert quick.accessed > 1.1 * best.accessed


def test_a_quick_plan_says_so() -> None:
    done = plan.Plan(chips.TPUS["v5e"], {"data": 1}, False, 8, {}, 1e12, accessed=1e9)
    facts = {"topology": "v5e:1x1", "num_classes": 10, "stored": None, "backend": "cpu"}
    assert not [line for line in plan.assumptions(done, **facts) if "--quick" in line]
    assert [line for line in plan.assumptions(done, quick=True, **facts) if "--quick" in line]


@pytest.mark.slow
@pytest.mark.libtpu
def test_remat_on_a_tpu() -> None:
    """XLA's CPU backend undoes it; the TPU's keeps the less, the less it may. In a loop the default is "products"."""
    arenas = {}
    for remat in (None, "products", "nothing"):
        given = config(
            data={"batch_size": 64},
            model={"name": "test_vit", "image_size": 160, "dtype": "bfloat16", "depth": 12},
            train={"remat": remat, "scan": True},
        )
        (done,) = run.plan(given, topology="v5e:1x1", num_classes=10, search=False).plans
        arenas[remat] = done.bytes["activations and gradients"]
    assert arenas["nothing"] < 0.7 * arenas["products"]
    assert arenas["products"] == arenas[None]


def test_fsdp_gathers_for_each_pass() -> None:
    """Twice a step: a device that kept what it gathered would hold the whole model from one pass to the other."""
    mesh = make_mesh({"fsdp": 8})
    given = config(model={"name": "test_vit", "image_size": 32}, train={"scan": True}, sharding={"min_size": 1})
    full = run.complete(given)
    facts = {"num_classes": 10, "channels": 1, "stored": (8, 8, 1), "steps_per_epoch": 10.0}
    program = run_program.train_program(full, mesh, **facts)
    text = program.step.trace(program.abstract, program.batch).lower().compile().as_text()
    blocks = program.abstract["model"]["blocks"]
    split = sum(x.size * 4 for x in jax.tree.leaves(blocks) if x.size % 8 == 0 and x.size > 8)
    whole = sum(x.size * 4 for x in jax.tree.leaves(program.abstract["model"]))
    (gathered,) = [row for row in plan.collectives(text, mesh) if row.kind == "all-gather"]
    assert split > whole / 2
    assert 2 * split < gathered.bytes < 2 * whole


@pytest.mark.parametrize(("axes", "left_open"), [({"data": 1}, True), ({"fsdp": 8}, False)])
def test_a_block_takes_one_platforms_way(axes: dict, left_open: bool) -> None:
    """The other way's intermediate values would be zeros of the whole batch on every device."""
    mesh = make_mesh(axes, devices=jax.devices()[: math.prod(axes.values())])
    full = run.complete(config(model={"name": "test_vit", "image_size": 32}))
    program = run_program.train_program(full, mesh, num_classes=10, images=FromMemory((8, 8, 1)), steps_per_epoch=10.0)
    assert ("platform_index" in str(program.step.trace(program.abstract, program.batch).jaxpr)) == left_open
