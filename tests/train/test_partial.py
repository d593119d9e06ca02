"""jaxvision.train.partial: freezing and LoRA in a user's own training loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support.against_timm import random_model

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.models.layers.frozen import Frozen
from jaxvision.models.layers.mode import train_view
from jaxvision.train.partial import LoRALinear, add_lora, freeze, merge_lora, unfreeze

forward = jax.jit(lambda model, x: model(x))


def vit(**options):
    return random_model("test_vit", image_size=32, depth=2, num_classes=4, **options)


def abstract(name="test_vit", **options):
    return registry.build_abstract(name, **options)


def trainable(model) -> set[str]:
    return set(tree.names(nnx.state(model, nnx.Param)))


def frozen(model) -> set[str]:
    return set(tree.names(nnx.state(model, Frozen)))


def arrays(model) -> dict[str, np.ndarray]:
    return {tree.join(path): np.array(v.get_value()) for path, v in nnx.to_flat_state(nnx.state(model))}


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (4, 32, 32, 3))


@nnx.jit
def users_own_step(model, optimizer, x):
    """A training loop that does nothing special for freezing."""

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), jnp.arange(4)).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def changed_by_training(model, x) -> set[str]:
    before = arrays(model)
    optimizer = nnx.Optimizer(model, optax.adamw(0.1, weight_decay=0.1), wrt=nnx.Param)
    moments = {tree.join(path[2:]) for path, _ in nnx.to_flat_state(nnx.state(optimizer.opt_state)) if "mu" in path}
    assert moments == trainable(model)  # no state for frozen parameters
    for _ in range(2):
        assert np.isfinite(users_own_step(train_view(model), optimizer, x))
    after = arrays(model)
    return {name for name in after if not np.array_equal(before[name], after[name])}


# --- Frozen in any loop ---


def test_frozen_batch_norm_keeps_its_statistics(x):
    model = freeze(random_model("test_resnet", image_size=32, num_classes=4), batch_norm=True)
    before = arrays(model)
    users_own_step(train_view(model), nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param), x)
    after = arrays(model)
    convolutions_and_head = {name for name in before if name.endswith("kernel") or name.startswith("fc.")}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == convolutions_and_head


def test_frozen_batch_norm_of_a_model_without_it_changes_nothing():
    assert not frozen(freeze(abstract(), batch_norm=True))


def test_frozen_backbone_and_its_statistics_do_not_change(x) -> None:
    model = freeze(random_model("test_resnet", num_classes=4), backbone=True)
    assert changed_by_training(model, x) == {"fc.bias", "fc.kernel"}


def test_the_other_parts_and_their_statistics_change(x) -> None:
    model = freeze(random_model("test_resnet", num_classes=4), layers=4)  # the stem and three stages of four
    changed = changed_by_training(model, x)
    assert changed == {name for name in arrays(model) if name.startswith(("layer4.", "fc."))}
    assert "layer4.0.bn1.mean" in changed


def test_a_frozen_vit_trains_its_head(x) -> None:
    assert changed_by_training(freeze(vit(), backbone=True), x) == {"head.bias", "head.kernel"}


def test_frozen_batchnorm_computes_in_training_as_in_evaluation(x) -> None:
    model = random_model("test_resnet", num_classes=4)
    # In whatever view it was frozen.
    view = freeze(train_view(model), backbone=True)
    np.testing.assert_array_equal(forward(view, x), forward(model, x))
    np.testing.assert_array_equal(forward(train_view(model), x), forward(model, x))


# --- Which parameters ---


def test_backbone_is_everything_except_the_heads() -> None:
    model = freeze(abstract("deit_tiny_distilled_patch16_224", depth=2), backbone=True)
    assert trainable(model) == {"head.bias", "head.kernel", "head_dist.bias", "head_dist.kernel"}


@pytest.mark.parametrize(
    ("name", "n", "prefixes"),
    [
        ("test_vit", 1, ("patch_embed.", "pos_embed", "cls_token")),
        ("test_vit", 3, ("patch_embed.", "pos_embed", "cls_token", "blocks.0.", "blocks.1.")),
        ("test_vit", 7, ("patch_embed.", "pos_embed", "cls_token", "blocks.", "norm.")),
        ("test_resnet", 1, ("conv1.", "bn1.")),
        ("test_resnet", 3, ("conv1.", "bn1.", "layer1.", "layer2.")),
        ("test_efficientnet", 2, ("conv_stem.", "bn1.", "blocks.0.")),
    ],
)
def test_the_first_groups(name, n, prefixes) -> None:
    names = trainable(abstract(name))
    model = freeze(abstract(name), layers=n)
    assert frozen(model) == {p for p in names if p.startswith(prefixes)}
    assert trainable(model) == names - frozen(model)


def test_patterns_are_anchored_and_freezing_adds_up() -> None:
    model = freeze(abstract(), patterns=[r"blocks\.1\.attn", r".*\.bias"])
    names = trainable(abstract())
    assert frozen(model) == {n for n in names if n.startswith("blocks.1.attn.") or n.endswith(".bias")}
    freeze(model, patterns=["norm"])  # not norm1 in a block: that name starts with "blocks"
    assert "norm.scale" in frozen(model)
    assert "blocks.0.norm1.scale" not in frozen(model)
    assert "blocks.1.attn.qkv.kernel" in frozen(model)


def test_batchnorm_is_frozen_when_all_of_it_is() -> None:
    model = freeze(abstract("test_resnet"), patterns=[r"bn1\.bias", r"layer1\.0\.bn1\."])
    assert not model.bn1.frozen
    assert model.layer1[0].bn1.frozen
    freeze(model, patterns=[r"bn1\.scale"])
    assert model.bn1.frozen
    unfreeze(model, patterns=[r"layer1\."])
    assert not model.layer1[0].bn1.frozen
    assert model.bn1.frozen


def test_unfreeze_undoes_freeze() -> None:
    model = unfreeze(freeze(abstract("test_resnet"), backbone=True))
    assert nnx.graphdef(model) == nnx.graphdef(abstract("test_resnet"))


def test_a_fresh_head_is_trainable() -> None:
    model = freeze(vit(), backbone=True)
    model.reset_classifier(7, rngs=nnx.Rngs(0))
    assert trainable(model) == {"head.bias", "head.kernel"}


def test_freeze_errors() -> None:
    model = abstract()
    with pytest.raises(
        UserError, match=r"model.freeze_layers: got 8, expected 1 to 7, the groups of test_vit: .*patch_embed"
    ):
        freeze(model, layers=8)
    with pytest.raises(UserError, match=r"model\.freeze_layers: got -1, expected 1 to 7"):
        freeze(model, layers=-1)
    with pytest.raises(UserError, match=r"'block.0' matches no parameter\. The nearest name is 'blocks\.0"):
        freeze(model, patterns=["block.0"])
    with pytest.raises(UserError, match="not a regular expression"):
        freeze(model, patterns=["("])
    assert not frozen(model)


# --- Through split, jit and files ---


def test_frozen_leaves_go_through_split_jit_and_orbax(x, tmp_path) -> None:
    import orbax.checkpoint as ocp

    model = freeze(add_lora(vit(), rank=2, rngs=nnx.Rngs(0)), patterns=["head.bias"])
    graph, state = nnx.split(model)
    merged = nnx.merge(graph, jax.jit(lambda state: jax.tree.map(lambda a: a + 0, state))(state))
    assert (frozen(merged), trainable(merged)) == (frozen(model), trainable(model))

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = nnx.merge(graph, checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state)))
    assert (frozen(restored), trainable(restored)) == (frozen(model), trainable(model))
    jax.tree.map(np.testing.assert_array_equal, arrays(restored), arrays(model))
    np.testing.assert_array_equal(forward(restored, x), forward(model, x))


# --- LoRA ---


def test_lora_leaves_the_output_unchanged_and_trains_factors_and_head(x) -> None:
    plain = vit()
    before, names = np.asarray(forward(plain, x)), trainable(plain)
    model = add_lora(plain, rank=2, alpha=6.0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(forward(model, x), before)
    assert frozen(model) == {n for n in names if not n.startswith("head.")}  # no name has changed
    factors = {n for n in trainable(model) if not n.startswith("head.")}
    assert factors == {
        f"blocks.{i}.{part}.{factor}"
        for i in range(2)
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for factor in ("lora_a", "lora_b")
    }
    assert changed_by_training(model, x) == trainable(model)
    after = np.asarray(forward(model, x))
    assert np.abs(after - before).max() > 0.1

    untouched = arrays(model)
    merged = merge_lora(model)
    np.testing.assert_allclose(forward(merged, x), after, rtol=1e-4, atol=1e-5)
    assert nnx.graphdef(merged) == nnx.graphdef(vit())  # no adapters, nothing frozen
    np.testing.assert_array_equal(forward(model, x), after)  # the model with adapters does not change
    jax.tree.map(np.testing.assert_array_equal, arrays(model), untouched)


def test_lora_by_hand() -> None:
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(5, 3)), rng.normal(size=(3, 4)), rng.normal(size=4)
    linear = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    linear.kernel[...], linear.bias[...] = jnp.float32(w), jnp.float32(b)
    layer = LoRALinear(linear, rank=2, alpha=6.0, rngs=nnx.Rngs(1))
    low, high = np.asarray(layer.lora_a[...]), rng.normal(size=(2, 4))
    assert np.abs(low).max() <= 3**-0.5  # U(+-1 / sqrt(fan in)), the reference implementation's
    layer.lora_b[...] = jnp.float32(high)
    expected = x @ w + b + 3 * x @ low @ high
    np.testing.assert_allclose(layer(jnp.float32(x)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.merged()(jnp.float32(x)), expected, rtol=1e-5, atol=1e-5)


def test_lora_targets() -> None:
    model = add_lora(vit(), targets=["fc1", "blocks.1.attn.qkv"])
    layers = {name.rpartition(".lora_")[0] for name in trainable(model) if "lora_" in name}
    assert layers == {"blocks.0.mlp.fc1", "blocks.1.mlp.fc1", "blocks.1.attn.qkv"}


def test_lora_errors() -> None:
    model = vit()
    with pytest.raises(UserError, match=r"no linear layer of test_vit .* 'attn.qvk'. Did you mean 'attn.qkv'"):
        add_lora(model, targets=["attn.qvk"], rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"lora\.rank: got 0, expected 1 or more"):
        add_lora(model, rank=0, rngs=nnx.Rngs(0))
    assert not frozen(model)  # the failed calls froze nothing
    add_lora(model, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="already has adapters"):
        add_lora(model, rngs=nnx.Rngs(0))


class Mixer(Model):
    """A model of one's own with linear layers."""

    classifier_names = ("out",)

    def __init__(self):
        self.token_mix, self.channel_mix, self.out = (nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(3))


class DeclaredMixer(Mixer):
    lora_pattern = r"token_mix"


def test_lora_asks_the_model_for_its_layers() -> None:
    with pytest.raises(
        UserError, match=r"got None, but Mixer declares no layers for LoRA\. .* example \['channel_mix', 'token_mix'\]"
    ):
        add_lora(Mixer())
    with pytest.raises(UserError, match="no linear layer of Mixer besides its head is called 'out'"):
        add_lora(Mixer(), targets=["out"])
    for model in (add_lora(Mixer(), targets=["token_mix"]), add_lora(DeclaredMixer())):
        assert trainable(model) == {"token_mix.lora_a", "token_mix.lora_b", "out.bias", "out.kernel"}
    for targets in (None, ["fc"]):
        with pytest.raises(UserError, match="test_resnet has no linear layers besides its head"):
            add_lora(abstract("test_resnet"), targets=targets)
