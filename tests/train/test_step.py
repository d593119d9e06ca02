"""jaxvision.train.step and state: one compiled step, on one device or eight, for any choice of parameters."""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import tiny

from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.layers.frozen import Frozen
from jaxvision.models.layers.mode import train_view
from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import largest_axis
from jaxvision.train.loss import make_loss
from jaxvision.train.optim import create_optimizer
from jaxvision.train.state import evaluated_state
from jaxvision.train.step import check_finite

EMA = {"ema_decay": 0.9}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], err_msg=name, **tolerance)


@pytest.mark.skipif(not flax.config.nnx_graph_mode, reason="nnx.grad of a module with random streams needs graph mode")
def test_equals_the_plain_nnx_loop() -> None:
    """The same three steps with nnx.value_and_grad and in-place updates, as in the Flax documentation."""
    tx = optax.adamw(0.01)
    run = tiny.Run(tiny.build(dropout=0.2), tx, create=EMA)
    metrics = run.train(3)

    model = tiny.build(dropout=0.2)()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, batch: dict) -> tuple[jax.Array, jax.Array]:
        def objective(model: nnx.Module) -> jax.Array:
            images, labels = tiny.prepare(batch)
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        loss, grads = nnx.value_and_grad(objective)(train_view(model))
        optimizer.update(model, grads)
        return loss, optax.tree.norm(grads)

    for i in range(3):
        loss, norm = step(model, optimizer, tiny.batch(seed=i))
        np.testing.assert_allclose(metrics[i]["loss"], loss, rtol=1e-6)
        np.testing.assert_allclose(metrics[i]["grad_norm"], norm, rtol=1e-5)
    assert_same(
        {name.removeprefix("model."): x for name, x in run.arrays().items() if name.startswith("model.")},
        tiny.arrays(nnx.state(model)),
        rtol=1e-4,
        atol=1e-6,
    )


def test_updates_the_whole_state_and_traces_once() -> None:
    traces = []

    def prepare(batch, step):
        traces.append(step)
        return tiny.prepare(batch)

    run = tiny.Run(tiny.build(dropout=0.2), optax.adam(0.01), create=EMA, prepare=prepare)
    before = run.arrays()
    run.train(3)
    after = run.arrays()
    assert len(traces) == 1
    same = {name for name in before if (before[name] == after[name]).all()}
    assert same == {"model.drop.rngs.key"}  # a stream is (key, count), and only the count changes
    assert after["optimizer.step"] == 3
    assert after["model.drop.rngs.count"] == before["model.drop.rngs.count"] + 3


def test_same_on_one_device_and_eight() -> None:
    """Nothing (BatchNorm, dropout, masks, averages) depends on how the batch is split."""
    one = tiny.Run(tiny.build(dropout=0.2), optax.sgd(0.1, momentum=0.9), create=EMA)
    many = tiny.Run(tiny.build(dropout=0.2), optax.sgd(0.1, momentum=0.9), create=EMA, devices=8)
    for a, b in zip(one.train(3), many.train(3), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=2e-6)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-5)
    assert_same(one.arrays(), many.arrays(), rtol=1e-5, atol=1e-6)


