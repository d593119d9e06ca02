"""The notebooks run from the first cell to the last on the CPU, and are committed without outputs."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.compile_flags import xla_flags
from support.paths import ROOT

import jaxvision

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The cells in which the two notebooks differ: name of the accelerator, package, batch size and type.
ACCELERATOR_CELLS = {"title", "parameters", "doctor-text"}
SMALL = {
    "finetune_gpu": ("test_vit", ["--config.model.image_size=32", "--config.model.patch_size=8"]),
    "finetune_tpu": ("test_resnet", ["--config.model.image_size=32"]),
}


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_committed_without_outputs(path: Path) -> None:
    for cell in cells(path):
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None), cell[
            "id"
        ]
        assert "pip install jaxvision" not in text_of(cell)  # an unrelated project


def test_notebooks_differ_only_in_the_cells_of_the_accelerator() -> None:
    gpu, tpu = ({cell["id"]: text_of(cell) for cell in cells(path)} for path in NOTEBOOKS)
    assert list(gpu) == list(tpu)
    assert {name for name in gpu if gpu[name] != tpu[name]} == ACCELERATOR_CELLS


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Writes images of three colors, puts the command `jaxvision` on the path, and returns the paths to use."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(("red", "green", "blue")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for n in range(10):
            pixels = rng.integers(0, 120, (40 + n, 48, 3), np.uint8)
            pixels[..., i] += 120
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{n}.jpg")
    command = tmp_path / "bin" / "jaxvision"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jaxvision.cli "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("XLA_FLAGS", xla_flags())
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return {"photos": str(tmp_path / "photos"), "workdir": str(tmp_path / "run")}


def with_parameters(source: str, path: Path, small: dict[str, str], **values: object) -> str:
    """Returns the cell of parameters followed by the values of a test."""
    model, flags = SMALL[path.stem]
    more = [*flags, "--config.model.pretrained=False", "--config.data.workers=0"]
    values = small | {"model": model, "epochs": 3, "batch_size": 8, "more": more} | values
    return source + "".join(f"\n{name} = {value!r}" for name, value in values.items())


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.slow] * (p.stem == "finetune_tpu"), id=p.stem) for p in NOTEBOOKS]
)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::ResourceWarning"
)
def test_notebooks_run(path: Path, small: dict[str, str]) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra [dev]: nbformat")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra [dev]: nbclient and ipykernel")
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = with_parameters(parameters.source, path, small)

    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": small["workdir"][:-4]}}).execute()

    outputs = {cell.id: cell.get("outputs", []) for cell in notebook.cells}
    printed = {name: "".join(out.get("text", "") for out in outs) for name, outs in outputs.items()}
    assert "JAX runs on    1 x cpu" in printed["doctor"]
    assert "10 files in blue" in printed["copy"]
    assert "step 7/7" in printed["train"]
    assert "on 6 held-out images" in printed["curve"]
    assert "of 6 are wrong" in printed["mistakes"]
    for name in ("curve", "mistakes", "attention"):
        assert any("image/png" in out.get("data", {}) for out in outputs[name]), name
    assert "export/model.safetensors" in printed["export"]
    for name in ("install", "tensorboard", "flush"):  # only for Colab
        assert outputs[name] == []
    assert jaxvision.load_classifier(small["workdir"]).classes == ("blue", "green", "red")
    if out := os.environ.get("JAXVISION_NOTEBOOKS"):  # saves the executed notebooks there
        nbformat.write(notebook, Path(out) / path.name)


class Kernel:
    """A kernel that runs cells and can be interrupted at a printed text."""

    def __init__(self, folder: Path) -> None:
        client = pytest.importorskip("jupyter_client", reason="needs the extra [dev]: nbclient and ipykernel")
        self.manager, self.client = client.manager.start_new_kernel(cwd=str(folder))

    def run(self, source: str, *, interrupt_at: str | None = None) -> tuple[str, str]:
        """Returns the output of a cell and the name of its error, or "" without one."""
        sent, printed, error = self.client.execute(source), "", ""
        while True:
            message = self.client.get_iopub_msg(timeout=300)
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != sent:
                continue
            if kind == "stream":
                printed += content["text"]
                if interrupt_at is not None and interrupt_at in printed:
                    self.manager.interrupt_kernel()
                    interrupt_at = None
            elif kind == "error":
                error = content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                return printed, error


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::ResourceWarning"
)
def test_an_interrupted_cell_resumes(small: dict[str, str], tmp_path: Path) -> None:
    path = NOTEBOOKS[0]
    cell = {cell["id"]: text_of(cell) for cell in cells(path)}
    kernel = Kernel(tmp_path)
    try:
        for name in ("parameters", "install", "copy"):
            source = with_parameters(cell[name], path, small, epochs=20) if name == "parameters" else cell[name]
            assert kernel.run(source)[1] == ""
        printed, error = kernel.run(cell["train"], interrupt_at="validation at step 9 ")
        assert error == "KeyboardInterrupt", printed
        assert "validation at step 45 " not in printed
        printed, error = kernel.run(cell["train"])
        assert error == "", printed
        assert "45 (20 epochs of 2.2 steps), resuming after step" in printed
        assert "validation at step 45 " in printed
    finally:
        kernel.client.stop_channels()
        kernel.manager.shutdown_kernel(now=True)
