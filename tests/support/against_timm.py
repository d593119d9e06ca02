"""Models for tests, with timm's weights or with random ones, built without compiling initializers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvision import tree
from jaxvision.models import registry
from jaxvision.models.layers.mode import train_view
from jaxvision.weights.timm import timm_name
from support.reference import import_timm

OURS = {
    "img_size": "image_size",
    "in_chans": "in_channels",
    "init_values": "layer_scale",
    "dynamic_img_size": "dynamic_image_size",
    "drop_rate": "dropout",
    "drop_path_rate": "drop_path",
    "layers": "depths",
    "channels": "widths",
}


def pair(name: str, *, seed: int = 0, **timm_options: Any) -> tuple[Any, Any]:
    """Returns timm's model with random weights, none of which is 0 or 1, and ours with the same weights."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = randomized(import_timm().create_model(name, **timm_options).eval(), seed=seed)
    ours = registry.build_abstract(name, **{OURS.get(key, key): value for key, value in timm_options.items()})
    return theirs, fill(ours, theirs.state_dict())


def randomized(theirs: Any, *, seed: int = 0) -> Any:
    """Adds noise to all weights of timm's model, so that none of them is 0 or 1, and returns the model."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in theirs.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(0.1 * noise.abs() if key.endswith("running_var") else 0.05 * noise)
    return theirs


def fill(model: Any, state_dict: Any) -> Any:
    """Sets the leaves of `model` to timm's tensors, and returns `model`."""
    for path, leaf in nnx.iter_graph(model):
        if isinstance(leaf, nnx.Param | nnx.BatchStat):
            name = tree.join(path)
            value = state_dict[timm_name(name)].numpy()
            if name.endswith("kernel"):
                value = np.moveaxis(value, (0, 1), (-1, -2))
            assert value.shape == leaf.shape, name
            leaf.set_value(jnp.asarray(value))
    return model


