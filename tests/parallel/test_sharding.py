"""Every kind of mesh computes what one device does, with the expected layout and the expected communication."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.layers.mode import train_view
from jaxvision.models.layers.norm import BatchNorm
from jaxvision.parallel.mesh import make_mesh, shard_batch
from jaxvision.parallel.rules import make_rules, spec_of, state_shardings
from jaxvision.plan import count_collectives
from jaxvision.train.blocks import Blocks
from jaxvision.train.loss import make_loss
from jaxvision.train.state import abstract_state, create_state, evaluated_state, gather_model, initialize
from jaxvision.train.step import make_train_step

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs the eight fake devices of conftest.py")

FAMILIES = ("test_resnet", "test_vit", "test_efficientnet")
MESHES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "data": ({"data": 8}, {}),
    "fsdp": ({"fsdp": 8}, {}),
    "three axes": ({"data": 2, "fsdp": 2, "tensor": 2}, {}),
    "zero1": ({"data": 8}, {"zero1": True}),
}
BATCH, SIZE = 16, 64


class Run:
    """A training state on a mesh and its step, as `jaxvision.run.program.train_program` creates them."""

    def __init__(
        self,
        name: str,
        axes: dict[str, int],
        *,
        zero1: bool = False,
        remat: str | None = None,
        scan: bool = False,
        batch_norm_group: int | None = None,
        **options: Any,
    ):
        self.traces = 0
        devices = jax.devices()[: math.prod(axes.values())]
        self.mesh = make_mesh(axes, devices=devices)
        size = {"image_size": SIZE} if "vit" in name else {}
        family = registry.variant(name).build
        rules = make_rules(self.mesh, family.tensor_rules, zero1=zero1, min_size=1)

        def model() -> nnx.Module:
            return registry.build(name, num_classes=10, rngs=nnx.Rngs(0), **size, **options)

        # Small steps, because twenty large ones would amplify rounding errors.
        create = functools.partial(create_state, tx=optax.sgd(0.01, momentum=0.9), ema_decay=0.9)
        self.graph, self.abstract = abstract_state(create, model)
        self.shardings = state_shardings(self.abstract, self.mesh, rules.stored, moments=rules.moments, unused_ok=True)
        self.create, self.model = create, model
        blocks = Blocks(self.mesh, rules, pattern=family.block_pattern, remat=remat, scan=scan)
        self.step = make_train_step(
            self.graph,
            mesh=self.mesh,
            shardings=self.shardings,
            loss=make_loss(),
            prepare=self.prepare,
            learning_rate=0.01,
            blocks=None if blocks.is_default else blocks,
            batch_norm_group=batch_norm_group,
        )

    def prepare(self, batch: Any, step: Any) -> tuple[jax.Array, jax.Array]:
        self.traces += 1  # runs once per trace of the step
        return batch["image"].astype(jnp.float32) / 127.5 - 1, batch["label"]

    @functools.cached_property
    def state(self) -> Any:
        return initialize(self.create, self.model, self.shardings)

    def batch(self, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        # Each class has its own spots under some noise. Noise alone cannot be learned, and rounding errors would grow.
        labels = rng.integers(0, 10, BATCH)
        spots = np.random.default_rng(99).integers(0, 192, (10, SIZE // 16, SIZE // 16, 3))[labels]
        images = spots.repeat(16, axis=1).repeat(16, axis=2) + rng.integers(0, 64, (BATCH, SIZE, SIZE, 3))
        return shard_batch(
            {
                "image": images.astype(np.uint8),
                "label": labels.astype(np.int32),
                "index": np.arange(BATCH, dtype=np.int32),
                "mask": np.ones(BATCH, bool),
            },
            self.mesh,
        )

    def losses(self, steps: int, *, start: int = 0) -> list[float]:
        found = []
        for i in range(start, start + steps):
            self.state, metrics = self.step(self.state, self.batch(i))
            found.append(float(metrics["loss"]))
        return found

    def bytes_of(self, part: str) -> int:
        leaves = [x for x in jax.tree.leaves(self.state[part]) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
        return sum(x.addressable_shards[0].data.nbytes for x in leaves)

    def program(self) -> str:
        return self.lowered().compile().as_text()

    def lowered(self) -> Any:
        return self.step.lower(self.abstract, self.batch(0))


def smooth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the ReLU of a ResNet by a smooth activation.

    The gradient of a ReLU jumps at zero. In so small a model, rounding one input near zero changes a kernel's gradient
    by a hundredth, and the difference grows.
    """
    if "resnet" in name:
        monkeypatch.setattr(jax.nn, "relu", jax.nn.silu)


