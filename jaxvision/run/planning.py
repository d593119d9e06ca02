"""Plans a config: what its train step costs on given devices, without the hardware, the data or any parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvision.analysis.cost import operations
from jaxvision.data.pipeline import FromMemory, FromWorkers
from jaxvision.data.prefetch import AHEAD
from jaxvision.errors import UserError
from jaxvision.parallel.mesh import batch_devices, make_mesh, mesh_text
from jaxvision.parallel.rules import STATE, state_bytes
from jaxvision.plan import (
    Chip,
    Plan,
    PlanResult,
    candidate_meshes,
    choose_best,
    describe_assumptions,
    find_gpus,
    find_topology,
    has_bfloat16,
    largest_batch,
    plan_step,
)
from jaxvision.run.config import complete
from jaxvision.run.program import Program, train_program
from jaxvision.run.recipe import resolve
from jaxvision.train.state import evaluated_leaves, evaluated_state


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
) -> PlanResult:
    """Returns what the train step of `config` costs on TPUs or GPUs that this machine may not have.

    Compiles the step that `train` runs. Allocates no parameters and reads no data, so the properties of the dataset are
    arguments. Pass either `topology` or `device`.

    Args:
      config: a config as for `train`.
      topology: TPUs to compile for, such as ``v5e:16x16``. Needs libtpu.
      device: a GPU such as ``h100``, several such as ``h100:8``, or a memory such as ``8GB``; see
        `jaxvision.plan.find_gpus`.
      num_classes: classes of the dataset.
      channels: channels of the images.
      stored: side in pixels of small images that are kept in memory and cropped on the device. By default the workers
        crop the images.
      compare: also compile the step for the meshes of `jaxvision.plan.candidate_meshes`.
      search: find the largest batch that fits the best mesh, usually with one or two additional compilations, at
        most six.
      quick: use the TPU compiler's least effort. Compiles convnets in a fraction of the time; the program is larger and
        reads more memory than the one that trains.
      log: called with a line before each compilation.

    Raises:
      UserError: a mistake in the config, or an unknown device.
      MissingPackage: `topology` is given and libtpu is not installed, or several GPUs and JAX's CUDA plugin is not.

    Example:
      >>> from jaxvision import run
      >>> config = {"source": {"name": "digits"}, "model": {"name": "test_resnet", "image_size": 32},
      ...           "optimizer": {"learning_rate": 0.1}}
      >>> result = run.plan(ConfigDict(config), device="8GB", num_classes=10, channels=1, search=False)
      >>> result.plans[0].fits
      True
    """
    config = complete(config)
    devices, chip = _find_devices(topology, device)
    if not has_bfloat16(chip.name) and config.model.dtype == "bfloat16":
        raise UserError(
            f"config.model.dtype: got bfloat16, which a {chip.name} does not compute. Set --config.model.dtype=float16."
        )
    if min(num_classes, channels, stored or 1, config.data.batch_size) < 1:
        raise UserError(
            f"plan: got num_classes={num_classes}, channels={channels}, stored={stored} and "
            f"data.batch_size={config.data.batch_size}, expected at least 1 of each."
        )
    steps_per_epoch = 1000.0  # only changes a constant of the schedule
    config, _ = resolve(config, round(steps_per_epoch * config.data.batch_size))
    dataset = {
        "num_classes": num_classes,
        "pipeline": FromWorkers(channels) if stored is None else FromMemory((stored, stored, channels)),
        "steps_per_epoch": steps_per_epoch,
    }
    planner = _Planner(config, dataset, chip, quick, log)
    layouts = planner.distinct_layouts(devices, compare=compare)
    plans = [planner.plan(layout, planner.units(layout.mesh)) for layout in layouts]
    best = choose_best(plans)
    layout = layouts[plans.index(best)]
    tried = {planner.units(layout.mesh): best}
    largest = planner.largest_batch(layout, tried) if search else None
    return PlanResult(
        plans=(best, *(plan for plan in plans if plan is not best)),
        requested_batch_size=config.data.batch_size,
        largest=largest,
        tried={plan.batch_size: plan.total for plan in tried.values()},
        assumptions=describe_assumptions(
            best,
            topology=topology,
            num_classes=num_classes,
            stored=stored,
            compiled_for=devices[0].platform,
            is_present=devices[0] in jax.devices(),
            quick=quick and topology is not None,
        ),
    )


def plan_scaling(config: ConfigDict, topologies: Sequence[str], **options: Any) -> dict[str, PlanResult]:
    """Returns the plan of `config` for each of several TPU topologies, with the same number of images per chip.

    Args:
      config: a config as for `train`. Its batch is the batch of the first topology.
      topologies: such as ``["v5e:2x4", "v5e:16x16"]``.
      **options: keyword arguments of `plan`.

    Raises:
      UserError: as `plan` does.
      MissingPackage: libtpu is not installed.
    """
    config = complete(config)
    chips = [len(find_topology(name)[0]) for name in topologies]
    results = {}
    for name, n in zip(topologies, chips, strict=True):
        scaled = config.copy_and_resolve_references()
        scaled.data.batch_size = max(config.data.batch_size * n // chips[0], 1)
        results[name] = plan(scaled, topology=name, search=False, **options)
    return results


def _find_devices(topology: str | None, device: str | None) -> tuple[Sequence[jax.Device], Chip]:
    if topology is not None and device is None:
        return find_topology(topology)
    if device is not None and topology is None:
        return find_gpus(device)
    raise UserError(
        f"plan: got --topology {topology} and --device {device}, expected one of them. Pass --topology v5e:2x4 for "
        "TPUs or --device a100-40g for a GPU."
    )


@dataclass(frozen=True)
class _Layout:
    """A mesh, and whether ZeRO-1 splits the optimizer's state over it."""

    mesh: Mesh
    zero1: bool


