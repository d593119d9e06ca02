"""Training and evaluation: every switch of Flax, and views made before the model changed."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.errors import TraceContextError
from support import tiny
from support.against_timm import random_model

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models.base import Model
from jaxvision.models.layers.frozen import Frozen
from jaxvision.models.layers.mode import eval_view, train_view
from jaxvision.train.partial import add_lora, freeze, merge_lora, unfreeze
from jaxvision.weights.timm import save_timm


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (4, 6, 6, 3))


def in_place(switch: Callable[[nnx.Module], None]) -> Callable[[nnx.Module], nnx.Module]:
    def switched(model: nnx.Module) -> nnx.Module:
        switch(model)
        return model

    return switched


#: Every way of Flax to switch a model to training.
SWITCHES = {
    "train_view": train_view,
    "view": lambda model: nnx.view(model, use_running_average=False, raise_if_not_found=False),
    "train": in_place(lambda model: model.train()),
    "eval, train": in_place(lambda model: (model.eval(), model.train())),
    "set_attributes": in_place(lambda model: model.set_attributes(use_running_average=False, deterministic=False)),
    "attribute": in_place(lambda model: setattr(model.bn, "use_running_average", False)),
}


def frozen_norm(model: nnx.Module) -> nnx.Module:
    """Returns the model with its BatchNorm frozen, and statistics that are not those of the images."""
    model.bn.mean[...], model.bn.var[...] = jnp.full(8, 0.3), jnp.full(8, 2.0)
    return freeze(model, patterns=[r"bn\."])


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_frozen_batch_norm_keeps_its_statistics_under_any_switch(switch, x) -> None:
    model = frozen_norm(tiny.build()())
    expected = model(x)
    training = SWITCHES[switch](model)
    np.testing.assert_array_equal(training(x), expected)
    np.testing.assert_array_equal(training.bn.mean[...], np.full(8, 0.3, np.float32))
    np.testing.assert_array_equal(training.bn.var[...], np.full(8, 2.0, np.float32))


@pytest.mark.parametrize("switch", SWITCHES)
def test_an_unfrozen_batch_norm_trains_under_any_switch(switch, x) -> None:
    training = SWITCHES[switch](unfreeze(frozen_norm(tiny.build()())))
    training(x)
    assert (training.bn.mean[...] != 0.3).all()


def test_frozen_statistics_in_a_users_loop_with_flax_train(x) -> None:
    """The case that was reported: freeze, `model.train()`, a plain NNX loop."""
    model = freeze(random_model("test_resnet", num_classes=4), backbone=True)
    before = {name: np.array(leaf) for name, leaf in tiny.arrays(nnx.state(model, nnx.BatchStat)).items()}
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    model.train()

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer) -> None:
        images = jnp.ones((4, 32, 32, 3)) * jnp.arange(4.0)[:, None, None, None]
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(images) ** 2))(model))

    step(model, optimizer)
    after = tiny.arrays(nnx.state(model, nnx.BatchStat))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {"drop_path": 0.9, "image_size": 32, "depth": 2}),
        ("test_vit", {"attention_dropout": 0.9, "image_size": 32, "depth": 1}),
        ("test_resnet", {"dropout": 0.9}),
    ],
)
def test_flax_switches_every_kind_of_dropout(name, options) -> None:
    """`model.train()`, and `set_attributes` of the dropout layers alone, randomize; `model.eval()` does not."""
    model = freeze(random_model(name, num_classes=4, **options), backbone=True)  # keeps the statistics
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    forward = nnx.jit(lambda model, x: model(x))
    expected = forward(model, images)
    if "drop_path" not in options:
        model.set_attributes(nnx.Dropout, deterministic=False)
        assert (forward(model, images) != forward(model, images)).any()
    model.eval()
    model.train()
    assert (forward(model, images) != forward(model, images)).any()
    model.eval()
    np.testing.assert_array_equal(forward(model, images), expected)


# --- Views made before the model changed ---


def test_a_view_made_before_freeze_is_frozen_and_thaws_with_the_model(x) -> None:
    model = tiny.build()()
    training, twice = train_view(model), train_view(eval_view(model))
    frozen_norm(model)
    for view in (training, twice):
        assert tree.names(nnx.state(view, Frozen)) == ["bn.bias", "bn.scale"]
        np.testing.assert_array_equal(view(x), model(x))  # with the running statistics
        assert (view.bn.mean[...] == 0.3).all()
    unfreeze(model)
    assert not tree.names(nnx.state(training, Frozen))
    training(x)
    assert (model.bn.mean[...] != 0.3).all()


def test_freezing_a_view_freezes_the_model(x) -> None:
    model = tiny.build()()
    freeze(train_view(model), patterns=["conv"])
    assert tree.names(nnx.state(model, Frozen)) == ["conv.kernel"]
    assert not tree.names(nnx.state(tiny.build()(), Frozen))


def test_a_copy_is_frozen_on_its_own() -> None:
    model = tiny.build()()
    freeze(nnx.clone(model), patterns=["conv"])
    assert not tree.names(nnx.state(model, Frozen))


class Own(Model):
    """A user's model with the default `reset_classifier`."""

    classifier_names = ("out",)

    def __init__(self) -> None:
        self.num_classes, self.num_features = 4, 5
        self.stem, self.out = nnx.Linear(3, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 4, rngs=nnx.Rngs(1))

    def forward_features(self, images: jax.Array) -> jax.Array:
        return self.stem(images)

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        x = features.mean((1, 2))
        return x if pre_logits or self.out is None else self.out(x)


