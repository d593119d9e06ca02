"""jaxvision.train.distill: the losses against their formulas and timm's, and a teacher that never changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from support import tiny

from jaxvision import tree
from jaxvision.analysis.cost import operations
from jaxvision.augment.preprocess import Preprocess
from jaxvision.errors import UserError
from jaxvision.models.base import Model
from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import largest_axis, make_rules, state_shardings
from jaxvision.train.blocks import Blocks
from jaxvision.train.distill import Distillation, add_projection, convert_images, weights_checksum, without_projection
from jaxvision.train.loss import make_loss
from jaxvision.train.state import place_model

PREPROCESS = Preprocess(image_size=6, mean=(0.5,) * 3, std=(0.5,) * 3)
CLASSES = 4


class Pooled(Model):
    """Convolution, pooling, and one head or two."""

    classifier_names = ("head", "head_dist")

    def __init__(self, *, features: int = 8, heads: int = 1, phase: float = 0.0, rngs: nnx.Rngs):
        self.num_classes, self.num_features = CLASSES, features
        self.conv = nnx.Conv(3, features, (3, 3), kernel_init=tiny.waves, rngs=rngs)
        self.head, self.head_dist = (
            nnx.Linear(
                features,
                CLASSES,
                kernel_init=lambda *args, scale=scale: scale * jnp.cos(phase + tiny.waves(*args)),
                rngs=rngs,
            )
            for scale in (1.0, 2.0)
        )
        self.heads = heads

    def forward_features(self, images: jax.Array) -> jax.Array:
        return jax.nn.relu(self.conv(images))

    def forward_heads(self, features: jax.Array) -> tuple[jax.Array, ...]:
        x = features.mean((1, 2))
        return tuple(head(x) for head in (self.head, self.head_dist)[: self.heads])

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        if pre_logits:
            return features.mean((1, 2))
        heads = self.forward_heads(features)
        return sum(heads[1:], heads[0]) / len(heads)


def build(**options: Any) -> Any:
    return lambda: Pooled(**options, rngs=nnx.Rngs(0))


def distill(
    teacher: Any, mesh: jax.sharding.Mesh | None = None, preprocess: Preprocess = PREPROCESS, **options: Any
) -> tuple[Distillation, nnx.State]:
    """Returns a distillation and the teacher's arrays; on a mesh, the kernels are split over all devices."""
    graph, state = nnx.split(teacher())
    devices = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    rules = make_rules(devices)
    table = [(r".*", largest_axis("data", devices, min_size=1))]
    shardings = state_shardings({"model": state}, devices, table)["model"]
    blocks = None if mesh is None else Blocks(devices, rules)
    student = PREPROCESS
    distillation = Distillation(graph, shardings, student, preprocess, blocks=blocks, **options)
    return distillation, place_model(teacher, shardings)[1]


