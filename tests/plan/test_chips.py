"""The speed of links, and the topologies of libtpu."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from jax.experimental import topologies
from support.plans import grid

from jaxvision import plan
from jaxvision.errors import UserError
from jaxvision.parallel.chips import GPUS, TPUS
from jaxvision.parallel.mesh import make_mesh


@pytest.mark.parametrize(
    ("sides", "group", "links"),
    [
        ((2, 4), range(8), 2),  # two open lines
        ((16, 16), range(256), 4),  # two rings
        ((16, 16), range(16), 2),  # one ring
        ((16, 16), range(8), 1),  # half of a ring is a line
        ((16, 16), range(0, 256, 16), 2),
        ((1, 1), [0], 0),
    ],
)
def test_link_speed(sides: tuple[int, int], group: range, links: int) -> None:
    chip, everyone = plan.Chip("x", 1.0, link=10.0, torus=16), grid(*sides)
    assert plan.link_speed(chip, [everyone[i] for i in group], everyone) == 10.0 * links


@pytest.mark.libtpu
def test_topologies() -> None:
    devices, chip = plan.find_topology("v5e:2x4")
    assert (len(devices), chip.name, plan.link_speed(chip, devices, devices)) == (8, "v5e", 2 * chip.link)
    devices, chip = plan.find_topology("v5p:4x4x4")
    assert plan.link_speed(chip, devices, devices) == 6 * chip.link
    mesh = make_mesh({"data": 4, "fsdp": 16}, devices=devices)
    assert [plan.link_speed(chip, list(x), devices) for x in (mesh.devices[:, 0], mesh.devices[0])] == [
        2 * chip.link,
        4 * chip.link,
    ]
    with pytest.raises(UserError, match="does not lie along the sides of these TPUs' grid"):
        make_mesh({"data": 8, "fsdp": 8}, devices=devices)
    two = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2).devices
    mesh = make_mesh({"data": 2, "fsdp": 8}, devices=two)
    assert [{chip.slice_index for chip in row} for row in mesh.devices] == [{0}, {1}]
    assert len(plan.find_topology("v5e:1x1")[0]) == 1
    with pytest.raises(UserError, match="got 'v5e:3x5', expected a grid that libtpu supports"):
        plan.find_topology("v5e:3x5")


# The names are those of NVIDIA's driver, as benchmarks publish them, and of JAX's TPU client.
@pytest.mark.parametrize(
    ("platform", "kind", "name"),
    [
        ("gpu", "NVIDIA H100 80GB HBM3", "h100"),
        ("gpu", "NVIDIA H200", "h200"),
        ("gpu", "NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("gpu", "NVIDIA A100 80GB PCIe", "a100-80g"),
        ("gpu", "Tesla T4", "t4"),
        ("gpu", "NVIDIA L4", "l4"),
        ("gpu", "NVIDIA L40S", "NVIDIA L40S"),  # not in the table
        ("gpu", "NVIDIA GeForce RTX 4090", "rtx4090"),
        ("tpu", "TPU v5 lite", "v5e"),
        ("tpu", "TPU v5p", "v5p"),
        ("tpu", "TPU v6 lite", "v6e"),
    ],
)
def test_chip_of_a_device(platform: str, kind: str, name: str) -> None:
    device = SimpleNamespace(platform=platform, device_kind=kind, memory_stats=lambda: {"bytes_limit": 1000})
    chip = plan.chip_of(device)
    assert (chip.name, chip.memory) == (name, 1000.0)
    assert bool(chip.flops) == (name in GPUS or name in TPUS)
