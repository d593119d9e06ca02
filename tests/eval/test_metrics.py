"""jaxvision.eval: every image counts exactly once, and the metrics equal scikit-learn's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.calibration
import sklearn.metrics
from flax import nnx
from support import tiny

from jaxvision.errors import UserError
from jaxvision.eval.metrics import Evaluation, calibration_error, with_metric
from jaxvision.eval.step import evaluate_batches, make_eval_step
from jaxvision.parallel.mesh import make_mesh
from jaxvision.train.loss import make_loss
from jaxvision.train.state import evaluated_state


class Scores(nnx.Module):
    """A model whose logits are its input."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def batches(logits: np.ndarray, labels: np.ndarray, b: int) -> list[dict[str, np.ndarray]]:
    """Returns the images in batches of b, the last one padded with invalid values."""
    n, classes = logits.shape
    result = []
    for start in range(0, n, b):
        rows = min(b, n - start)
        batch = {
            "image": np.full((b, classes), np.nan, np.float32),
            "label": np.full(b, -1, np.int32),
            "index": np.full(b, -1, np.int32),
            "mask": np.arange(b) < rows,
        }
        for key, values in (("image", logits), ("label", labels), ("index", np.arange(n))):
            batch[key][:rows] = values[start : start + rows]
        result.append(batch)
    return result


def run(logits: np.ndarray, labels: np.ndarray, *, b: int = 16, devices: int = 1, **options: object) -> Evaluation:
    graph, state = nnx.split(Scores())
    step = make_eval_step(
        graph,
        mesh=make_mesh(devices=jax.devices()[:devices]),
        prepare=lambda batch: batch["image"],
        **{"loss": make_loss(), **options},
    )
    return evaluate_batches(step, state, batches(logits, labels, b), classes=logits.shape[1])


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits.astype(np.float64))
    return exp / exp.sum(1, keepdims=True)


@pytest.mark.parametrize("devices", [1, 8])
def test_equals_scikit_learn(devices: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 100)  # of ten classes, so one has no images
    logits = (2 * rng.standard_normal((100, 10)) + 2 * np.eye(10)[labels]).astype(np.float32)
    result = run(logits, labels, devices=devices)

    prediction, p = logits.argmax(1), softmax(logits)
    assert result.count == 100
    np.testing.assert_array_equal(result.index, np.arange(100))
    np.testing.assert_array_equal(result.prediction, prediction)
    np.testing.assert_array_equal(result.label, labels)
    np.testing.assert_allclose(result.confidence, p.max(1), rtol=1e-6)
    assert result.top1 == sklearn.metrics.accuracy_score(labels, prediction)
    assert result.top5 == sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=np.arange(10))
    np.testing.assert_allclose(result.loss, sklearn.metrics.log_loss(labels, p, labels=np.arange(10)), rtol=1e-6)
    confusion = sklearn.metrics.confusion_matrix(labels, prediction, labels=np.arange(10))
    np.testing.assert_array_equal(result.confusion, confusion)
    recall = sklearn.metrics.recall_score(labels, prediction, average=None, labels=np.arange(10), zero_division=np.nan)
    np.testing.assert_allclose(result.per_class, recall)
    assert np.isnan(result.per_class[9])
    assert result.scalars().keys() == {"top1", "top5", "loss", "calibration_error", "count"}


def test_batch_size_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((37, 6)).astype(np.float32), rng.integers(0, 6, 37)
    results = [run(logits, labels, b=b) for b in (1, 8, 37, 64)]
    for result in results[1:]:
        for name in ("count", "top1", "top5", "calibration_error"):
            assert getattr(result, name) == getattr(results[0], name), name
        np.testing.assert_allclose(result.loss, results[0].loss, rtol=1e-7)


def test_calibration_by_hand() -> None:
    # Bins of 1/15: 0.06 is in the first; 0.9 three times in (13/15, 14/15]; 1/15 belongs to the first, 1.0 to the last.
    confidence = np.array([0.06, 0.9, 0.9, 0.9, 1.0, 1 / 15])
    correct = np.array([False, True, True, False, True, True])
    first, ninety, last = abs((0 + 1) / 2 - (0.06 + 1 / 15) / 2), abs(2 / 3 - 0.9), 0.0
    np.testing.assert_allclose(calibration_error(confidence, correct), (2 * first + 3 * ninety + last) / 6, rtol=1e-12)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_calibration_against_bins_by_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    confidence = rng.random(5000)
    correct = rng.random(5000) < confidence**2
    truth, predicted = sklearn.calibration.calibration_curve(correct, confidence, n_bins=15)
    share = np.histogram(confidence, np.linspace(0, 1, 16))[0] / 5000
    np.testing.assert_allclose(
        calibration_error(confidence, correct), (share * abs(truth - predicted)).sum(), rtol=1e-9
    )


