"""What the train step of a config would take, on devices that need not be there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
from ml_collections import ConfigDict

from jaxvision import plan as planning
from jaxvision.analysis.cost import operations
from jaxvision.data.image_path import FromMemory, FromWorkers
from jaxvision.data.prefetch import AHEAD
from jaxvision.errors import UserError
from jaxvision.parallel.mesh import batch_devices, make_mesh, mesh_text
from jaxvision.parallel.rules import STATE, state_bytes
from jaxvision.run.config import complete
from jaxvision.run.program import train_program


def plan(
    config: ConfigDict,
    *,
    topology: str | None = None,
    device: str | None = None,
    num_classes: int = 1000,
    channels: int = 3,
    stored: int | None = None,
    compare: bool = True,
    search: bool = True,
    quick: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> planning.Answer:
    """Returns what the train step of `config` would take, compiled for devices that need not be there.

    No parameter is allocated and no data are read, so what data tell is given here.

    Args:
      config: as for `train`.
      topology: TPUs to compile for, such as ``v5e:16x16``; needs libtpu.
      device: a GPU such as ``h100``, or a memory such as ``8GB``: compiled for the backend at hand, which is the
        program that would run only on a GPU of that kind, and rough on a CPU.
      num_classes: of the data.
      channels: of the pictures.
      stored: side of small pictures, in pixels, that are kept in memory and cropped on the device; None: the workers
        crop them.
      compare: compare the config's mesh with `planning.candidates`, each of which is compiled.
      search: look for the largest batch on the best of them, which takes up to four further compilations.
      quick: ask a TPU's compiler for its least effort: a fraction of the time for a convnet, and a program that is
        larger and reads more than the one that would run.
      log: told what goes on.

    Raises:
      UserError: a mistake in the config, or an unknown device.
      MissingPackage: no libtpu.
    """
    config = complete(config)
    if (topology is None) == (device is None):
        raise UserError("a plan is for TPUs (--topology v5e:2x4) or for a GPU (--device a100-40g): one of the two")
    if topology is not None:
        devices, chip = planning.topology(topology)
    else:
        devices, chip = jax.devices()[:1], planning.device(cast(str, device))
    facts: dict[str, Any] = {
        "num_classes": num_classes,
        "images": FromWorkers(channels) if stored is None else FromMemory((stored, stored, channels)),
        "steps_per_epoch": 1000.0,  # of the schedule: changes a constant of the program
    }
    if min(num_classes, channels, stored or 1, config.data.batch_size) < 1:
        raise UserError("a plan is for 1 or more classes, channels, pixels and images")
    accumulate, group = config.train.accumulate, config.train.batch_norm_group or 1

    def unit(mesh: jax.sharding.Mesh) -> int:
        """Returns the smallest batch."""
        return math.lcm(batch_devices(mesh), group) * accumulate

    def laid_out(mesh: jax.sharding.Mesh, zero1: bool) -> ConfigDict:
        ours = config.copy_and_resolve_references()
        ours.sharding.zero1 = zero1
        ours.data.batch_size = unit(mesh)
        return ours

    def at(mesh: jax.sharding.Mesh, zero1: bool, units: int) -> planning.Plan:
        """Returns the plan for so many times the smallest batch."""
        ours = laid_out(mesh, zero1)
        ours.data.batch_size *= units
        words = mesh_text(mesh.shape, zero1=zero1)
        log(f"compiling the step of {ours.data.batch_size:,} images for {words} ...")
        program = train_program(ours, mesh, **facts)
        traced = program.step.trace(program.abstract, program.batch)
        done = useful = operations(traced.jaxpr.jaxpr)
        if ours.train.remat == "nothing":  # what is computed a second time is work, but not the model's
            ours.train.remat = "products"
            once = train_program(ours, mesh, **facts)
            useful = operations(once.step.trace(once.abstract, once.batch).jaxpr.jaxpr)
        return planning.read(
            traced,
            chip=chip,
            mesh=mesh,
            abstract=program.abstract,
            shardings=program.shardings,
            batch=program.batch,
            flops=done,
            useful=useful,
            ahead=AHEAD,
            zero1=zero1,
            quick=quick,
            float32=config.model.dtype in (None, "float32"),
        )

    def units(mesh: jax.sharding.Mesh) -> int:
        return math.ceil(config.data.batch_size / unit(mesh))

    axes = [(config.mesh.to_dict(), config.sharding.zero1)]
    if compare and len(devices) > 1:
        axes += planning.candidates(devices)
    layouts: dict[Any, tuple[jax.sharding.Mesh, bool]] = {}  # those that lay the state out in the same way are one
    for sizes, zero1 in axes:
        mesh = make_mesh(sizes, devices=devices)
        program = train_program(laid_out(mesh, zero1), mesh, **facts)
        state = state_bytes(program.abstract, program.shardings)
        layouts.setdefault((batch_devices(mesh), *state.values()), (mesh, zero1))
    found = [(at(mesh, zero1, units(mesh)), mesh) for mesh, zero1 in layouts.values()]
    best = planning.best([done for done, _ in found])
    mesh = next(mesh for done, mesh in found if done is best)
    known = {units(mesh): best}

    def used(n: int) -> float:
        if n not in known:
            known[n] = at(mesh, best.zero1, n)
        return known[n].total

    held = sum(best.bytes[kind] for kind in STATE)
    limit = planning.largest(used, chip.memory, units(mesh), empty=held) if search else None
    return planning.Answer(
        plans=tuple(sorted((done for done, _ in found), key=lambda done: done is not best)),
        asked=config.data.batch_size,
        largest=None if limit is None else limit * unit(mesh),
        tried={done.batch_size: done.total for done in known.values()},
        assumptions=planning.assumptions(
            best,
            topology=topology,
            num_classes=num_classes,
            stored=stored,
            backend=jax.default_backend(),
            quick=quick and topology is not None,
        ),
    )


def plan_scaling(config: ConfigDict, topologies: Sequence[str], **options: Any) -> dict[str, planning.Answer]:
    """Returns the plan for each of several topologies, with as many images on a chip of each.

    Args:
      config: as for `train`; its batch is the one of the first topology.
      topologies: such as ``["v5e:2x4", "v5e:16x16"]``.
      **options: of `plan`.

    Raises:
      UserError: as `plan` does.
    """
    chips = [len(planning.topology(name)[0]) for name in topologies]
    answers = {}
    for name, n in zip(topologies, chips, strict=True):
        ours = ConfigDict(config)
        ours.data = ConfigDict({**config.data, "batch_size": max(config.data.batch_size * n // chips[0], 1)})
        answers[name] = plan(ours, topology=name, search=False, **options)
    return answers
