"""Which model to take for a set of images and a device, and why."""

from jaxvision.advice.answer import Recommendation, recommend

__all__ = ["Recommendation", "recommend"]