@pytest.mark.parametrize("classes", [2, 4, 5])
def test_with_five_classes_or_fewer_the_label_is_always_among_five(classes: int) -> None:
    rng = np.random.default_rng(3)
    result = run(rng.standard_normal((20, classes)).astype(np.float32), rng.integers(0, classes, 20))
    assert result.top5 == 1
    assert result.top1 < 1


def test_sigmoid_confidence() -> None:
    logits = np.array([[0.0, 2.0], [1.0, -1.0]], np.float32)
    result = run(logits, np.array([1, 1]), b=2, probabilities="sigmoid", loss=make_loss(kind="sigmoid"))
    np.testing.assert_allclose(result.confidence, 1 / (1 + np.exp([-2.0, -1.0])), rtol=1e-6)


def test_the_most_confident_mistakes() -> None:
    logits = np.array([[1, 0], [5, 0], [0, 3], [0, 2], [0, 9]], np.float32)
    result = run(logits, np.array([1, 1, 0, 1, 1]), b=2)
    assert result.index[result.mistakes()].tolist() == [1, 2, 0]
    assert result.mistakes(1).tolist() == [1]


def test_evaluates_the_average_or_the_model_and_traces_once() -> None:
    """In the evaluation view, where the logits of an image do not depend on its batch."""
    trained = tiny.Run(tiny.build(dropout=0.5), optax.sgd(0.5), create={"ema_decay": 0.9}, devices=8)
    trained.train(3)
    ts = nnx.merge(trained.graph, trained.state)
    traces = []

    def prepare(batch):
        traces.append(1)
        return tiny.prepare(batch)[0]

    data = [tiny.batch(16, seed=9), tiny.batch(16, seed=10, masked=5)]
    losses = {}
    for name, state, model in (
        ("average", evaluated_state(trained.state), ts.ema.apply_to(ts.model)),
        ("model", trained.state["model"], ts.model),
    ):
        step = make_eval_step(nnx.graphdef(ts.model), mesh=trained.mesh, prepare=prepare, loss=make_loss())
        result = evaluate_batches(step, state, data, classes=4)
        assert result.count == 27
        expected = [
            optax.softmax_cross_entropy_with_integer_labels(model(tiny.prepare(d)[0]), d["label"])[d["mask"]]
            for d in jax.tree.map(jnp.asarray, data)
        ]
        np.testing.assert_allclose(result.loss, np.concatenate(expected).mean(), rtol=1e-5)
        losses[name] = result.loss
    assert losses["average"] != losses["model"]
    assert len(traces) == 2  # one for each step function
    trained.train(1)  # the evaluation has not donated the state


def test_errors() -> None:
    logits = np.zeros((3, 4), np.float32)
    with pytest.raises(UserError, match="image 1 has the label 7, expected 0 to 3"):
        run(logits, np.array([0, 7, 1]), b=2)
    with pytest.raises(UserError, match="has no images"):
        run(logits[:0], np.zeros(0, int))
    with pytest.raises(UserError, match="probabilities: got 'sigmoi', expected one of"):
        run(logits, np.zeros(3, int), probabilities="sigmoi")


def mean_confidence(evaluation: Evaluation, *, of_mistakes: bool = False) -> float:
    chosen = evaluation.prediction != evaluation.label if of_mistakes else slice(None)
    return evaluation.confidence[chosen].mean()


def test_own_metric_by_hand() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], np.float32))
    result = run(logits, np.array([0, 0, 0]), b=2)
    assert with_metric(result, name=mean_confidence).scalars()["mean_confidence"] == pytest.approx(
        (0.9 + 0.6 + 0.7) / 3
    )
    scalars = with_metric(result, name=mean_confidence, of_mistakes=True).scalars()
    assert scalars.pop("mean_confidence") == pytest.approx(0.6)
    assert scalars == result.scalars()
    assert with_metric(result) is result


def loss(evaluation: Evaluation) -> float:
    return evaluation.loss


def labels(evaluation: Evaluation) -> np.ndarray:
    return evaluation.label


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "operator:nothing"}, "metric.name: the module 'operator' has no 'nothing'"),
        ({"name": mean_confidence, "of_mistake": True}, "metric.name: got an unexpected keyword argument 'of_mistake'"),
        ({"name": loss}, "metric.name: got 'loss', which is the name of another metric"),
        ({"name": labels}, r"metric.name: labels returned .*, expected a number"),
    ],
)
def test_own_metric_errors(options: dict, message: str) -> None:
    result = run(np.eye(3, dtype=np.float32), np.arange(3), b=2)
    with pytest.raises(UserError, match=message):
        with_metric(result, **options)
