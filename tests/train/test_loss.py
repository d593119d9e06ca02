"""jaxvision.train.loss against PyTorch, timm and values computed by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.reference import import_timm

from jaxvision.errors import UserError
from jaxvision.train.loss import Loss, loss_function, make_loss, mean_weights, weighted_sum, zero_padding

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((6, 10))).astype(np.float32)
LABELS = RNG.integers(0, 10, 6)
SOFT = RNG.dirichlet(np.ones(10), 6).astype(np.float32)


def test_by_hand() -> None:
    logits, label = jnp.array([[math.log(1), math.log(2), math.log(5)]]), jnp.array([2])
    # The softmax is 1/8, 2/8, 5/8.
    np.testing.assert_allclose(make_loss()(logits, label), [-math.log(5 / 8)], rtol=1e-6)
    smoothed = -(0.8 * math.log(5 / 8) + 0.1 * math.log(2 / 8) + 0.1 * math.log(1 / 8))
    np.testing.assert_allclose(make_loss(label_smoothing=0.3)(logits, label), [smoothed], rtol=1e-6)
    # The sigmoids are 1/2, 2/3, 5/6.
    binary = -(math.log(1 / 2) + math.log(1 / 3) + math.log(5 / 6)) / 3
    np.testing.assert_allclose(make_loss(kind="sigmoid")(logits, label), [binary], rtol=1e-6)


@pytest.mark.timm
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_timm(smoothing: float) -> None:
    import_timm()
    import torch
    from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    ours = make_loss(label_smoothing=smoothing)(LOGITS, jnp.asarray(LABELS)).mean()
    np.testing.assert_allclose(ours, LabelSmoothingCrossEntropy(smoothing)(logits, labels).numpy(), rtol=2e-6)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    np.testing.assert_allclose(
        make_loss(label_smoothing=smoothing)(LOGITS, jnp.asarray(LABELS)), expected.numpy(), rtol=2e-6
    )
    for threshold in (None, 0.2):
        ours = make_loss(kind="sigmoid", label_smoothing=smoothing, target_threshold=threshold)
        timms = BinaryCrossEntropy(smoothing, target_threshold=threshold)
        np.testing.assert_allclose(
            ours(LOGITS, jnp.asarray(LABELS)).mean(), timms(logits, labels).numpy(), rtol=2e-6, err_msg=str(threshold)
        )
    soft = torch.tensor(SOFT) * (1 - smoothing) + smoothing / 10
    np.testing.assert_allclose(
        make_loss(label_smoothing=smoothing)(LOGITS, SOFT).mean(),
        SoftTargetCrossEntropy()(logits, soft).numpy(),
        rtol=2e-6,
    )


def test_labels_and_one_hot_targets_agree() -> None:
    for kind in ("softmax", "sigmoid"):
        loss = make_loss(kind=kind, label_smoothing=0.1)
        one_hot = jax.nn.one_hot(LABELS, 10)
        np.testing.assert_array_equal(loss(LOGITS, jnp.asarray(LABELS)), loss(LOGITS, one_hot))


def test_half_precision_logits_are_cast_to_float32() -> None:
    half = jnp.asarray(LOGITS, jnp.bfloat16)
    loss = make_loss()
    assert loss(half, jnp.asarray(LABELS)).dtype == jnp.float32
    np.testing.assert_array_equal(loss(half, jnp.asarray(LABELS)), loss(half.astype(jnp.float32), jnp.asarray(LABELS)))


@pytest.mark.parametrize("options", [{}, {"kind": "sigmoid"}, {"kind": "sigmoid", "target_threshold": 0.2}])
@pytest.mark.parametrize("label", [-1, 10])
def test_loss_of_a_label_out_of_range_is_nan(options: dict, label: int) -> None:
    values = make_loss(**options)(LOGITS, jnp.asarray(LABELS).at[2].set(label))
    assert np.isnan(values).tolist() == [False, False, True, False, False, False]


def test_masked_mean_and_its_gradient() -> None:
    mask = jnp.array([True, True, False, True])
    np.testing.assert_allclose(weighted_sum(jnp.array([1.0, 2.0, jnp.nan, 6.0]), mean_weights(mask)), 3.0)
    assert weighted_sum(jnp.ones(2), mean_weights(jnp.zeros(2, bool))) == 0

    def total(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return weighted_sum(make_loss()(logits, zero_padding(labels, mask)), mean_weights(mask))

    gradient = jax.grad(total)(LOGITS[:4], jnp.array([1, 2, -1, 4]))
    assert np.isfinite(gradient).all()
    assert (gradient[2] == 0).all()
    assert (zero_padding(jnp.ones((4, 3)), mask).sum(1) == jnp.array([3, 3, 0, 3])).all()


def focal_loss(*, gamma: float = 1.0) -> Loss:
    """Lin et al., https://arxiv.org/abs/1708.02002, equation 4."""

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)[:, 0]
        return -((1 - jnp.exp(log_p)) ** gamma) * log_p

    return loss


def test_own_loss_with_its_own_option() -> None:
    logits, label = jnp.array([[math.log(1), math.log(2), math.log(5)]], jnp.bfloat16), jnp.array([1])
    # The softmax is 1/8, 2/8, 5/8.
    loss = make_loss(kind=focal_loss, gamma=2.0)(logits, label)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [-(0.75**2) * math.log(0.25)], rtol=1e-2)
    assert loss_function("sigmoid") is None
    assert loss_function(focal_loss) is focal_loss


def test_own_loss_gets_label_smoothing_if_it_takes_it() -> None:
    def constant(*, label_smoothing: float) -> Loss:
        return lambda logits, targets: jnp.full(len(logits), label_smoothing)

    np.testing.assert_allclose(make_loss(kind=constant, label_smoothing=0.25)(LOGITS, jnp.asarray(LABELS)), 0.25)


def test_own_loss_must_be_one_number_per_image() -> None:
    def mean(*, gamma: float = 1.0) -> Loss:
        return lambda logits, targets: logits.mean()

    with pytest.raises(UserError, match=r"got a loss of shape \(\), expected \(6,\): one per image"):
        make_loss(kind=mean)(LOGITS, jnp.asarray(LABELS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "softmx"}, "loss.kind: got 'softmx', expected a loss. Did you mean 'softmax'"),
        ({"label_smoothing": 1.0}, r"loss.label_smoothing: got 1.0, expected a number in \[0, 1\)"),
        ({"target_threshold": 0.2}, "loss.target_threshold: got 0.2 with loss.kind='softmax'.* Set loss.kind=sigmoid"),
        ({"gamma": 2.0}, "make_loss: got 'gamma', expected an argument"),
        ({"kind": focal_loss, "alpha": 2.0}, r"loss.kind: got an unexpected keyword argument 'alpha'.*\(gamma\)"),
        ({"kind": focal_loss, "label_smoothing": 0.1}, "the function of loss.kind takes no label_smoothing"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_loss(**options)
