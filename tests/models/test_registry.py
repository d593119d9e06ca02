"""Models that a user's own module registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models import FeatureExtractor, Model, registry
from jaxvision.models.layers.head import linear_head


class Tiny(Model):
    """The smallest model that the base class allows: every optional part is left at its default."""

    classifier_names = ("head",)

    def __init__(self, *, num_classes=1000, in_channels=3, image_size=32, width: int = 16, rngs: nnx.Rngs):
        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        self.conv = nnx.Conv(in_channels, width, (3, 3), strides=2, rngs=rngs)
        self.num_features = width
        self.head = linear_head(width, num_classes, rngs=rngs)

    def forward_features(self, images):
        return jax.nn.relu(self.conv(images))

    def forward_head(self, features, pre_logits=False):
        x = features.mean(axis=(1, 2))
        return x if pre_logits or self.head is None else self.head(x)


@pytest.fixture
def register() -> Iterator[Callable[..., object]]:
    names = []

    def register(build, name):
        registry.register_model(build, name=name)
        names.append(name)

    yield register
    for name in names:
        registry.unregister_model(name)


def test_a_registered_class_is_built_by_name(register) -> None:
    register(Tiny, "tiny")
    model = registry.build("tiny", num_classes=5, width=8, rngs=nnx.Rngs(0))
    assert (model.architecture, model.family, model.options) == ("tiny", "custom", (("width", 8),))
    assert model(jnp.zeros((2, 32, 32, 3))).shape == (2, 5)
    assert registry.variant("tiny").module == __name__
    assert registry.variant("resnet50").module is None
    assert registry.options("tiny") == ["num_classes", "in_channels", "image_size", "width"]
    assert "tiny" in registry.architectures(family="custom")
    shapes = {name: x.shape for name, x in zip(*_leaves(registry.build_abstract("tiny")), strict=True)}
    assert shapes["head.kernel"] == (16, 1000)


def _leaves(model: Model) -> tuple[list[str], list[jax.Array]]:
    state = nnx.state(model, nnx.Param)
    return tree.names(state), jax.tree.leaves(state)


def test_a_registered_function_is_built_by_name(register) -> None:
    def wide(num_classes, in_channels=3, image_size=32, *, rngs):
        return Tiny(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=64, rngs=rngs)

    register(wide, "wide")
    assert registry.build("wide", num_classes=2, rngs=nnx.Rngs(0)).head.kernel.shape == (64, 2)
    with pytest.raises(UserError, match="got 'width', expected an argument of wide"):
        registry.build("wide", num_classes=2, width=8, rngs=nnx.Rngs(0))


def test_a_decorator_registers_the_name_of_the_class() -> None:
    try:
        assert registry.register_model(Tiny) is Tiny
        assert registry.register_model()(Tiny) is Tiny  # a notebook's cell may run twice
        assert registry.build("Tiny", rngs=nnx.Rngs(0)).architecture == "Tiny"
    finally:
        registry.unregister_model("Tiny")
    assert "Tiny" not in registry.architectures()


def test_defaults_of_the_base_class() -> None:
    model = Tiny(num_classes=5, rngs=nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(model.conv))
    model.reset_classifier(3, rngs=nnx.Rngs(1))
    assert (model.num_classes, model.head.kernel.shape) == (3, (16, 3))
    model.reset_classifier(0, rngs=nnx.Rngs(1))
    assert model(jnp.ones((1, 32, 32, 3))).shape == (1, 16)
    model.reset_classifier(4, rngs=nnx.Rngs(1))
    assert model(jnp.ones((1, 32, 32, 3))).shape == (1, 4)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model.conv), before)
    names, _ = _leaves(model)
    groups = tree.match(names, [(pattern, 0) for pattern in model.layer_groups()], default=1)
    assert groups == {"conv.bias": 0, "conv.kernel": 0, "head.bias": 1, "head.kernel": 1}
    assert model.no_weight_decay() == ()
    with pytest.raises(UserError, match="supports only one pooling"):
        model.reset_classifier(4, rngs=nnx.Rngs(1), global_pool="max")
    with pytest.raises(UserError, match="no levels of features"):
        FeatureExtractor(model)


@pytest.mark.parametrize("name", ["resnet50", "a.b", ""])
def test_invalid_names_are_errors(name: str) -> None:
    with pytest.raises(UserError, match="register_model"):
        registry.register_model(Tiny, name=name)
    assert registry.variant("resnet50").module is None


def test_another_module_cannot_replace_a_model(register) -> None:
    register(Tiny, "tiny")

    class Other(Tiny):
        pass

    Other.__module__ = "another_module"
    with pytest.raises(UserError, match="'tiny' was registered by the module"):
        registry.register_model(Other, name="tiny")
    with pytest.raises(UserError, match="'resnet50' is a built-in model"):
        registry.unregister_model("resnet50")


def test_a_builder_must_have_the_required_arguments() -> None:
    with pytest.raises(UserError, match=r"'tiny' does not take in_channels, image_size\."):
        registry.register_model(lambda *, num_classes, rngs, **options: Tiny(rngs=rngs), name="tiny")


@pytest.mark.parametrize("missing", ["num_classes", "in_channels", "image_size", "num_features"])
def test_an_incomplete_model_is_an_error(missing, register) -> None:
    class Incomplete(Tiny):
        def __init__(self, *, num_classes=1000, in_channels=3, image_size=32, rngs):
            super().__init__(num_classes=num_classes, in_channels=in_channels, image_size=image_size, rngs=rngs)
            delattr(self, missing)

    register(Incomplete, "incomplete")
    with pytest.raises(UserError, match=f"model 'incomplete': Incomplete does not set {missing}"):
        registry.build("incomplete", rngs=nnx.Rngs(0))


def test_what_is_no_model_is_an_error(register) -> None:
    register(lambda *, num_classes, in_channels, image_size, rngs: nnx.Linear(2, 2, rngs=rngs), "linear")
    with pytest.raises(UserError, match="model 'linear': got a Linear"):
        registry.build("linear", num_classes=1, in_channels=3, image_size=1, rngs=nnx.Rngs(0))
