"""Plans for GPUs that this machine does not have."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from support.plans import digits_config

from jaxvision import plan, run
from jaxvision.data.pipeline import FromWorkers
from jaxvision.errors import UserError
from jaxvision.models.layers.attention import Attention
from jaxvision.parallel import chips
from jaxvision.parallel.mesh import make_mesh
from jaxvision.plan import gpus
from jaxvision.platform import compiled_for
from jaxvision.run.program import train_program


def test_every_gpu_of_the_data_sheets_can_be_compiled_for():
    assert gpus.ARCHITECTURES.keys() == chips.GPUS.keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100:nine", "got 'h100:nine', expected a GPU and a number of them, such as h100:8"),
        ("h100:9", "got 9 GPUs, expected 1 to 8"),
        ("h100:0", "got 0 GPUs, expected 1 to 8"),
        ("h101", "device: got 'h101'"),
    ],
)
def test_mistakes(name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        plan.find_gpus(name)


def test_without_the_compiler_one_gpu_is_estimated_and_several_are_refused(monkeypatch):
    monkeypatch.setattr(gpus, "has_compiler", lambda: False)
    devices, chip = plan.find_gpus("h100")
    assert (devices[0].platform, chip.name) == ("cpu", "h100")
    with pytest.raises(UserError, match=r"cuda12"):
        plan.find_gpus("h100:8")
    result = run.plan(digits_config(), device="h100", num_classes=10, channels=1, search=False)
    assert any("a rough estimate from a program compiled for this CPU" in line for line in result.assumptions)


def test_the_link_of_a_gpu_is_that_to_the_switch():
    assert plan.link_speed(chips.GPUS["h100"], [0, 1], [0, 1, 2, 3]) == 450e9


def test_the_working_memory_of_a_library_is_no_traffic():
    program = textwrap.dedent("""
    ENTRY %main (x: bf16[8,8]) -> bf16[8,8] {
      %x = bf16[8,8]{1,0} parameter(0)
      %y = (bf16[8,8]{1,0}, s8[4194304]{0}) custom-call(%x, %x), custom_call_target="__cublas$lt$matmul"
      ROOT %z = bf16[8,8]{1,0} get-tuple-element(%y), index=0
    }""")
    assert plan.count_traffic(program) == 3 * 128


VIT = {"name": "test_vit", "image_size": 32, "dtype": "bfloat16"}


@pytest.mark.cuda
@pytest.mark.parametrize("model", [{}, VIT], ids=["resnet", "vit"])
@pytest.mark.parametrize("name", [*gpus.ARCHITECTURES, "8GB"])
def test_a_step_is_compiled_for_every_gpu(name, model):
    if name == "t4" and model:
        model = {**model, "dtype": "float16"}
    result = run.plan(digits_config(model=model), device=name, num_classes=10, channels=1, search=False)
    assert result.plans[0].fits
    assert not any("compiled for this CPU" in line for line in result.assumptions)


def test_a_t4_has_no_bfloat16():
    with pytest.raises(UserError, match=r"config\.model\.dtype: got bfloat16, which a t4 does not compute"):
        run.plan(digits_config(model=VIT), device="t4", num_classes=10, channels=1)


@pytest.mark.cuda
def test_eight_gpus_add_up_their_gradients():
    config = digits_config(data={"batch_size": 64})
    result = run.plan(config, device="h100:8", num_classes=10, channels=1, compare=False, search=False)
    (done,) = result.plans
    assert done.mesh == {"data": 8}
    assert sum(row.bytes for row in done.collectives if row.kind == "all-reduce") >= done.bytes["parameters"]
    assert done.seconds["interconnect"] > 0


@pytest.mark.cuda
@pytest.mark.parametrize("mesh", [{"data": 4, "tensor": 2}, {"fsdp": 8}, {"data": 2, "fsdp": 4}])
@pytest.mark.parametrize("train", [{}, {"scan": True}, {"remat": "products"}, {"remat": "nothing"}], ids=str)
def test_attention_on_every_mesh(mesh, train):
    config = digits_config(data={"batch_size": 64}, model=VIT, mesh={"data": 1, **mesh}, train=train)
    result = run.plan(config, device="h100:8", num_classes=10, channels=1, compare=False, search=False)
    (done,) = result.plans
    assert done.seconds["interconnect"] > 0
    if "fsdp" in mesh:
        gathered = sum(row.bytes for row in done.collectives if row.kind == "all-gather")
        assert gathered <= 2.5 * done.bytes["parameters"] * mesh["fsdp"]


@pytest.mark.cuda
def test_a_t4_has_no_fused_attention():
    """cuDNN's needs the Ampere generation."""
    (device,), _ = plan.find_gpus("t4")
    texts = [attention_program(196, "float16", each) for each in (device, "gpu")]
    assert ["fmha" in text for text in texts] == [False, True]


def attention_program(tokens: int, dtype: str, traced_for: Any = None) -> str:
    """Returns the gradient of an attention layer with two heads, compiled for an H100."""
    (device,), _ = plan.find_gpus("h100")
    mesh = jax.sharding.Mesh([device], ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    attention = nnx.eval_shape(lambda: Attention(128, 2, dtype=dtype, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(attention)

    def loss(state, x):
        return jnp.sum(nnx.merge(graph, state)(x).astype(jnp.float32) ** 2)

    x = jax.ShapeDtypeStruct((4, tokens, 128), dtype)
    with compiled_for(traced_for or mesh):
        traced = jax.jit(jax.grad(loss), in_shardings=(sharding, sharding)).trace(state, x)
    return traced.lower().compile(compiler_options={"xla_gpu_enable_triton_gemm": False}).as_text()


@pytest.mark.cuda
@pytest.mark.parametrize("tokens", [196, 197])
def test_half_precision_attention_is_cudnns_and_stores_no_weights(tokens):
    text = attention_program(tokens, "bfloat16")
    assert text.count("__cudnn$fmhaSoftmaxBackward")
    assert text.count("__cudnn$fmhaSoftmax") >= 2
    assert not re.search(rf"f32\[4,2,{tokens},{tokens}\]", text)


@pytest.mark.cuda
def test_float32_attention_is_xlas():
    text = attention_program(196, "float32")
    assert "fmha" not in text
    assert re.search(r"f32\[4,2,196,196\]", text)


@pytest.mark.cuda
@pytest.mark.parametrize("n", [1, 2])
def test_the_residual_stream_of_a_vit_is_not_transposed(n):
    """All tokens [b, n, d] have the channels innermost, although the sum of their gradients has not."""
    devices, _ = plan.find_gpus(f"h100:{n}")
    config = digits_config(
        data={"batch_size": 8 * n}, model={"name": "vit_tiny_patch16_224", "dtype": "bfloat16", "image_size": 224}
    )
    mesh = make_mesh({"data": n}, devices=devices)
    program = train_program(run.complete(config), mesh, num_classes=10, pipeline=FromWorkers(1), steps_per_epoch=10.0)
    traced = program.step.trace(*program.arguments)
    text = traced.lower().compile(compiler_options={"xla_gpu_enable_triton_gemm": False}).as_text()
    assert set(re.findall(r"bf16\[8,197,192\]\{([\d,]+)", text)) == {"2,1,0"}
