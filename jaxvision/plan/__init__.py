"""What a train step costs on a device, read from the program compiled for it. Nothing here runs the step."""

from jaxvision.parallel.chips import GIB, Chip, chip_of, find_device, memory_fraction
from jaxvision.plan.collectives import Collective, count_collectives
from jaxvision.plan.compiled import plan_step, required_bytes
from jaxvision.plan.gpus import has_bfloat16
from jaxvision.plan.result import PlanResult, describe_assumptions
from jaxvision.plan.roofline import Plan
from jaxvision.plan.search import candidate_meshes, choose_best, largest_batch
from jaxvision.plan.targets import find_gpus, find_topology, link_speed
from jaxvision.plan.traffic import count_traffic

__all__ = [
    "GIB",
    "Chip",
    "Collective",
    "Plan",
    "PlanResult",
    "candidate_meshes",
    "chip_of",
    "choose_best",
    "count_collectives",
    "count_traffic",
    "describe_assumptions",
    "find_device",
    "find_gpus",
    "find_topology",
    "has_bfloat16",
    "largest_batch",
    "link_speed",
    "memory_fraction",
    "plan_step",
    "required_bytes",
]
