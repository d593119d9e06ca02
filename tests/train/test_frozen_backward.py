"""Below the first trainable layer the train step computes no backward pass, in any of its forms."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import jaxvision
from jaxvision.analysis.cost import model_info, operations
from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import make_rules, state_shardings
from jaxvision.train.blocks import Blocks
from jaxvision.train.loss import make_loss
from jaxvision.train.state import abstract_state, create_state
from jaxvision.train.step import make_train_step

B, SIZE, CLASSES = 8, 64, 4
EVERYTHING = {"freeze": (".*",)}
ARCHITECTURES = ["test_resnet", "test_vit", "test_efficientnet"]


def trace(
    architecture: str,
    *,
    mesh: dict[str, int] | None = None,
    remat: str | None = None,
    scan: bool = False,
    accumulate: int = 1,
    **frozen: Any,
) -> Any:
    """Returns the traced step of a model whose layers are frozen as `create_model` takes it."""
    axes = mesh or {"data": 1}
    devices = make_mesh(axes, devices=jax.devices()[: max(axes.values())])
    build = functools.partial(jaxvision.create_model, architecture, num_classes=CLASSES, image_size=SIZE, **frozen)
    graph, abstract = abstract_state(functools.partial(create_state, tx=optax.sgd(0.1)), build)
    model = nnx.eval_shape(build)
    rules = make_rules(devices, model.tensor_rules, min_size=1)
    blocks = Blocks(devices, rules, pattern=model.block_pattern, remat=remat, scan=scan)
    step = make_train_step(
        graph,
        mesh=devices,
        shardings=state_shardings(abstract, devices, rules.stored, moments=rules.moments, unused_ok=True),
        loss=make_loss(),
        learning_rate=0.1,
        prepare=lambda batch, step: (batch["image"], batch["label"]),
        accumulate=accumulate,
        blocks=None if blocks.is_default else blocks,
    )
    shapes = {"image": (B, SIZE, SIZE, 3), "label": (B,), "mask": (B,)}
    types = {"image": jnp.float32, "label": jnp.int32, "mask": jnp.bool_}
    return step.trace(abstract, {key: jax.ShapeDtypeStruct(shape, types[key]) for key, shape in shapes.items()})


def count(architecture: str, **options: Any) -> int:
    """Returns the operations of the products and convolutions of a step."""
    return operations(trace(architecture, **options).jaxpr.jaxpr)


FORMS: list[dict[str, Any]] = [
    {},
    {"remat": "nothing"},
    {"remat": "products"},
    {"scan": True},
    {"accumulate": 2},
    {"mesh": {"fsdp": 4}},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)) or "plain")
@pytest.mark.parametrize(
    "architecture",
    ["test_resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES[1:])],
)
def test_a_frozen_backbone_has_only_a_forward_pass(architecture: str, form: dict[str, Any]) -> None:
    forward = count(architecture, **EVERYTHING, **form)
    gradient_of_head = 2 * B * nnx.eval_shape(lambda: jaxvision.create_model(architecture)).num_features * CLASSES
    assert count(architecture, freeze_backbone=True, **form) == forward + gradient_of_head


@pytest.mark.parametrize(
    "architecture",
    ["test_resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES[1:])],
)
def test_only_trainable_layers_have_a_backward_pass(architecture: str) -> None:
    """A trainable layer has two products in the backward pass, the lowest only that of its kernel's gradient."""
    forward = count(architecture, **EVERYTHING)
    everything = count(architecture)
    for frozen in (1, 2, 3):
        model = jaxvision.create_model(architecture, num_classes=CLASSES, image_size=SIZE, freeze_layers=frozen)
        stages = model_info(model, image_size=SIZE).stages[frozen:]
        trainable = 2 * B * sum(stage.multiply_adds_with_attention for stage in stages)
        backward = count(architecture, freeze_layers=frozen) - forward
        assert trainable < backward <= 2 * trainable, frozen
        assert backward < everything - forward


@pytest.mark.slow
@pytest.mark.parametrize("form", [{}, {"scan": True, "mesh": {"fsdp": 4}}], ids=["plain", "scan-fsdp"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_compiled_program_has_no_backward_pass_of_a_frozen_backbone(
    architecture: str, form: dict[str, Any]
) -> None:
    """By XLA's own count, which includes the operations of norms and activations."""

    def flops(**frozen: Any) -> float:
        return trace(architecture, **frozen, **form).lower().compile().cost_analysis()["flops"]

    forward, head_only, everything = flops(**EVERYTHING), flops(freeze_backbone=True), flops()
    assert head_only == pytest.approx(forward, rel=0.01)
    assert everything > 2 * forward
