"""Writes tests/golden/trajectories.json: where timm's and PyTorch's optimizers and schedules get to in `descent`.

    python tests/golden/make_trajectories.py

It needs PyTorch and timm (the extra ``reference``) and takes seconds. Everything is computed in float64.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from golden import descent  # noqa: E402
from support.reference import import_timm  # noqa: E402

TO_TORCH = {1: (0,), 2: (1, 0), 3: (0, 1, 2), 4: (3, 2, 0, 1)}  # axes of PyTorch's layout


def trajectory(case: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Returns the parameters after each step in `KEPT`, by name, for a case of `OPTIMIZERS`."""
    import torch

    tensors = {name: torch.nn.Parameter(torch.from_numpy(to_torch(v))) for name, v in descent.start().items()}
    optimizers = create_optimizers(case, tensors)
    schedulers = []
    if "schedule" in case:  # a scheduler sets the rate, and multiplies it by `lr_scale`
        schedulers = [create_scheduler(descent.SCHEDULES[case["schedule"]], each) for each in optimizers]
    kept = {}
    for step in range(descent.STEPS):
        for name, tensor in tensors.items():
            value = to_jax(tensor.detach().numpy())
            tensor.grad = torch.from_numpy(to_torch(descent.gradient(name, step, value)))
        if "clip_norm" in case and case["name"] != "lamb":  # timm's LAMB clips by itself
            torch.nn.utils.clip_grad_norm_(list(tensors.values()), case["clip_norm"])
        for each in schedulers:
            each.step_update(step)
        for each in optimizers:
            each.step()
        if step + 1 in descent.KEPT:
            kept[str(step + 1)] = {n: rounded(to_jax(t.detach().numpy())) for n, t in tensors.items()}
    return kept


def create_optimizers(case: dict[str, Any], tensors: dict[str, Any]) -> list[Any]:
    """Returns timm's optimizers for a case: one, or Muon and AdamW for the parameters that are not Muon's."""
    import timm.optim

    def groups(names: Any) -> list[dict[str, Any]]:
        return [
            {
                "params": [tensors[name]],
                "weight_decay": 0.0 if name in descent.UNDECAYED else case["weight_decay"],
                "lr_scale": descent.layer_scale(name, case.get("layer_decay", 1.0)),
            }
            for name in names
        ]

    create = partial(timm.optim.create_optimizer_v2, lr=descent.PEAK, weight_decay=0.0)
    name, betas = case["name"], {"betas": case.get("betas", (0.9, 0.999))}
    epsilon = {"eps": case["epsilon"]} if "epsilon" in case else {}
    if name == "sgd":
        opt = "sgd" if case.get("nesterov") else "momentum"  # timm's names
        return [create(groups(tensors), opt=opt, momentum=case.get("momentum", 0.9))]
    if name == "adamw":
        return [create(groups(tensors), opt="adamw", **betas, **epsilon)]
    if name == "lamb":
        return [create(groups(tensors), opt="lamb", max_grad_norm=case.get("clip_norm"), **betas, **epsilon)]
    # timm's Muon with Nesterov momentum leaves the rest to NAdamW, and Muon's author and PyTorch to AdamW.
    muon = create(
        groups(descent.HIDDEN),
        opt="nmuon" if case.get("nesterov", True) else "muon",
        momentum=case.get("momentum", 0.95),
        ns_coefficients="original",
    )
    return [muon, create(groups([n for n in tensors if n not in descent.HIDDEN]), opt="adamw", **betas)]


def schedule(case: dict[str, Any]) -> list[float]:
    """Returns the learning rates of a case of `SCHEDULES`, from step 0 to two steps past the end."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=descent.PEAK)
    scheduler, rates = create_scheduler(case, optimizer), []
    for step in range(descent.STEPS + 3):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rounded(rates)


def create_scheduler(case: dict[str, Any], optimizer: Any) -> Any:
    """Returns timm's scheduler for a case, which counts updates and begins after the warm-up."""
    from timm.scheduler import create_scheduler_v2

    warmup, name, options = case.get("warmup_steps", 0), case["name"], {}
    if name == "linear":
        options = {"decay_rate": 1.0}  # the power of the polynomial
    if name == "step":  # timm applies a milestone one update earlier than PyTorch and the papers
        milestones = [round(m * case["steps"]) - warmup + 1 for m in case["milestones"]]
        options = {"decay_rate": case["factor"], "decay_milestones": milestones}
    return create_scheduler_v2(
        optimizer,
        sched={"linear": "poly", "step": "multistep"}.get(name, name),
        num_epochs=case["steps"] - warmup,
        warmup_epochs=warmup,
        warmup_lr=case.get("warmup_from", 0.0) * descent.PEAK,
        warmup_prefix=True,
        min_lr=case.get("end", 0.0) * descent.PEAK,
        step_on_epochs=False,
        updates_per_epoch=1,
        **options,
    )[0]


def to_torch(array: np.ndarray) -> np.ndarray:
    """Returns a kernel with outputs first."""
    return np.ascontiguousarray(array.transpose(TO_TORCH[array.ndim]))


def to_jax(array: np.ndarray) -> np.ndarray:
    """Returns a kernel with outputs last."""
    return array.transpose(np.argsort(TO_TORCH[array.ndim]))


def rounded(numbers: Any) -> list[float]:
    """Returns numbers with nine digits, more than a float32 has."""
    return [float(f"{x:.9g}") for x in np.ravel(numbers)]


def compute() -> dict[str, dict[str, Any]]:
    """Returns what the file holds."""
    timm = import_timm()
    import torch
    from timm.optim import muon

    in_float64 = partial(muon.zeropower_via_newtonschulz, dtype=torch.float64)  # instead of bfloat16
    with mock.patch.object(muon, "zeropower_via_newtonschulz", in_float64):
        optimizers = {name: trajectory(case) for name, case in descent.OPTIMIZERS.items()}
    schedules = {name: schedule(case) for name, case in descent.SCHEDULES.items()}
    return {"timm": timm.__version__, "optimizers": optimizers, "schedules": schedules}


if __name__ == "__main__":
    text = json.dumps(compute(), indent=1)
    text = re.sub(r"\[[^\[\]]*\]", lambda numbers: " ".join(numbers[0].split()), text)  # a list is a line
    (HERE / "trajectories.json").write_text(text + "\n", encoding="utf-8")
