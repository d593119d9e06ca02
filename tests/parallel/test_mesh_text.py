"""A mesh as text."""

from __future__ import annotations

from jaxvision.parallel.mesh import mesh_text


def test_mesh_text_names_the_axes_with_several_devices() -> None:
    assert mesh_text({"data": 16, "fsdp": 16}) == "data=16, fsdp=16"
    assert mesh_text({"data": 1, "fsdp": 8}) == "fsdp=8"
    assert mesh_text({"fsdp": 1}, zero1=True) == "data=1, ZeRO-1"
