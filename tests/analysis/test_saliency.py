"""Grad-CAM against a computation by hand in PyTorch, and the picture that is made of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.against_timm import images, pair, random_model

from jaxvision.analysis import saliency
from jaxvision.analysis.saliency import explain, grad_cam, overlay
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.layers.mode import train_view


class Probe(nnx.Module):
    """A convnet whose Grad-CAM can be worked out in the head: the features are the image, the head a matrix."""

    num_classes = 2
    architecture = "probe"

    def __init__(self) -> None:
        self.kernel = nnx.Param(jnp.array([[1.0, -1.0], [0.0, 2.0]]))  # [channel, class]

    def forward_features(self, images: jax.Array) -> jax.Array:
        return images

    def forward_head(self, features: jax.Array) -> jax.Array:
        return features.mean((1, 2)) @ self.kernel[...]


@pytest.mark.timm
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_grad_cam_is_that_of_timm_and_torch(name) -> None:
    import torch

    theirs, ours = pair(name, num_classes=5)
    torch_x, x = images(2, 96, 96, 3)
    speaking = 0
    for classes in (None, np.array([4, 1]), np.array([0, 3])):
        features = theirs.forward_features(torch_x).detach().requires_grad_()
        logits = theirs.forward_head(features)
        chosen = logits.argmax(1) if classes is None else torch.tensor(classes)
        logits[torch.arange(2), chosen].sum().backward()
        cam = (features.grad.mean((2, 3), keepdim=True) * features).sum(1).relu().detach()
        speaking += (cam > 0).sum()
        top = cam.amax((1, 2), keepdim=True).clamp(min=1e-30)  # a map may be 0 everywhere
        np.testing.assert_allclose(grad_cam(ours, x, classes), cam / top, atol=1e-4)
    assert speaking > 0


def test_grad_cam_by_hand() -> None:
    image = np.zeros((1, 2, 2, 2), np.float32)
    image[0, 0, 0] = (4, 0)  # speaks for class 0 and against class 1
    image[0, 1, 1] = (0, 3)  # speaks for class 1 alone
    image[0, 0, 1] = (2, 0)
    np.testing.assert_allclose(grad_cam(Probe(), image, np.array([0]))[0], [[1, 0.5], [0, 0]])
    np.testing.assert_allclose(grad_cam(Probe(), image, np.array([1]))[0], [[0, 0], [0, 1]])
    np.testing.assert_allclose(grad_cam(Probe(), image)[0], [[1, 0.5], [0, 0]])  # logits 1.5 and 0
    np.testing.assert_array_equal(grad_cam(Probe(), -image, np.array([0]))[0], 0)  # nothing speaks for it: no NaN


def test_grad_cam_is_compiled_once_and_leaves_the_model_alone() -> None:
    model = random_model("test_resnet", num_classes=3)
    x = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    before = jax.tree.map(np.asarray, nnx.state(model))
    first = grad_cam(train_view(model), x)  # explained as in evaluation, whatever the view
    traced = saliency._grad_cam._cache_size()
    np.testing.assert_array_equal(explain(model, x), first)
    assert saliency._grad_cam._cache_size() == traced
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, nnx.state(model)), before)


def test_mistakes_are_told() -> None:
    x = jnp.zeros((2, 4, 4, 2))
    for classes in ([0, 2], [0], [-1, 0], 1):
        with pytest.raises(UserError, match=r"classes are 2 numbers in \[0, 2\)"):
            grad_cam(Probe(), x, classes)
    with pytest.raises(UserError, match="test_vit is explained by its attention"):
        grad_cam(registry.build_abstract("test_vit"), x)
    with pytest.raises(UserError, match="no classifier"):
        grad_cam(registry.build_abstract("test_resnet", num_classes=0), x)
    with pytest.raises(UserError, match=r"uint8 picture \[h, w, 3\], got float32 \[4, 4, 2\]"):
        overlay(np.asarray(x[0]), np.zeros((2, 2)))


def test_overlay_shows_the_heat_and_the_picture() -> None:
    picture = np.tile(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None], (40, 1, 3))
    heat = np.zeros((4, 6))
    heat[1, 4] = 1
    result = overlay(picture, heat)
    assert (result.shape, result.dtype) == ((40, 60, 3), np.uint8)
    np.testing.assert_array_equal(picture[0, :, 0], np.linspace(0, 255, 60).astype(np.uint8))  # not written into
    red_minus_blue = result[..., 0].astype(int) - result[..., 2]
    assert np.unravel_index(red_minus_blue.argmax(), red_minus_blue.shape) == pytest.approx((15, 45), abs=3)
    cold = result[35, :, 0].astype(int)
    assert (np.diff(cold) >= 0).all()  # the picture's own light is still there
    assert cold[-1] - cold[0] > 100
    np.testing.assert_array_equal(overlay(picture, heat, opacity=0), picture)  # a gray picture stays what it is
