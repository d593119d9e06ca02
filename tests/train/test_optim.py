"""jaxvision.train.optim against PyTorch, optax and values computed by hand, in timm's parameter groups."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from golden import descent
from golden.make_trajectories import compute
from support.paths import TESTS
from support.reference import import_timm

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.train.optim import create_optimizer, decay_mask, layer_scales
from jaxvision.train.partial import add_lora, freeze
from jaxvision.train.schedule import make_schedule
from jaxvision.weights.timm import timm_name

TRAJECTORIES = json.loads((TESTS / "golden" / "trajectories.json").read_text(encoding="utf-8"))


def abstract(name="test_vit", **options):
    return registry.build_abstract(name, **options)


def random_like(model, seed) -> dict[str, np.ndarray]:
    """Returns an array for each trainable parameter, by name."""
    rng = np.random.default_rng(seed)
    return {
        tree.join(path): rng.normal(size=p.shape).astype(np.float32)
        for path, p in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


def nested(model, arrays) -> nnx.State:
    """Returns arrays by name in the structure of the model's parameters."""
    return jax.tree.map(
        lambda name: jnp.asarray(arrays[name]),
        nnx.as_pure(tree.map_named(lambda name, _: name, nnx.state(model, nnx.Param))),
    )


def updated(tx, model, params, gradients) -> dict[str, np.ndarray]:
    """Returns the parameters by name after a step for each of the gradients."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    p = nested(model, params)
    state = tx.init(p)
    for grads in gradients:
        p, state = step(p, state, nested(model, grads))
    return dict(zip(tree.names(p), map(np.asarray, jax.tree.leaves(p)), strict=True))


# --- timm's groups ---


@pytest.mark.timm
@pytest.mark.parametrize(
    "name",
    ["resnet50", "efficientnet_b0", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "resnet50d"],
)
def test_decay_and_layer_scales_are_timms(name) -> None:
    theirs = import_timm().create_model(name)
    from timm.optim import param_groups_layer_decay

    names = {id(p): key for key, p in theirs.named_parameters()}
    never = theirs.no_weight_decay() if hasattr(theirs, "no_weight_decay") else ()
    groups = param_groups_layer_decay(theirs, 0.05, no_weight_decay_list=never, layer_decay=0.65)
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    decays = {names[id(p)]: group["weight_decay"] > 0 for group in groups for p in group["params"]}
    ours = abstract(name)
    assert {timm_name(n): s for n, s in layer_scales(ours, 0.65).items()} == pytest.approx(scales)
    assert {timm_name(n): d for n, d in decay_mask(ours).items()} == decays


def test_freezing_changes_no_scale() -> None:
    whole = layer_scales(abstract(), 0.5)
    part = layer_scales(freeze(abstract(), layers=3), 0.5)
    assert part == {name: whole[name] for name in part}
    assert "blocks.2.attn.qkv.kernel" in part
    assert "blocks.1.attn.qkv.kernel" not in part


def test_a_model_without_a_head_ends_with_its_last_block() -> None:
    assert layer_scales(abstract(num_classes=0), 0.5)["norm.scale"] == 1


# --- updates ---


class Problem(nnx.Module):
    """The parameters of `golden.descent` as a model."""

    first_conv, classifier_names = "conv_stem", ("head",)

    def __init__(self):
        for name, shape in descent.SHAPES.items():
            module, _, leaf = name.rpartition(".")
            if module and not hasattr(self, module):
                setattr(self, module, nnx.Module())
            setattr(getattr(self, module) if module else self, leaf, nnx.Param(jnp.zeros(shape)))

    def no_weight_decay(self):
        return ("pos_embed",)

    def layer_groups(self):
        return [rf"({names})(\.|$)" for names in descent.LAYERS]


def descend(case: dict) -> dict[str, dict[str, np.ndarray]]:
    """Returns the parameters after each step in `descent.KEPT`, by name."""
    model, options = Problem(), dict(case)
    schedule = options.pop("schedule", None)
    rate = make_schedule(descent.PEAK, **descent.SCHEDULES[schedule]) if schedule else descent.PEAK
    tx = create_optimizer(model, learning_rate=rate, **options)
    params = {name: value.astype(np.float32) for name, value in descent.start().items()}
    state, kept = tx.init(nested(model, params)), {}
    update = jax.jit(tx.update)
    for step in range(descent.STEPS):
        grads = {name: descent.gradient(name, step, value) for name, value in params.items()}
        p = nested(model, params)
        updates, state = update(nested(model, grads), state, p)
        new = optax.apply_updates(p, updates)
        params = dict(zip(tree.names(new), map(np.asarray, jax.tree.leaves(new)), strict=True))
        if step + 1 in descent.KEPT:
            kept[str(step + 1)] = params
    return kept


@pytest.mark.parametrize("case", descent.OPTIMIZERS)
def test_twenty_steps_are_timms(case) -> None:
    """tests/golden/make_trajectories.py wrote timm's trajectories, computed in float64."""
    ours, theirs = descend(descent.OPTIMIZERS[case]), TRAJECTORIES["optimizers"][case]
    for step, params in theirs.items():
        for name, expected in params.items():
            np.testing.assert_allclose(ours[step][name].ravel(), expected, rtol=0, atol=1e-5, err_msg=f"{step} {name}")


