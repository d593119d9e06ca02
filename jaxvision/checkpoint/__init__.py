"""Checkpoints that Orbax writes in the background, with checksums that tell a damaged one from a good one."""

from jaxvision.checkpoint.manager import Checkpoints, Restored

__all__ = ["Checkpoints", "Restored"]
