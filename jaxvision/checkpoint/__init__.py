"""Checkpoints that Orbax writes in the background, with checksums that tell a damaged one from a good one."""

from jaxvision.checkpoint.manager import Checkpoint, Checkpoints, ReadInOneProcessError, saved_steps

__all__ = ["Checkpoint", "Checkpoints", "ReadInOneProcessError", "saved_steps"]