@pytest.mark.timm
def test_stored_trajectories_are_those_of_the_installed_timm() -> None:
    computed = compute()
    for kind in ("optimizers", "schedules"):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), computed[kind], TRAJECTORIES[kind])


def test_muon_orthogonalizes_hidden_matrices_and_leaves_the_rest_to_adamw() -> None:
    model = abstract(depth=1, image_size=32, num_classes=10)
    zeros = {key: np.zeros_like(value) for key, value in random_like(model, 0).items()}
    grads = random_like(model, 1)
    muon = updated(create_optimizer(model, name="muon", learning_rate=1.0), model, zeros, [grads])
    adamw = updated(create_optimizer(model, name="adamw", learning_rate=1.0), model, zeros, [grads])
    hidden = {key for key in grads if key.startswith("blocks.") and key.endswith("kernel")}
    assert len(hidden) == 4
    for key in grads:
        if key in hidden:
            # Five Newton-Schulz steps bring singular values near 1 (but for those near 0), here at AdamW's size.
            values = np.linalg.svd(muon[key], compute_uv=False) / (0.2 * max(muon[key].shape) ** 0.5)
            assert 0.6 < np.quantile(values, 0.05) <= values.max() < 1.3
            left, _, right = np.linalg.svd(grads[key], full_matrices=False)
            cosine = -np.vdot(muon[key], left @ right) / np.linalg.norm(muon[key]) / np.linalg.norm(left @ right)
            assert cosine > 0.97, key
        else:
            np.testing.assert_allclose(muon[key], adamw[key], rtol=1e-6)


def test_muon_reads_a_convolution_as_a_matrix_and_leaves_depthwise_ones_to_adamw() -> None:
    model = abstract("test_efficientnet")
    params = random_like(model, 0)
    state = create_optimizer(model, name="muon", learning_rate=0.1).init(nested(model, params))
    moments = {
        kind: {tree.join(path).partition(f"{kind}.")[2] for path, _ in jax.tree_util.tree_leaves_with_path(state)}
        for kind in ("trace", "nu")
    }
    by_adam, by_muon = moments["nu"] - {""}, moments["trace"] - {""}
    assert by_muon | by_adam == set(params)
    for key, value in params.items():
        ends = key.startswith(("conv_stem.", "classifier."))
        depthwise = value.ndim == 4 and value.shape[2] == 1
        assert (key in by_muon) == (value.ndim > 1 and not ends and not depthwise), key
    assert any(params[key].shape[:2] == (3, 3) for key in by_muon)


def test_clipping_applies_to_the_whole_gradient() -> None:
    model = abstract(depth=1, image_size=32)
    params, grads = random_like(model, 0), random_like(model, 1)
    for clip_norm in (0.5, 1e9):
        tx = create_optimizer(model, name="sgd", momentum=0.0, learning_rate=0.1, clip_norm=clip_norm)
        ours = updated(tx, model, params, [grads])
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        for key in params:
            expected = params[key] - 0.1 * min(1, clip_norm / norm) * grads[key]
            np.testing.assert_allclose(ours[key], expected, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_may_follow_a_schedule() -> None:
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    params, grads = random_like(model, 0), random_like(model, 1)
    tx = create_optimizer(model, name="sgd", momentum=0.0, learning_rate=lambda step: 0.1 * (step + 1))
    ours = updated(tx, model, params, [grads, grads])
    np.testing.assert_allclose(ours["kernel"], params["kernel"] - 0.3 * grads["kernel"], rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "muon"])
def test_frozen_parameters_have_no_state_and_lora_factors_do(name) -> None:
    for part in (
        freeze(abstract(depth=1), backbone=True),
        nnx.eval_shape(lambda: add_lora(registry.build("test_vit", depth=1, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))),
    ):
        tx = create_optimizer(part, name=name, learning_rate=0.1, weight_decay=0.1, layer_decay=0.7, clip_norm=1.0)
        optimizer = nnx.eval_shape(lambda tx=tx, part=part: nnx.Optimizer(part, tx, wrt=nnx.Param))
        sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(optimizer)) if leaf.size > 3]
        parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(part, nnx.Param)))
        assert sum(sizes) <= 2 * parameters


# --- optimizers of optax and of the user ---


