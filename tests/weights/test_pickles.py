"""PyTorch pickles: state_dicts, checkpoints of timm's trainer, and files that try to run code."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from support.reference import import_timm
from support.weight_files import abstract, arrays, as_timms, assert_loads, build, load_error, torch_state

from jaxvision.weights import timm


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.timm
@pytest.mark.parametrize("name", ["model.pth", "model.pt", "checkpoint.pth.tar", "pytorch_model.bin"])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_a_pickled_state_dict(name, wrapper, tmp_path):
    import torch

    torch.save({wrapper + key: value for key, value in torch_state().items()}, tmp_path / name)
    assert_loads(tmp_path / name)
    assert timm.num_classes(tmp_path / name, ("fc",)) == 1000


@pytest.mark.timm
@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema", None])
def test_a_checkpoint_of_timms_trainer(average, tmp_path):
    """The file has all entries of timm's CheckpointSaver: flags, optimizer state, epoch. The average is loaded."""
    import argparse

    import torch

    library = import_timm()
    model = library.create_model("test_resnet")
    model.load_state_dict(torch_state())
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint = {
        "epoch": 3,
        "arch": "test_resnet",
        "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "version": 2,
        "args": argparse.Namespace(lr=0.1, model="test_resnet"),
        "amp_scaler": {"scale": 1.0},
        "metric": 71.5,
    }
    if average:
        checkpoint[average] = {f"module.{key}": value for key, value in torch_state(seed=5).items()}
    path = tmp_path / "model_best.pth.tar"
    torch.save(checkpoint, path)
    assert_loads(path, seed=5 if average else 0)
    # timm itself loads the same entry of the file.
    from timm.models import load_checkpoint

    load_checkpoint(model, str(path))
    ours = arrays(timm.load_timm(abstract("test_resnet"), path))
    np.testing.assert_array_equal(ours["fc.kernel"].T, model.fc.weight.detach().numpy())


@pytest.mark.timm
def test_a_file_written_by_timms_checkpoint_saver(tmp_path):
    import argparse

    import torch

    library = import_timm()
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(0)
    model = library.create_model("test_resnet")
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        model.fc.weight.mul_(2)
    args = argparse.Namespace(model="test_resnet", opt="sgd")
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), lr=0.1), args, model_ema=ema, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(0, metric=1.0)
    got = arrays(timm.load_timm(abstract("test_resnet"), tmp_path / "last.pth.tar"))
    np.testing.assert_array_equal(got["fc.kernel"].T, ema.module.fc.weight.detach().numpy())
    assert not np.array_equal(got["fc.kernel"].T, model.fc.weight.detach().numpy())


@pytest.mark.timm
def test_nested_and_old_pickles(tmp_path):
    import torch

    state = {f"module.{key}": value for key, value in torch_state().items()}
    torch.save({"encoder": state, "predictor": {}, "opt": None, "epoch": 300}, tmp_path / "a.pth.tar")
    torch.save(state, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": {"state_dict": state}}, tmp_path / "c.pth")
    for name in ("a.pth.tar", "b.pth", "c.pth"):
        assert_loads(tmp_path / name)


@pytest.mark.timm
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_pickles_of_other_dtypes(dtype, tmp_path):
    import torch

    state = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in torch_state().items()}
    torch.save(state, tmp_path / "model.pth")
    got = arrays(timm.load_timm(abstract("test_resnet"), tmp_path / "model.pth"))
    for name, value in got.items():
        expected = state[timm.timm_name(name)].float().numpy()
        np.testing.assert_array_equal(as_timms(name, value), expected, err_msg=name)


class RunsCode:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, (str(Path(os.environ["FOLDER"]) / "code_ran"),))


@pytest.mark.timm
def test_pickles_run_no_code(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("FOLDER", str(tmp_path))
    for i, content in enumerate(
        [{"state_dict": torch_state(), "extra": RunsCode()}, import_timm().create_model("test_vit")]
    ):
        torch.save(content, tmp_path / f"{i}.pth")
        message = load_error(build("test_resnet"), tmp_path / f"{i}.pth")
        assert "holds more than tensors (" in message
        assert "Save the model's state_dict" in message
    assert not (tmp_path / "code_ran").exists()
    for protocol in (2, 4):
        (tmp_path / "raw.pth").write_bytes(pickle.dumps(RunsCode(), protocol=protocol))
        assert "cannot read this PyTorch pickle as weights" in load_error(build("test_resnet"), tmp_path / "raw.pth")
    assert not (tmp_path / "code_ran").exists()


@pytest.mark.timm
def test_pickles_without_weights(tmp_path):
    import torch

    for content, words in [
        ({"epoch": 3}, "without weights"),
        ({"state_dict": {}}, "without weights"),
        ([1, 2], "of a list"),
    ]:
        torch.save(content, tmp_path / "model.pth")
        assert words in load_error(build("test_resnet"), tmp_path / "model.pth")


@pytest.mark.timm
def test_a_truncated_pickle(tmp_path):
    import torch

    path = tmp_path / "model.pth"
    torch.save(torch_state(), path)
    data, model = path.read_bytes(), build("test_resnet")
    for n in np.linspace(2, len(data) - 1, 10).astype(int):
        path.write_bytes(data[:n])
        assert "cannot read this PyTorch pickle as weights" in load_error(model, path)


@pytest.mark.timm
def test_a_pickle_with_tensors_that_do_not_fit(tmp_path):
    import torch

    for change, words in [
        (lambda x: x.fill_(float("nan")), "the tensor fc.bias contains values that are NaN"),
        (lambda x: x.to(torch.int8), "fc.bias torch.int8"),
        (lambda x: x[:7].clone(), "fc.bias [7] in the file"),
    ]:
        state = torch_state()
        state["fc.bias"] = change(state["fc.bias"])
        torch.save(state, tmp_path / "model.pth")
        assert words in load_error(build("test_resnet"), tmp_path / "model.pth", head="load")


def test_a_pickle_named_safetensors(file):
    for start in (b"PK\x03\x04 and so on", pickle.dumps({}, protocol=2), pickle.dumps({}, protocol=4)):
        file.write_bytes(start)
        message = load_error(build("test_resnet"), file)
        assert "got a PyTorch pickle, expected a safetensors file" in message
        assert "model.pth" in message


def test_a_pickle_without_torch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04")
    message = load_error(build("test_resnet"), tmp_path / "model.pth")
    assert "PyTorch pickle" in message
    assert "pip install '.[torch]'" in message