SMALL = {"test_vit": {"image_size": 32, "depth": 1}}


def reset(model: nnx.Module) -> None:
    model.reset_classifier(7, rngs=nnx.Rngs(1))


def remove(model: nnx.Module) -> None:
    model.reset_classifier(0, rngs=nnx.Rngs(1))


STALE = r"got a view from before reset_classifier or add_lora .* Make the view again: training = jaxvision\.train_view"


@pytest.mark.parametrize("change", [reset, remove])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "resnetv2_18", "own"])
def test_a_view_with_a_replaced_head_raises(name, change) -> None:
    model = Own() if name == "own" else random_model(name, num_classes=4, **SMALL.get(name, {}))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    evaluate = lambda model: nnx.eval_shape(lambda model, x: model(x), model, images).shape  # noqa: E731
    views = train_view(model), eval_view(model)
    change(model)
    assert evaluate(model) == evaluate(train_view(model)) == (2, model.num_classes or model.num_features)
    for view in views:
        with pytest.raises(UserError, match=STALE):
            evaluate(view)
        unfreeze(freeze(view, backbone=True))  # cannot bring the head back
        with pytest.raises(UserError, match=STALE):
            evaluate(view)


def test_a_view_with_a_replaced_head_cannot_be_saved(tmp_path) -> None:
    model = random_model("test_vit", image_size=32, depth=1, num_classes=4)
    view = eval_view(model)
    reset(model)
    with pytest.raises(UserError, match=STALE):
        save_timm(view, tmp_path / "model.safetensors")


def test_a_view_from_before_lora_raises_and_merging_leaves_views_valid() -> None:
    model = random_model("test_vit", image_size=32, depth=1, num_classes=4)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    early = train_view(model)
    add_lora(model, rank=2, rngs=nnx.Rngs(0))
    forward = jax.jit(lambda model, x: model(x))
    with pytest.raises(UserError, match=STALE):
        forward(early, images)
    view = eval_view(model)
    merge_lora(model)
    np.testing.assert_array_equal(forward(view, images), forward(model, images))


# --- Statistics under plain JAX transformations ---


def test_a_captured_view_raises_under_plain_jax_transformations(x) -> None:
    """Flax refuses to update a Variable that a JAX transformation did not receive as an argument."""
    training = train_view(tiny.build()())
    for call in (
        lambda: jax.jit(lambda x: training(x))(x),
        lambda: jax.grad(lambda x: training(x).sum())(x),
        lambda: jax.checkpoint(lambda x: training(x))(x),
        lambda: jax.lax.map(training, x[:, None]),
    ):
        with pytest.raises(TraceContextError, match="Cannot mutate BatchStat from a different trace level"):
            call()


def test_statistics_leave_a_plain_jit_only_as_a_result(x) -> None:
    """`nnx.jit` writes updates of a module back. `jax.jit` updates a copy, whose statistics have to be returned."""
    model = tiny.build()()
    training = train_view(model)
    expected = 0.1 * model.conv(x).mean((0, 1, 2))

    @jax.jit
    def forward(training: nnx.Module, x: jax.Array) -> tuple[jax.Array, nnx.State]:
        return training(x), nnx.state(training, nnx.BatchStat)

    _, statistics = forward(training, x)
    assert (model.bn.mean[...] == 0).all()
    nnx.update(model, statistics)
    np.testing.assert_allclose(model.bn.mean[...], expected, rtol=1e-5, atol=1e-6)

    model = tiny.build()()
    nnx.jit(lambda training, x: training(x))(train_view(model), x)
    np.testing.assert_allclose(model.bn.mean[...], expected, rtol=1e-5, atol=1e-6)
