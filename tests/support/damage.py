"""Ways to damage a file, and small checkpoints to damage."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxvision.checkpoint import Checkpoints

STATE = {"model": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "optimizer": {"step": jnp.uint32(7)}}
SHARDINGS = jax.tree.map(lambda x: x.sharding, STATE)


def save(workdir: Path, *steps: int, **options: object) -> None:
    """Saves `STATE` plus the step at each of the steps."""
    with Checkpoints(workdir, keep=len(steps), **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, jax.tree.map(lambda x: x + step, STATE), position={"step": step})  # noqa: B023


def folder(workdir: Path, step: int) -> Path:
    """Returns the folder of a checkpoint."""
    return workdir / "checkpoints" / str(step)


def largest_file(folder: Path) -> Path:
    """Returns the file that holds most of the arrays."""
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def flip(file: Path) -> None:
    """Flips one bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    """Truncates a file to half its size."""
    os.truncate(file, file.stat().st_size // 2)