@functools.cache
def alone(name: str, steps: int) -> tuple[list[float], dict[str, int]]:
    """Returns the losses on one device, and the bytes of its state."""
    run = Run(name, {"data": 1})
    return run.losses(steps), {part: run.bytes_of(part) for part in ("model", "optimizer", "ema")}


def slow_but(*names: str) -> list[Any]:
    return [pytest.param(name, marks=[] if name in names else pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [
        *(pytest.param(name, kind, 20, marks=pytest.mark.slow) for name in FAMILIES for kind in MESHES),
        ("test_vit", "three axes", 3),
    ],
)
def test_every_mesh_computes_what_one_device_does(
    name: str, kind: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of every step, the bytes of each part on a device, one trace, and the collectives of the program."""
    smooth(name, monkeypatch)
    axes, options = MESHES[kind]
    expected, whole = alone(name, steps)
    run = Run(name, axes, **options)
    text = run.program()
    losses, traces = run.losses(1), run.traces
    np.testing.assert_allclose([*losses, *run.losses(steps - 1, start=1)], expected, rtol=1e-5)
    assert run.traces == traces
    held = {part: run.bytes_of(part) / whole[part] for part in whole}
    match kind:
        case "data":
            assert held == {"model": 1, "optimizer": 1, "ema": 1}
        case "fsdp":
            assert max(held.values()) <= 1 / 7
        case "zero1":
            assert held["model"] == 1
            assert max(held["optimizer"], held["ema"]) <= 1 / 7
        case _:
            assert max(held.values()) <= 1 / 2

    found = count_collectives(text, run.mesh)
    kinds = Counter({(row.kind, row.axis): row.count for row in found})
    assert not [row for row in found if row.kind in ("all-to-all", "ragged-all-to-all")], found
    if kind == "data":
        assert {row.kind for row in found} <= {"all-reduce"}, kinds
    if kind in ("fsdp", "zero1"):
        # Parameters are gathered one by one, so the largest message is the largest parameter, not an image.
        sizes = {x.size * 4 for x in jax.tree.leaves(run.abstract["model"]) if x.dtype == jnp.float32}
        assert largest_gather(text) in sizes
        assert {row.kind for row in found} <= {"all-reduce", "all-gather", "reduce-scatter"}, kinds


def largest_gather(text: str) -> int:
    """Returns the bytes of the largest all-gather."""
    shapes = re.findall(r" = f32\[([\d,]*)\]\S* all-gather\(", text)
    return max(4 * math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)


@pytest.mark.slow
def test_a_resnet_with_its_own_activation() -> None:
    one, many = Run("test_resnet", {"data": 1}), Run("test_resnet", {"data": 2, "fsdp": 2, "tensor": 2})
    np.testing.assert_allclose(many.losses(5), one.losses(5), rtol=1e-5)


@pytest.mark.parametrize("remat", [pytest.param("products", marks=pytest.mark.slow), "nothing"])
@pytest.mark.parametrize("name", slow_but("test_vit"))
def test_rematerialization_computes_the_same(name: str, remat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth(name, monkeypatch)
    np.testing.assert_allclose(Run(name, {"data": 1}, remat=remat).losses(3), alone(name, 3)[0], rtol=1e-6)


def test_blocks_as_one_program() -> None:
    """With dropout and a different stochastic depth in each block: same numbers, and a program of constant size."""
    options = {"drop_path": 0.3, "dropout": 0.1, "depth": 3}
    one, many = (Run("test_vit", {"data": 1}, scan=scan, **options) for scan in (True, False))
    np.testing.assert_allclose(one.losses(3), many.losses(3), rtol=1e-5)
    for x, y in zip(jax.tree.leaves(one.state), jax.tree.leaves(many.state), strict=True):
        assert x.shape == y.shape  # checkpoints fit both
    products = {}
    for depth in (2, 4):
        for scan in (True, False):
            run = Run("test_vit", {"data": 1}, scan=scan, depth=depth)
            products[depth, scan] = run.lowered().as_text().count("dot_general")
    assert products[4, True] == products[2, True]
    assert products[4, False] > 1.5 * products[2, False]


@pytest.mark.slow
def test_gradients_are_laid_out_as_moments_and_images_stay_split() -> None:
    """The layout is constrained where a block gathers its parameters, and behind each block."""
    mesh = make_mesh({"data": 2, "fsdp": 4})
    blocks = Blocks(mesh, make_rules(mesh, zero1=True, min_size=1))
    model = registry.build("test_vit", num_classes=10, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(train_view(model).blocks[0], nnx.Param, ...)
    x = jnp.zeros((8, 5, 64))

    def run(params: Any, x: jax.Array) -> jax.Array:
        return blocks("blocks", [nnx.merge(graph, params, rest, copy=True)], x)

    everywhere = NamedSharding(mesh, P())
    params, x = jax.device_put((params, x), everywhere)
    assert jax.jit(run)(params, x).sharding.spec == P(("data", "fsdp"))
    gradient = jax.jit(jax.grad(lambda params: run(params, x).sum()))(params)
    assert gradient["attn"]["qkv"]["kernel"].get_value().sharding.shard_shape((64, 192)) == (64 // 2, 192 // 4)


@pytest.mark.slow
def test_blocks_that_differ_are_run_one_by_one() -> None:
    expected, _ = alone("test_efficientnet", 2)
    np.testing.assert_allclose(Run("test_efficientnet", {"fsdp": 2}, scan=True).losses(2), expected, rtol=1e-5)


def test_rematerialization_keeps_less() -> None:
    """Bytes of the residuals. XLA's CPU backend undoes rematerialization, so its own count would not show it."""
    mesh = make_mesh({"data": 1}, devices=jax.devices()[:1])
    images = jnp.zeros((BATCH, SIZE, SIZE, 3))

    def kept(name: str, remat: str | None, **options: Any) -> int:
        model = registry.build(name, num_classes=10, rngs=nnx.Rngs(0), **options)
        blocks = Blocks(mesh, make_rules(mesh), remat=remat)
        graph, params, rest = nnx.split(nnx.view(train_view(model), run_blocks=blocks), nnx.Param, ...)

        def loss(params: Any) -> jax.Array:
            return nnx.merge(graph, params, rest, copy=True)(images).sum()

        residuals = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        return sum(x.size * 4 for x in jax.tree.leaves(residuals))

    for name, options in (("test_vit", {"image_size": SIZE}), ("test_resnet", {}), ("test_efficientnet", {})):
        everything, products, nothing = (kept(name, remat, **options) for remat in (None, "products", "nothing"))
        assert nothing < products < 0.85 * everything, (name, nothing, products, everything)


def test_batch_norm_in_groups() -> None:
    """Groups of two images equal separate batches of two."""
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 4)) * jnp.arange(1, 9).reshape(8, 1, 1, 1)
    whole, grouped = BatchNorm(4, rngs=nnx.Rngs(0)), BatchNorm(4, rngs=nnx.Rngs(0))
    training = nnx.view(grouped, use_running_average=False, batch_norm_group=2)
    parts = [nnx.view(whole, use_running_average=False)(part) for part in jnp.split(x, 4)]
    np.testing.assert_allclose(training(x), jnp.concatenate(parts), atol=1e-6)
    means = jnp.stack([part.mean((0, 1, 2)) for part in jnp.split(x, 4)])
    np.testing.assert_allclose(grouped.mean[...], 0.1 * means.mean(0), atol=1e-6)
    with pytest.raises(UserError, match="batch_norm_group: got 3 for a batch of 8 images"):
        nnx.view(grouped, use_running_average=False, batch_norm_group=3)(x)