def test_lion_of_optax_by_hand() -> None:
    """optax.lion decays by itself: it gets our weight decay and mask, and clipping and layers act around it."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params, gradients = random_like(model, 0), [random_like(model, i) for i in (1, 2)]
    tx = create_optimizer(model, name="optax:lion", learning_rate=0.1, weight_decay=0.2, b1=0.8, b2=0.95)
    ours = updated(tx, model, params, gradients)
    for key, w in params.items():
        moment = np.zeros_like(w)
        for grads in gradients:
            direction = np.sign(0.8 * moment + 0.2 * grads[key])
            w = w - 0.1 * (direction + (0.2 * w if key == "kernel" else 0))
            moment = 0.95 * moment + 0.05 * grads[key]
        np.testing.assert_allclose(ours[key], w, rtol=1e-5, err_msg=key)


def plain_descent(learning_rate, *, scale: float = 1.0) -> optax.GradientTransformation:
    """The shortest optimizer a user may write; it takes no weight decay."""
    return optax.chain(optax.scale(scale), optax.scale_by_learning_rate(learning_rate))


def test_own_optimizer_with_clipping_decay_and_layers_by_hand() -> None:
    model = abstract(depth=1, image_size=32)
    params, gradients = random_like(model, 0), [random_like(model, i) for i in (1, 2)]
    tx = create_optimizer(
        model,
        name=plain_descent,
        learning_rate=lambda step: 0.1 / (step + 1),
        weight_decay=0.05,
        layer_decay=0.5,
        clip_norm=0.5,
        scale=3.0,
    )
    ours = updated(tx, model, params, gradients)
    decays, factors, expected = decay_mask(model), layer_scales(model, 0.5), dict(params)
    for rate, grads in zip((0.1, 0.05), gradients, strict=True):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        for key, w in expected.items():
            direction = 3 * grads[key] * min(1, 0.5 / norm) + (0.05 * w if decays[key] else 0)
            expected[key] = w - rate * factors[key] * direction
    for key in params:
        np.testing.assert_allclose(ours[key], expected[key], rtol=1e-5, atol=1e-6, err_msg=key)


def test_weight_decay_without_a_mask_is_added_with_ours() -> None:
    """optax.novograd takes weight_decay but no mask, so its own decay is off and only the kernel decays."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params, grads = random_like(model, 0), random_like(model, 1)
    ours = updated(
        create_optimizer(model, name="optax:novograd", learning_rate=0.1, weight_decay=0.2), model, params, [grads]
    )
    without = updated(optax.novograd(0.1), model, params, [grads])
    for key, w in params.items():
        decay = 0.1 * 0.2 * w if key == "kernel" else 0
        np.testing.assert_allclose(ours[key], without[key] - decay, rtol=1e-5, err_msg=key)


def test_an_option_of_optaxs_may_be_called_decay() -> None:
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params, gradients = random_like(model, 0), [random_like(model, i) for i in (1, 2)]
    ours = updated(
        create_optimizer(model, name="optax:rmsprop", learning_rate=0.1, decay=0.5), model, params, gradients
    )
    for key, w in params.items():
        second = np.zeros_like(w)
        for grads in gradients:
            second = 0.5 * second + 0.5 * grads[key] ** 2
            w = w - 0.1 * grads[key] / np.sqrt(second + 1e-8)
        np.testing.assert_allclose(ours[key], w, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon", "optax:lion"])
def test_first_moment_in_bfloat16(name) -> None:
    model = abstract(depth=1, image_size=32)
    params = random_like(model, 0)

    def moments(**options) -> dict[str, set]:
        state = create_optimizer(model, name=name, learning_rate=0.1, **options).init(nested(model, params))
        found = {"mu": set(), "nu": set()}
        for path, x in jax.tree_util.tree_leaves_with_path(state):
            for kind in ({"trace": "mu"}.get(key, key) for key in tree.join(path).split(".")):  # trace: Muon's momentum
                if kind in found:
                    found[kind].add(x.dtype)
        return found

    nu = set() if name == "optax:lion" else {jnp.dtype("float32")}
    assert moments(mu_dtype="bfloat16") == {"mu": {jnp.dtype("bfloat16")}, "nu": nu}
    assert moments() == {"mu": {jnp.dtype("float32")}, "nu": nu}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamv"}, "optimizer.name: got 'adamv', expected an optimizer. Did you mean 'adamw'"),
        ({"momentum": 0.9}, "optimizer.momentum: got 0.9, but the optimizer 'adamw' takes only betas, epsilon"),
        ({"name": "sgd", "betas": (0.9, 0.99)}, "optimizer.betas: .*the optimizer 'sgd' takes only momentum, nesterov"),
        ({"name": "sgd", "mu_dtype": "bfloat16"}, "optimizer.mu_dtype: got 'bfloat16', but the optimizer 'sgd'"),
        ({"mu_dtype": "bf16"}, "optimizer.mu_dtype: got 'bf16', expected a dtype such as 'bfloat16'"),
        ({"clip_norm": 0.0}, "optimizer.clip_norm: got 0.0, expected a number above 0"),
        ({"layer_decay": 1.5}, r"optimizer.layer_decay: got 1.5, expected a number in \(0, 1\]"),
        ({"name": "optax:lionn"}, "the module 'optax' has no 'lionn'"),
        ({"name": "optax:lion", "betas": (0.9, 0.99)}, "the optimizer 'optax:lion' takes only b1, b2, mu_dtype"),
        ({"name": plain_descent, "scal": 2.0}, "the optimizer 'plain_descent' takes only scale"),
        ({"name": "optax:scale_by_lion"}, "optimizer.name: got an unexpected keyword argument 'learning_rate'"),
    ],
)
def test_errors(options, message) -> None:
    with pytest.raises(UserError, match=message):
        create_optimizer(abstract(), learning_rate=0.1, **options)
