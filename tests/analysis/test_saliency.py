"""jaxvision.analysis.saliency: Grad-CAM against PyTorch and values computed by hand, and the overlay."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.against_timm import images, pair, random_model

from jaxvision.analysis.saliency import explain, grad_cam, overlay
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.layers.mode import train_view


class Probe(nnx.Module):
    """A convnet whose Grad-CAM can be computed by hand: its features are the image, its head is a matrix."""

    num_classes = 2
    architecture = "probe"
    explanation = "Grad-CAM"

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
    positive = 0
    for classes in (None, np.array([4, 1]), np.array([0, 3])):
        features = theirs.forward_features(torch_x).detach().requires_grad_()
        logits = theirs.forward_head(features)
        chosen = logits.argmax(1) if classes is None else torch.tensor(classes)
        logits[torch.arange(2), chosen].sum().backward()
        cam = (features.grad.mean((2, 3), keepdim=True) * features).sum(1).relu().detach()
        positive += (cam > 0).sum()
        top = cam.amax((1, 2), keepdim=True).clamp(min=1e-30)  # a map may be 0 everywhere
        np.testing.assert_allclose(grad_cam(ours, x, classes), cam / top, atol=1e-4)
    assert positive > 0


def test_grad_cam_by_hand() -> None:
    image = np.zeros((1, 2, 2, 2), np.float32)
    image[0, 0, 0] = (4, 0)  # for class 0 and against class 1
    image[0, 1, 1] = (0, 3)  # for class 1 only
    image[0, 0, 1] = (2, 0)
    np.testing.assert_allclose(grad_cam(Probe(), image, np.array([0]))[0], [[1, 0.5], [0, 0]])
    np.testing.assert_allclose(grad_cam(Probe(), image, np.array([1]))[0], [[0, 0], [0, 1]])
    np.testing.assert_allclose(grad_cam(Probe(), image)[0], [[1, 0.5], [0, 0]])  # logits 1.5 and 0
    np.testing.assert_array_equal(grad_cam(Probe(), -image, np.array([0]))[0], 0)  # no evidence, and no NaN


def test_grad_cam_is_traced_once_and_does_not_change_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("test_resnet", num_classes=3)
    traces = []
    forward_features = type(model).forward_features
    monkeypatch.setattr(
        type(model), "forward_features", lambda self, images: (traces.append(1), forward_features(self, images))[1]
    )
    x = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    before = jax.tree.map(np.asarray, nnx.state(model))
    first = grad_cam(train_view(model), x)  # computed as in evaluation, whatever the view
    np.testing.assert_array_equal(explain(model, x), first)
    assert len(traces) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, nnx.state(model)), before)


def test_errors() -> None:
    x = jnp.zeros((2, 4, 4, 2))
    for classes in ([0, 2], [0], [-1, 0], 1):
        with pytest.raises(UserError, match=r"expected 2 numbers in \[0, 2\)"):
            grad_cam(Probe(), x, classes)
    with pytest.raises(UserError, match="got test_vit, expected a convnet"):
        grad_cam(registry.build_abstract("test_vit"), x)
    with pytest.raises(UserError, match="got a model without a classifier"):
        grad_cam(registry.build_abstract("test_resnet", num_classes=0), x)
    with pytest.raises(UserError, match=r"got an image float32 \[4, 4, 2\], expected uint8 \[h, w, 3\]"):
        overlay(np.asarray(x[0]), np.zeros((2, 2)))


def test_overlay_shows_the_heat_and_the_image() -> None:
    image = np.tile(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None], (40, 1, 3))
    heat = np.zeros((4, 6))
    heat[1, 4] = 1
    result = overlay(image, heat)
    assert (result.shape, result.dtype) == ((40, 60, 3), np.uint8)
    np.testing.assert_array_equal(image[0, :, 0], np.linspace(0, 255, 60).astype(np.uint8))  # unchanged
    red_minus_blue = result[..., 0].astype(int) - result[..., 2]
    assert np.unravel_index(red_minus_blue.argmax(), red_minus_blue.shape) == pytest.approx((15, 45), abs=3)
    cold = result[35, :, 0].astype(int)
    assert (np.diff(cold) >= 0).all()  # the brightness of the image is still there
    assert cold[-1] - cold[0] > 100
    np.testing.assert_array_equal(overlay(image, heat, opacity=0), image)  # a gray image stays as it is
