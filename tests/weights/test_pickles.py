"""PyTorch pickles: state_dicts, checkpoints of timm's trainer, and files that try to run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

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
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "params", "module", "my_network"])
def test_the_entry_with_the_weights(key, tmp_path, caplog):
    """Beside it lies what training scripts save as well: counters, tensors, and the state of an optimizer."""
    import torch

    optimizer = torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
    others = {"epoch": 3, "step": torch.tensor(7), "optimizer": optimizer.state_dict(), "best": {"top1": 0.7}}
    torch.save({**others, key: torch_state()}, tmp_path / "model.pth")
    with caplog.at_level("INFO", "jaxvision"):
        assert_loads(tmp_path / "model.pth")
    assert caplog.messages == [f"{tmp_path / 'model.pth'}: loading the entry {key!r}"]


@pytest.mark.timm
@pytest.mark.parametrize(
    ("average", "plain"),
    [("state_dict_ema", "state_dict"), ("model_ema", "model"), ("ema", "model"), ("params_ema", "params")],
)
def test_a_moving_average_is_preferred_and_announced(average, plain, tmp_path, caplog):
    import torch

    torch.save({plain: torch_state(), average: torch_state(seed=5)}, tmp_path / "model.pth")
    assert_loads(tmp_path / "model.pth", seed=5)
    assert caplog.messages == [f"{tmp_path / 'model.pth'}: loading the entry {average!r}, not {plain!r}"]


@pytest.mark.timm
def test_a_checkpoint_of_lightning(tmp_path, caplog):
    """The entries are those of ``Trainer.save_checkpoint``, with torch.compile and a loss that has weights."""
    import torch

    state = {f"model._orig_mod.{key}": value for key, value in torch_state().items()}
    checkpoint = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**state, "criterion.weight": torch.ones(1000)},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "best_model_path": "x"}},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "name": "test_resnet"},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert_loads(tmp_path / "last.ckpt")
    assert caplog.messages == [f"{tmp_path / 'last.ckpt'}: not used: criterion.weight"]


@pytest.mark.timm
def test_an_averaged_model_of_torch(tmp_path, caplog):
    import torch

    model = import_timm().create_model("test_resnet")
    model.load_state_dict(torch_state())
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), tmp_path / "swa.pth")
    assert_loads(tmp_path / "swa.pth")
    assert not caplog.records


@pytest.mark.timm
def test_entries_without_a_known_name_are_listed(tmp_path):
    import torch

    torch.save({"student": torch_state(), "teacher": torch_state(), "epoch": torch.tensor(3)}, tmp_path / "model.pth")
    message = load_error(build("test_resnet"), tmp_path / "model.pth")
    assert "its entries are 'student', 'teacher', 'epoch'" in message
    assert "Save the state_dict as a file of its own" in message


@pytest.mark.timm
def test_values_that_are_not_tensors_are_announced(tmp_path, caplog):
    import torch

    torch.save({**torch_state(), "fc._extra_state": {"scale": 1.0}, "version": 3}, tmp_path / "model.pth")
    assert_loads(tmp_path / "model.pth")
    assert caplog.messages == [f"{tmp_path / 'model.pth'}: not used: fc._extra_state, version"]


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
def test_a_tensor_without_values(tmp_path):
    state = torch_state()
    state["fc.bias"] = state["fc.bias"].to("meta")
    message = save_and_load(state, tmp_path / "model.pth")
    assert "fc.bias is a tensor of PyTorch's meta device, which has no values" in message


@pytest.mark.timm
@pytest.mark.parametrize(
    ("more", "words"), [({}, "without weights"), ({"fc.bias": 0}, "whose entry 'model' contains itself")]
)
def test_a_checkpoint_that_contains_itself(more, words, tmp_path):
    state = torch_state()
    checkpoint = {name: state[name] for name in more}
    checkpoint["model"] = checkpoint
    assert words in save_and_load(checkpoint, tmp_path / "model.pth")
    assert words in save_and_load({"model": checkpoint, "net": {"model": checkpoint}}, tmp_path / "model.pth")


def save_and_load(content: Any, path: Path) -> str:
    """Returns the message of the error that a pickle raises."""
    import torch

    torch.save(content, path)
    return load_error(build("test_resnet"), path)


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