def random_model(name: str, *, seed: int = 0, **options: Any) -> Any:
    """Returns our model with random weights, none of which is 0 or 1, determined by seed and shapes."""
    rng = np.random.default_rng(seed)
    model = registry.build_abstract(name, **options)
    for path, leaf in nnx.iter_graph(model):
        if isinstance(leaf, nnx.Param | nnx.BatchStat):
            fan_in = max(leaf.size // leaf.shape[-1], 1) if path[-1] == "kernel" else 25
            value = rng.normal(scale=fan_in**-0.5, size=leaf.shape)
            value = 1 + abs(value) if path[-1] in ("scale", "var") else value
            leaf.set_value(jnp.asarray(value, leaf.dtype))
        elif isinstance(leaf, nnx.RngKey):
            leaf.set_value(jax.random.key(int(rng.integers(2**31))))
        elif isinstance(leaf, nnx.RngCount):
            leaf.set_value(jnp.uint32(0))
    return model


def images(*shape: int, seed: int = 0) -> tuple[Any, jax.Array]:
    """Returns normalized images [b, h, w, c], as timm's tensor [b, c, h, w] and as our array."""
    import torch

    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return torch.tensor(x.transpose(0, 3, 1, 2)), jnp.asarray(x)


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Asserts that two arrays differ by at most `tolerance` times the largest absolute value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def assert_gradients_close(ours: nnx.State, theirs: Any, tolerance: float) -> None:
    """Asserts that gradients equal those of timm's model after its backward pass.

    `tolerance` is a share of the largest gradient of all, for some are zero but for rounding (a bias before a norm).
    """
    wanted = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    for name, got in zip(tree.names(ours), jax.tree.leaves(ours), strict=True):
        got = np.moveaxis(np.asarray(got), (-1, -2), (0, 1)) if name.endswith("kernel") else np.asarray(got)
        error = np.abs(got - wanted.pop(timm_name(name))).max()
        assert error <= tolerance * largest, (name, error / largest)
    assert not wanted


def channels_last(tensor: Any) -> np.ndarray:
    """Returns timm's [b, c, h, w] as [b, h, w, c], and other arrays unchanged."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def assert_forward_matches_timm(ours: Any, theirs: Any, size: int, *, tolerance: float = 1e-5) -> None:
    """Asserts that feature maps, features, pooled features and logits of images of `size` equal timm's."""
    tensor, array = images(2, size, size, ours.in_channels)

    @jax.jit
    def forward(model: Any, x: jax.Array) -> Any:
        features, maps = model.forward_intermediates(x)
        normalized = model.forward_intermediates(x, norm=True, intermediates_only=True)
        head = model.forward_head(features), model.forward_head(features, pre_logits=True)
        return maps, normalized, features, *head

    import torch

    with torch.no_grad():
        features, maps = theirs.forward_intermediates(tensor)
        normalized = theirs.forward_intermediates(tensor, norm=True, intermediates_only=True)
        wanted = maps, normalized, features, theirs(tensor), theirs.forward_head(features, pre_logits=True)
    got = forward(ours, array)
    assert [len(x) for x in got[:2]] == [len(x) for x in wanted[:2]]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert_close(a, channels_last(b), tolerance)
    info = [(level["num_chs"], level["reduction"], level["module"]) for level in theirs.feature_info]
    assert [(level.channels, level.stride, level.name) for level in ours.feature_info] == info


def assert_training_step_matches_timm(ours: Any, theirs: Any, size: int, *, tolerance: float = 1e-9) -> None:
    """Asserts that logits, gradients and BatchNorm statistics of a training step equal timm's, in float64.

    In float32 a network with ReLUs or max pooling cannot be compared: where rounding changes the sign of an input, only
    one of the networks passes the gradient. PyTorch's own gradients in float32 differ from those in float64 by up to
    1 % of the largest, depending on the images.

    A larger `tolerance` is for EvoNorm and the filter response norm, whose statistics timm computes in float32.
    """
    tensor, array = images(4, size, size, ours.in_channels)
    out = theirs.double().train()(tensor.double())
    (out**2).sum().backward()
    with jax.enable_x64(True):
        for _, leaf in nnx.iter_graph(ours):
            if isinstance(leaf, nnx.Param | nnx.BatchStat):
                leaf.set_value(jnp.asarray(leaf.get_value(), jnp.float64))
        structure, params, rest = nnx.split(train_view(ours), nnx.Param, ...)

        @jax.jit
        def step(params: nnx.State, rest: nnx.State, x: jax.Array) -> Any:
            def loss(params: nnx.State) -> Any:
                model = nnx.merge(structure, params, rest, copy=True)
                logits = model(x)
                return jnp.sum(logits**2), (logits, nnx.state(model, nnx.BatchStat))

            return jax.grad(loss, has_aux=True)(params)

        grads, (logits, statistics) = step(params, rest, jnp.asarray(array, jnp.float64))
    assert_close(logits, out.detach(), tolerance)
    assert_gradients_close(grads, theirs, tolerance)
    after = theirs.state_dict()
    for name, got in zip(tree.names(statistics), jax.tree.leaves(statistics), strict=True):
        assert_close(got, after[timm_name(name)].numpy(), tolerance)


def assert_groups_match_timm(name: str) -> None:
    """Asserts that layer groups, and the parameters without weight decay, are those of timm."""
    timm = import_timm()
    import torch
    from timm.models import group_parameters

    with torch.device("meta"):
        theirs = timm.create_model(name)
    ours = registry.build_abstract(name)
    names = tree.names(nnx.state(ours, nnx.Param))
    for coarse in (False, True):
        patterns = ours.layer_groups(coarse=coarse)
        got = tree.match(names, [(pattern, i) for i, pattern in enumerate(patterns)], default=len(patterns))
        wanted = group_parameters(theirs, theirs.group_matcher(coarse=coarse), reverse=True)
        assert {timm_name(n): group for n, group in got.items()} == wanted
    wanted = theirs.no_weight_decay() if hasattr(theirs, "no_weight_decay") else ()
    assert {timm_name(n) for n in ours.no_weight_decay()} == set(wanted)


def assert_initialized_alike(ours: Any, theirs: Any) -> None:
    """Asserts that initial weights are constant where timm's are, and otherwise have the same distribution."""
    state_dict = theirs.state_dict()
    for path, leaf in nnx.iter_graph(ours):
        if not isinstance(leaf, nnx.Param | nnx.BatchStat):
            continue
        name = tree.join(path)
        got, wanted = np.asarray(leaf[...]), state_dict[timm_name(name)].numpy()
        if np.ptp(wanted) == 0:
            np.testing.assert_array_equal(got, wanted.flat[0], err_msg=name)
            continue
        assert np.ptp(got) > 0, name
        if got.size >= 64:  # five standard deviations of the difference of two estimates from n numbers
            np.testing.assert_allclose(got.std(), wanted.std(), rtol=5 / np.sqrt(got.size), err_msg=name)
        if got.size > 1000:  # a uniform distribution ends at sqrt(3) standard deviations
            assert (np.abs(got).max() < 2 * got.std()) == (np.abs(wanted).max() < 2 * wanted.std()), name