@dataclass(frozen=True)
class _Planner:
    """Plans the step of one config for different layouts and batches.

    Batches are counted in units. One unit is the smallest batch that the layout divides.

    Attributes:
      config: the completed config.
      dataset: the arguments of `train_program` that describe the dataset.
      chip: the device.
      quick: use the TPU compiler's least effort.
      log: called with a line before each compilation.
    """

    config: ConfigDict
    dataset: dict[str, Any]
    chip: Chip
    quick: bool
    log: Callable[[str], None]

    def unit(self, mesh: Mesh) -> int:
        """Returns the smallest batch that the mesh, the microbatches and the BatchNorm groups divide."""
        options = self.config.train
        return math.lcm(batch_devices(mesh), options.batch_norm_group or 1) * options.accumulate

    def units(self, mesh: Mesh) -> int:
        """Returns the config's batch in units, rounded up."""
        return math.ceil(self.config.data.batch_size / self.unit(mesh))

    def program(self, layout: _Layout, units: int, **options: Any) -> Program:
        """Returns the train step for a layout and a batch; `options` replace keys of ``config.train``."""
        config = self.config.copy_and_resolve_references()
        config.sharding.zero1 = layout.zero1
        config.data.batch_size = units * self.unit(layout.mesh)
        config.train.update(options)
        return train_program(config, layout.mesh, **self.dataset)

    def distinct_layouts(self, devices: Sequence[jax.Device], *, compare: bool) -> list[_Layout]:
        """Returns the config's layout and, with `compare`, those candidates that store the state differently."""
        meshes = [(self.config.mesh.to_dict(), self.config.sharding.zero1)]
        if compare and len(devices) > 1:
            meshes += candidate_meshes(devices)
        distinct: dict[tuple[int, ...], _Layout] = {}
        for axes, zero1 in meshes:
            layout = _Layout(make_mesh(axes, devices=devices), zero1)
            program = self.program(layout, 1)
            state = state_bytes(program.abstract, program.shardings)
            distinct.setdefault((batch_devices(layout.mesh), *state.values()), layout)
        return list(distinct.values())

    def plan(self, layout: _Layout, units: int) -> Plan:
        """Compiles the step for a layout and a batch, and returns its cost."""
        mesh = mesh_text(layout.mesh.shape, zero1=layout.zero1)
        self.log(f"compiling the step of {units * self.unit(layout.mesh):,} images for {mesh} ...")
        program = self.program(layout, units)
        traced = program.step.trace(*program.arguments)
        flops = model_flops = float(operations(traced.jaxpr.jaxpr))
        if self.config.train.remat == "nothing":  # recomputed operations are work, but not the model's
            model_flops = _operations_of(self.program(layout, units, remat="products"))
        abstract, shardings = _held(program)
        return plan_step(
            traced,
            chip=self.chip,
            mesh=layout.mesh,
            abstract=abstract,
            shardings=shardings,
            batch=program.batch,
            flops=flops,
            model_flops=model_flops,
            ahead=AHEAD,
            **_start_and_end(program, layout.mesh),
            zero1=layout.zero1,
            quick=self.quick,
            float32=self.config.model.dtype in (None, "float32"),
        )

    def largest_batch(self, layout: _Layout, tried: dict[int, Plan]) -> int:
        """Returns the largest batch that fits a layout.

        Args:
          layout: the layout.
          tried: units -> plan. It holds the plan of the config's batch, and receives every plan compiled here.
        """

        def used(units: int) -> float:
            if units not in tried:
                tried[units] = self.plan(layout, units)
            return tried[units].total

        start = self.units(layout.mesh)
        state = sum(tried[start].bytes[kind] for kind in STATE)
        return largest_batch(used, self.chip.memory, start, empty=state) * self.unit(layout.mesh)


def _start_and_end(program: Program, mesh: Mesh) -> dict[str, float]:
    """Returns the bytes on one device before the first step and after the last, at most.

    The state is initialized or restored one array at a time. At the end the model is restored without the optimizer and
    exported. Devices that belong to several processes gather it, and each process splits it over its own devices.
    """
    held, held_shardings = _held(program)
    largest = max(_size(x) for x in jax.tree.leaves(held))
    start = sum(state_bytes(held, held_shardings).values())
    abstract, shardings = program.abstract, program.shardings
    end: float = sum(state_bytes(evaluated_leaves(abstract), evaluated_leaves(shardings)).values())
    processes = {device.process_index for device in mesh.devices.flat}
    is_split = not all(x.is_fully_replicated for x in jax.tree.leaves(evaluated_state(shardings)))
    if len(processes) > 1 and is_split:
        end += sum(_size(x) for x in jax.tree.leaves(evaluated_state(abstract))) * len(processes) / mesh.size
    return {"start": start + largest, "end": end + largest}


def _held(program: Program) -> tuple[nnx.State, nnx.State]:
    """Returns shapes and shardings of what stays on the devices from step to step: the state and the teacher."""
    teacher = program.teacher
    if teacher is None:
        return program.abstract, program.shardings
    parts = (program.abstract, teacher.abstract), (program.shardings, teacher.distillation.shardings)
    abstract, shardings = (nnx.State({**state, "teacher": leaves}) for state, leaves in parts)
    return abstract, shardings


def _size(x: jax.ShapeDtypeStruct) -> int:
    return x.size * x.dtype.itemsize


def _operations_of(program: Program) -> float:
    return operations(program.step.trace(*program.arguments).jaxpr.jaxpr)