def test_fully_sharded_parameters_give_the_same() -> None:
    """A table that splits every parameter, its moments and its average over eight devices."""
    one = tiny.Run(tiny.build(), optax.adam(0.01), create=EMA)
    table = [(r".*", largest_axis("data", make_mesh(), min_size=1))]
    many = tiny.Run(tiny.build(), optax.adam(0.01), create=EMA, devices=8, table=table)
    one.train(2)
    many.train(2)
    split = {
        name: x.sharding.shard_shape(x.shape) != x.shape
        for name, x in ((p, x) for p, x in zip(many.arrays(), jax.tree.leaves(many.state), strict=True))
    }
    for prefix in ("model", "optimizer.opt_state.0.mu", "optimizer.opt_state.0.nu", "ema.params"):
        assert split[f"{prefix}.conv.kernel"], prefix
        assert split[f"{prefix}.fc.kernel"], prefix
        assert not split[f"{prefix}.fc.bias"], prefix  # 4 classes are not divisible by 8
    assert_same(one.arrays(), many.arrays(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_accumulation_is_the_whole_batch(devices: int) -> None:
    """Without BatchNorm and dropout, microbatches give the loss and the gradient of the batch, even with padding."""
    whole = tiny.Run(tiny.build(norm=False), optax.sgd(0.1))
    parts = tiny.Run(tiny.build(norm=False), optax.sgd(0.1), accumulate=4, devices=devices)
    for run in (whole, parts):
        run.state, run.metrics = run.step(run.state, tiny.batch(32, masked=5))
    for key in whole.metrics:
        np.testing.assert_allclose(whole.metrics[key], parts.metrics[key], rtol=2e-6, err_msg=key)
    assert_same(whole.arrays(), parts.arrays(), rtol=1e-5, atol=1e-7)


def test_accumulation_of_bfloat16_gradients_sums_in_float32() -> None:
    """Seven small gradients after a large one, which a sum in bfloat16 ignores."""

    class Scale(nnx.Module):
        def __init__(self) -> None:
            self.scale = nnx.Param(jnp.zeros((), jnp.bfloat16))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.scale[...] * x.astype(jnp.bfloat16)

    run = tiny.Run(
        Scale,
        optax.sgd(1.0),
        accumulate=8,
        prepare=lambda batch, step: (batch["image"], batch["label"]),
        loss=lambda logits, targets: logits[:, 0],
    )
    # The loss of an image x is scale * x. Hence the gradient is the mean of the images, 130.6, or 131 in bfloat16.
    images = np.array([[1024.0], *[[3.0]] * 7], np.float32)
    batch = {"image": images, "label": np.zeros(8, np.int32), "mask": np.ones(8, bool)}
    run.state, _ = run.step(run.state, batch)
    assert run.arrays()["model.scale"].dtype == jnp.bfloat16
    assert float(run.arrays()["model.scale"]) == -131


def test_accumulation_carries_batch_statistics_and_dropout() -> None:
    run = tiny.Run(tiny.build(dropout=0.2), optax.sgd(0.0), accumulate=2)
    before = run.arrays()
    images = tiny.prepare(tiny.batch(8))[0]
    run.state, _ = run.step(run.state, tiny.batch(8))
    after = run.arrays()
    # By hand: two updates of the running mean, with the means of images 0, 2, 4, 6 and of 1, 3, 5, 7.
    conv = tiny.build()().conv
    expected = jnp.zeros(8)
    for part in (images[::2], images[1::2]):
        expected = 0.9 * expected + 0.1 * conv(part).mean((0, 1, 2))
    np.testing.assert_allclose(after["model.bn.mean"], expected, rtol=1e-5, atol=1e-7)
    assert after["model.drop.rngs.count"] == before["model.drop.rngs.count"] + 2
    assert after["optimizer.step"] == 1


def test_padding_has_no_effect() -> None:
    run, short = (tiny.Run(tiny.build(norm=False), optax.sgd(0.1)) for _ in range(2))
    padded = tiny.batch(8, masked=3)
    padded["label"][5:] = 999  # the loss of such a label is NaN, which must not matter in padding
    run.state, metrics = run.step(run.state, padded)
    short.state, expected = short.step(short.state, {key: x[:5] for key, x in tiny.batch(8).items()})
    for key in expected:
        np.testing.assert_allclose(metrics[key], expected[key], rtol=1e-6, err_msg=key)
    assert_same(run.arrays(), short.arrays(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("what", ["head", "lora"])
def test_only_params_train(what: str) -> None:
    """Frozen leaves do not change and have no gradient, moments or average."""

    def build() -> nnx.Module:
        model = tiny.build(norm=False)()
        if what == "lora":
            model.fc = nnx.LoRA(8, 2, 4, base_module=model.fc, rngs=nnx.Rngs(1))
        for name, layer in (("conv", model.conv), ("fc", model.fc)):
            for leaf, x in list(vars(layer).items()):
                if type(x) is nnx.Param and (what == "lora" or name == "conv"):
                    setattr(layer, leaf, Frozen(x[...]))
        if what == "lora":
            base = model.fc.base_module
            base.kernel, base.bias = Frozen(base.kernel[...]), Frozen(base.bias[...])
        return model

    run = tiny.Run(build, optax.adam(0.1), create=EMA)
    before = run.arrays()
    run.train(3)
    after = run.arrays()
    trained = {"head": {"fc.kernel", "fc.bias"}, "lora": {"fc.lora_a", "fc.lora_b"}}[what]
    model = {name for name in before if name.startswith("model.") and ".rngs." not in name}
    assert {name for name in model if (before[name] != after[name]).any()} == {f"model.{t}" for t in trained}
    assert {name for name in before if name.startswith("ema.")} == {f"ema.params.{t}" for t in trained}
    assert {name for name in before if ".mu." in name} == {f"optimizer.opt_state.0.mu.{t}" for t in trained}


def test_a_model_with_weights_is_copied_and_stays_usable() -> None:
    model = tiny.build()()
    model.fc.bias[...] = jnp.full(4, 7.0)
    run = tiny.Run(model, optax.sgd(0.1), create=EMA, devices=8)
    assert (run.arrays()["model.fc.bias"] == 7).all()
    assert (run.arrays()["ema.params.fc.bias"] == 7).all()
    run.train(2)
    assert (np.asarray(model.fc.bias[...]) == 7).all()  # neither donated nor trained


def test_initialize_shards_every_leaf() -> None:
    run = tiny.Run(tiny.build(), optax.adam(0.1), devices=8)
    for x, sharding in zip(jax.tree.leaves(run.state), jax.tree.leaves(run.shardings), strict=True):
        assert x.sharding == sharding


@pytest.mark.parametrize("culprit", ["image", "label"])
def test_a_step_that_is_not_finite_does_not_change_the_state(culprit: str) -> None:
    def prepare(batch, step):
        images, labels = tiny.prepare(batch)
        return images + batch["noise"][:, None, None, None], labels

    run = tiny.Run(tiny.build(dropout=0.2), optax.adam(0.1), create=EMA, prepare=prepare)
    good = {**tiny.batch(), "noise": np.zeros(16, np.float32)}
    run.state, metrics = run.step(run.state, good)
    check_finite(metrics, 0)
    before = run.arrays()
    bad = {key: x.copy() for key, x in good.items()}
    if culprit == "image":
        bad["noise"][3] = np.inf
    else:
        bad["label"][3] = 4  # there are four classes, 0 to 3
    run.state, metrics = run.step(run.state, bad)
    assert not metrics["finite"]
    after = run.arrays()
    for name in before:
        assert before[name].tobytes() == after[name].tobytes(), name
    with pytest.raises(UserError, match=r"^step 17: the (loss|gradient norm) is nan .*This step was not saved"):
        check_finite(metrics, 17)
    run.state, metrics = run.step(run.state, good)  # training can continue
    assert metrics["finite"]


def test_bfloat16_computes_in_half_precision_and_keeps_float32_state() -> None:
    run = tiny.Run(tiny.build(dtype=jnp.bfloat16), optax.adam(0.01), create=EMA)
    reference = tiny.Run(tiny.build(), optax.adam(0.01))
    for half, full in zip(run.train(3), reference.train(3), strict=True):
        assert half["loss"].dtype == np.float32
        np.testing.assert_allclose(half["loss"], full["loss"], rtol=2e-2)
        assert half["loss"] != full["loss"]
    assert {str(x.dtype) for x in run.arrays().values()} <= {"float32", "uint32", "int32"}


SLOW = pytest.mark.slow  # compiles two train steps for each


@pytest.mark.parametrize(
    "architecture",
    ["test_resnet", pytest.param("test_vit", marks=SLOW), pytest.param("test_efficientnet", marks=SLOW)],
)
def test_each_family_trains_the_same_on_one_device_and_eight(architecture: str) -> None:
    """With a full recipe: dropout, stochastic depth, layer-wise rates, decay, clipping."""

    def build() -> nnx.Module:
        return registry.build(
            architecture, num_classes=4, image_size=32, dropout=0.1, drop_path=0.1, rngs=nnx.Rngs(jax.random.key(0))
        )

    def prepare(batch, step):
        images, labels = tiny.prepare(batch)
        return jnp.tile(images, (1, 6, 6, 1))[:, :32, :32], labels

    options = {"name": "sgd", "weight_decay": 1e-4, "layer_decay": 0.8, "clip_norm": 1.0}
    tx = create_optimizer(nnx.eval_shape(build), learning_rate=0.1, **options)
    model = tiny.filled(build)
    losses = []
    for devices in (1, 8):
        run = tiny.Run(model, tx, prepare=prepare, devices=devices)
        losses.append([m["loss"] for m in run.train(2)])
    np.testing.assert_allclose(*losses, rtol=2e-5)
    assert losses[0][0] != losses[0][1]


def test_no_accuracy_for_probabilities_as_targets() -> None:
    def prepare(batch, step):
        images, labels = tiny.prepare(batch)
        return images, jax.nn.one_hot(labels, 4)

    hard = tiny.Run(tiny.build(norm=False), optax.sgd(0.1)).train(1)[0]
    soft = tiny.Run(tiny.build(norm=False), optax.sgd(0.1), prepare=prepare).train(1)[0]
    assert "accuracy" in hard
    assert "accuracy" not in soft
    np.testing.assert_allclose(soft["loss"], hard["loss"], rtol=1e-6)


def test_step_reaches_learning_rate_and_augmentation() -> None:
    def prepare(batch, step):
        images, labels = tiny.prepare(batch)
        return images * (step + 1), labels

    run = tiny.Run(tiny.build(norm=False), optax.sgd(0.1), prepare=prepare, learning_rate=lambda step: 0.5 / (step + 1))
    np.testing.assert_allclose([m["learning_rate"] for m in run.train(3)], [0.5, 0.25, 0.5 / 3], rtol=1e-6)


def test_sigmoid_loss_trains() -> None:
    run = tiny.Run(tiny.build(norm=False), optax.adam(0.05), loss=make_loss(kind="sigmoid", label_smoothing=0.1))
    losses = []
    for _ in range(12):
        run.state, metrics = run.step(run.state, tiny.batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]


def test_evaluated_state_is_the_average_if_there_is_one() -> None:
    averaged, plain = (tiny.Run(tiny.build(), optax.sgd(0.1), create=c) for c in (EMA, {}))
    for run in (averaged, plain):
        run.train(2)
    ts = nnx.merge(averaged.graph, averaged.state)
    model = nnx.merge(nnx.graphdef(ts.model), evaluated_state(averaged.state))
    np.testing.assert_array_equal(model.fc.kernel[...], ts.ema.params["fc"]["kernel"][...])
    np.testing.assert_array_equal(model.bn.mean[...], ts.ema.params["bn"]["mean"][...])
    assert (model.fc.kernel[...] != ts.model.fc.kernel[...]).any()
    same = jax.tree.map(lambda a, b: a is b, evaluated_state(plain.state), plain.state["model"])
    assert all(jax.tree.leaves(same))