@pytest.mark.slow
def test_batch_norm_groups_within_a_device_need_no_communication() -> None:
    run = Run("test_resnet", {"data": 8}, batch_norm_group=BATCH // 8)
    whole = Run("test_resnet", {"data": 8})
    counts = [sum(row.count for row in count_collectives(each.program(), each.mesh)) for each in (run, whole)]
    assert counts[0] < counts[1] / 4, counts
    np.testing.assert_allclose(
        run.losses(2), Run("test_resnet", {"data": 1}, batch_norm_group=BATCH // 8).losses(2), rtol=1e-5
    )


@pytest.mark.parametrize(("axes", "devices"), [({"fsdp": 2}, 2), ({"data": 2}, 1)])
def test_gather_model_returns_the_average(axes: dict, devices: int) -> None:
    """The exported model is the average. It stays split where it is, and whole on one device if each holds a copy."""
    run = Run("test_vit", axes)
    graph = nnx.graphdef(nnx.eval_shape(run.model))
    model = gather_model(graph, evaluated_state(run.state))
    assert {len(x.devices()) for x in jax.tree.leaves(nnx.state(model))} == {devices}
    expected = jax.tree.map(lambda x: 2 * x, run.state["ema"]["params"])
    found = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    run.state["ema"]["params"] = expected
    twice = nnx.state(gather_model(graph, evaluated_state(run.state)), nnx.Any(nnx.Param, nnx.BatchStat))
    jax.tree.map(
        lambda once, two, all: np.testing.assert_array_equal([2 * once, two], [all, all]), found, twice, expected
    )
    assert model(jnp.zeros((2, SIZE, SIZE, 3))).shape == (2, 10)


TENSOR_LAYOUTS = [
    ("test_vit", "blocks.0.mlp.fc1.kernel", (64, 256), P(None, "tensor"), P("fsdp", "tensor"), P("fsdp", "tensor")),
    ("test_vit", "blocks.0.attn.proj.kernel", (64, 64), P("tensor"), P("tensor", "fsdp"), P("tensor", "fsdp")),
    ("test_vit", "blocks.0.norm1.scale", (64,), P(), P("fsdp"), P("fsdp")),
    ("test_vit", "blocks.0.mlp.fc1.kernel", (63, 255), P(), P(), P()),  # 2 devices divide neither axis
    (
        "test_resnet",
        "layer1.0.conv1.kernel",
        (3, 3, 16, 32),
        P(None, None, None, "tensor"),
        P(None, None, "fsdp", "tensor"),
        P(None, None, "fsdp", "tensor"),
    ),
    ("test_resnet", "conv1.kernel", (4, 4, 16, 32), P(), P(None, None, None, "fsdp"), P(None, None, "data", "fsdp")),
    ("test_efficientnet", "blocks.1.0.bn1.scale", (64,), P("tensor"), P("tensor"), P("tensor")),
    ("test_efficientnet", "blocks.0.0.bn1.scale", (64,), P(), P("fsdp"), P("fsdp")),  # this stage does not expand
]


@pytest.mark.parametrize(("name", "leaf", "shape", "used", "stored", "moments"), TENSOR_LAYOUTS)
def test_rules_of_each_mesh_axis(name: str, leaf: str, shape: tuple, used: P, stored: P, moments: P) -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rules = make_rules(mesh, registry.variant(name).build.tensor_rules, zero1=True, min_size=1)
    found = [spec_of(table, leaf, shape) for table in (rules.used, rules.stored, rules.moments)]
    assert found == [used, stored, moments]
