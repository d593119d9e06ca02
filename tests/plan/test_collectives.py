"""Counts the collectives of programs: of a text counted by hand, and of a compiled step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvision import plan
from jaxvision.analysis.cost import operations
from jaxvision.parallel.mesh import make_mesh
from jaxvision.plan.collectives import replica_groups

# Instructions as XLA writes them for CPUs, GPUs and TPUs. Both loops run five times: the compiler noted the count of
# one, the condition of the other compares with 5. A fusion that reduces and keeps a slice is a reduce-scatter.
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
    rows = plan.count_collectives(PROGRAM, AbstractMesh((4, 2), ("data", "fsdp")))
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
def test_replica_groups(text: str, groups: list) -> None:
    np.testing.assert_array_equal(replica_groups(f"channel_id=1, {text}, to_apply=%add", 4), groups)


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 4, "model": 2}])
def test_collectives_of_a_compiled_step(axes: dict) -> None:
    """Five steps of a linear model in a scan. Each sums a gradient of 24 x 3 floats over the batch axis."""
    mesh = make_mesh(axes)

    def steps(w: jax.Array, x: jax.Array) -> jax.Array:
        def one(w: jax.Array, _: None) -> tuple[jax.Array, None]:
            return w - jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w), None

        return jax.lax.scan(one, w, None, length=5)[0]

    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    step = jax.jit(steps, in_shardings=(whole, split), out_shardings=whole)
    traced = step.trace(jax.ShapeDtypeStruct((24, 3), "float32"), jax.ShapeDtypeStruct((16, 24), "float32"))
    (row,) = plan.count_collectives(traced.lower().compile().as_text(), mesh)
    assert (row.kind, row.axis, row.devices, row.bytes) == ("all-reduce", "data", axes["data"], 5 * 24 * 3 * 4)
    forward_and_gradient = 2 * (2 * 16 * 24 * 3)
    assert operations(traced.jaxpr.jaxpr) == 5 * forward_and_gradient
