"""What a train step takes of a chip, read from the program compiled for it; nothing here runs the step."""

from jaxvision.plan.chips import GIB, Chip, device, link_speed, memory_fraction, topology
from jaxvision.plan.program_text import Collective, collectives, traffic
from jaxvision.plan.roofline import Answer, Plan, assumptions, program_bytes, read, too_large
from jaxvision.plan.search import best, candidates, largest

__all__ = [
    "GIB",
    "Answer",
    "Chip",
    "Collective",
    "Plan",
    "assumptions",
    "best",
    "candidates",
    "collectives",
    "device",
    "largest",
    "link_speed",
    "memory_fraction",
    "program_bytes",
    "read",
    "too_large",
    "topology",
    "traffic",
]