def losses_of(student: Model, teacher: Any, **options: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    distillation, state = distill(teacher, **options)
    images, labels = tiny.prepare(tiny.batch(8))
    return jax.device_get(distillation(student, images, labels, loss=make_loss(), teacher=state))


def logits_of(model: Model) -> np.ndarray:
    images, _ = tiny.prepare(tiny.batch(8))
    return np.asarray(model(images), np.float64)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_losses_of_logits(kind: str, heads: int) -> None:
    student, teacher = build(heads=heads)(), build(phase=1.0)
    options = {"kind": kind, "weight": 0.3} | ({"temperature": 2.5} if kind == "soft" else {})
    logits, losses = losses_of(student, teacher, **options)
    images, labels = tiny.prepare(tiny.batch(8))
    own = [np.asarray(x, np.float64) for x in student.forward_heads(student.forward_features(images))]
    t = logits_of(teacher())
    task = -np.take_along_axis(log_softmax(own[0], -1), labels[:, None], 1)[:, 0]
    if kind == "soft":
        # Hinton et al., section 2; scipy's entropy of two distributions is their KL divergence.
        expected = 2.5**2 * entropy(softmax(t / 2.5, -1), softmax(own[-1] / 2.5, -1), axis=-1)
    else:
        # DeiT, equation 3.
        expected = -np.take_along_axis(log_softmax(own[-1], -1), t.argmax(-1)[:, None], 1)[:, 0]
    np.testing.assert_allclose(losses["task_loss"], task, rtol=1e-5)
    np.testing.assert_allclose(losses["distillation_loss"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses["loss"], 0.7 * task + 0.3 * expected, rtol=1e-4)
    np.testing.assert_allclose(logits, np.mean(own, axis=0), rtol=1e-5)


def test_loss_of_features() -> None:
    student, teacher = build()(), build(features=12, phase=1.0)
    add_projection(student, 12, rngs=nnx.Rngs(1))
    _, losses = losses_of(student, teacher, kind="features")
    images, _ = tiny.prepare(tiny.batch(8))
    pooled, wanted = (
        np.asarray(jax.nn.relu(model.conv(images)).mean((1, 2)), np.float64) for model in (student, teacher())
    )
    projection = student.distill_projection
    difference = pooled @ np.asarray(projection.kernel[...]) + np.asarray(projection.bias[...]) - wanted
    np.testing.assert_allclose(losses["distillation_loss"], (difference**2).mean(-1), rtol=1e-5)
    assert "distill_projection.kernel" in tree.names(nnx.state(student))
    assert tree.names(nnx.state(without_projection(student))) == tree.names(nnx.state(build()()))


@pytest.mark.timm
@pytest.mark.parametrize("task", ["LogitDistillationTask", "FeatureDistillationTask", "soft", "hard"])
def test_losses_equal_those_of_timm(task: str) -> None:
    """The same models and images; `soft` and `hard` are timm's TokenDistillationTask of a DeiT."""
    import torch
    from support.against_timm import pair
    from support.reference import import_timm

    import_timm()
    from timm import task as tasks

    name = "deit_tiny_distilled_patch16_224" if task in ("soft", "hard") else "test_vit"
    student, ours = pair(name, img_size=32, num_classes=5, depth=2)
    teacher, ours_teacher = pair("test_resnet", num_classes=5)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    labels = np.array([1, 4, 0, 2])
    student.pretrained_cfg = student.pretrained_cfg | {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    options: dict[str, Any] = {"task_loss_weight": 0.7, "distill_loss_weight": 0.3, "verbose": False}
    if task != "FeatureDistillationTask":
        options["temperature"] = 3.0
    if task in ("soft", "hard"):
        options["distill_type"] = task
    kind = {"LogitDistillationTask": "soft", "FeatureDistillationTask": "features"}.get(task, task)
    cls = getattr(tasks, task if "Task" in task else "TokenDistillationTask")
    timm_task = cls(student, teacher, criterion=torch.nn.CrossEntropyLoss(), **options)
    if kind == "features":
        add_projection(ours, ours_teacher.num_features, rngs=nnx.Rngs(0))
        theirs = timm_task.trainable_module.projection
        ours.distill_projection.kernel[...] = jnp.asarray(theirs.weight.detach().numpy().T)
        ours.distill_projection.bias[...] = jnp.asarray(theirs.bias.detach().numpy())
    timm_task.train()  # a distilled student then returns both logits; these models have no dropout
    with torch.no_grad():
        expected = timm_task(torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels))
    graph, state = nnx.split(ours_teacher)
    cfg = teacher.pretrained_cfg
    distillation = Distillation(
        graph,
        None,
        Preprocess(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
        Preprocess(image_size=32, mean=cfg["mean"], std=cfg["std"]),
        kind=kind,
        weight=0.3,
        temperature=3.0,
    )
    _, losses = distillation(ours, jnp.asarray(images), jnp.asarray(labels), loss=make_loss(), teacher=state)
    names = {"loss": "loss", "task_loss": "task_loss", "kd_loss": "distillation_loss"}
    names |= {"distill_loss": "distillation_loss"}
    compared = {names[key]: float(value) for key, value in expected.items() if key in names}
    assert compared.keys() == losses.keys()
    for key, value in compared.items():
        np.testing.assert_allclose(losses[key].mean(), value, rtol=2e-5, err_msg=key)


def run(teacher: Any = None, devices: int = 1, heads: int = 1, accumulate: int = 1, **options: Any) -> tiny.Run:
    """Returns a training state and its step; with a teacher the step takes its arrays, in ``teacher``."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    distillation, state = (None, None) if teacher is None else distill(teacher, mesh, **options)
    student = tiny.Run(
        build(heads=heads),
        optax.sgd(0.1, momentum=0.9),
        devices=devices,
        distillation=distillation,
        accumulate=accumulate,
    )
    student.teacher = state
    return student


def test_the_teacher_has_no_gradient_and_does_not_change() -> None:
    """The distilled step has the operations of the plain one and of the teacher's forward pass, and no others."""
    plain, distilled = run(), run(build(features=16, phase=1.0))
    before = tiny.arrays(distilled.teacher)
    distilled.state, metrics = distilled.step(distilled.state, tiny.batch(), distilled.teacher)
    after = tiny.arrays(distilled.teacher)
    assert all((before[name] == after[name]).all() for name in before)
    assert metrics.keys() == {
        *("accuracy", "distillation_loss", "finite", "grad_norm", "learning_rate", "loss", "task_loss")
    }
    teacher = build(features=16)()
    images, _ = tiny.prepare(tiny.batch())
    forward = operations(jax.make_jaxpr(teacher)(images).jaxpr)
    assert forward == 2 * 16 * (6 * 6 * 27 * 16 + 16 * CLASSES)
    counts = [
        operations(step.trace(state, tiny.batch(), *rest).jaxpr.jaxpr)
        for step, state, rest in (
            (plain.step, plain.abstract, ()),
            (distilled.step, distilled.abstract, (distilled.teacher,)),
        )
    ]
    assert counts[1] - counts[0] == forward
    assert plain.abstract == distilled.abstract  # no optimizer state and no checkpoint of the teacher


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_same_on_one_device_and_eight_and_with_microbatches(kind: str) -> None:
    options = {"kind": kind, "heads": 2}
    runs = [run(build(features=16, phase=1.0), **each, **options) for each in ({}, {"devices": 8, "accumulate": 2})]
    for each in runs:
        for i in range(2):
            each.state, each.metrics = each.step(each.state, tiny.batch(seed=i), each.teacher)
    one, many = runs
    assert {x.sharding.is_fully_replicated for x in jax.tree.leaves(many.teacher)} == {True, False}
    for key in one.metrics:
        np.testing.assert_allclose(one.metrics[key], many.metrics[key], rtol=2e-5, atol=1e-6, err_msg=key)
    for name, x in one.arrays().items():
        np.testing.assert_allclose(x, many.arrays()[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_student_that_learns_from_the_teacher_alone_approaches_it() -> None:
    student = run(build(phase=1.0), weight=1.0)
    losses = []
    for i in range(20):
        student.state, metrics = student.step(student.state, tiny.batch(seed=i), student.teacher)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_images_are_converted_for_the_teacher() -> None:
    """Against Pillow, whose resize of float images is not rounded, and the definition of normalization."""
    pixels = np.random.default_rng(0).uniform(0, 1, (1, 12, 12, 3)).astype(np.float32)
    given = Preprocess(image_size=12, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    normalized = (pixels - np.float32(given.mean)) / np.float32(given.std)
    for size, interpolation in ((12, "bicubic"), (20, "bicubic"), (20, "bilinear"), (7, "bicubic")):
        wanted = Preprocess(image_size=size, interpolation=interpolation)
        resized = [
            Image.fromarray(pixels[0, :, :, c]).resize((size, size), getattr(Image.Resampling, interpolation.upper()))
            for c in range(3)
        ]
        expected = (np.stack(resized, -1) - np.float32(wanted.mean)) / np.float32(wanted.std)
        np.testing.assert_allclose(convert_images(normalized, given, wanted)[0], expected, rtol=1e-4, atol=1e-5)


def test_checksum_depends_on_the_values_alone() -> None:
    teacher = build()
    mesh = make_mesh()
    _, split = distill(teacher, mesh)
    _, whole = distill(teacher)
    assert weights_checksum(split) == weights_checksum(whole)
    whole["head"]["bias"][...] = whole["head"]["bias"][...].at[0].add(1e-6)
    assert weights_checksum(split) != weights_checksum(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "softt"}, r"^teacher.kind: got 'softt'.*'soft'"),
        ({"weight": 1.5}, r"^teacher.weight: got 1.5, expected a share of the loss, from 0 to 1"),
        ({"temperature": 0.0}, r"^teacher.temperature: got 0.0, expected a number above 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distill(build(), **options)
