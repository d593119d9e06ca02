"""A device without enough memory is reported in one line. The arrays are real, and too large for any machine."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from ml_collections import ConfigDict
from support.quick import quick

from jaxvision import run
from jaxvision.cli.exit import exit_status
from jaxvision.errors import UserError

ADVICE = r"data\.batch_size .*train\.accumulate or train\.remat=nothing\. `jaxvision plan`"


def huge(x: jax.Array) -> jax.Array:
    """Returns a number for which a program has to store 64 TiB."""
    rows = jax.lax.broadcasted_iota(jnp.float32, (2**22, 2**22), 0)
    return jnp.sort(jnp.sin(rows * jax.lax.stop_gradient(x)), axis=0)[0, 0]


def huge_images(images: jax.Array, *, key: jax.Array) -> jax.Array:
    return images + huge(images.max())


def huge_loss():
    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets) + huge(logits.max())

    return loss


@pytest.mark.parametrize("section", ["augment", "loss"])  # in the train step; in the evaluation, which comes first
def test_a_step_that_does_not_fit(section: str, tmp_path) -> None:
    own = {"augment": {"name": huge_images}, "loss": {"kind": huge_loss}}[section]
    config = quick("resnet", train={"steps": 1})
    config[section] = ConfigDict(own)
    with pytest.raises(UserError, match=rf"out of memory: .*RESOURCE_EXHAUSTED: Out of memory .*\d+ bytes.*{ADVICE}"):
        run.train(config, tmp_path)


def test_a_command_ends_in_one_line(capsys: pytest.CaptureFixture) -> None:
    assert exit_status(lambda: int(jax.jit(huge)(1.0))) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: out of memory: ")
    assert err.count("\n") == 1
    with pytest.raises(RuntimeError, match="INTERNAL"):  # another error of XLA stays as it is
        exit_status(lambda: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("INTERNAL: RESOURCE")))
