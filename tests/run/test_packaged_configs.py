"""The config files that come with the package, and the flags that override them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from support.quick import start

from jaxvision import main as command
from jaxvision import run
from jaxvision.create import create_model
from jaxvision.run.config import leaves, load, packaged
from jaxvision.run.explain import help_text
from jaxvision.weights.timm import save_timm

CONFIGS = [Path(name).stem for name in packaged()]
TINY = {"resnet": "test_resnet", "vit": "test_vit", "efficientnet": "test_efficientnet"}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_a_config_has_an_explanation(name: str) -> None:
    config = run.complete(load(f"configs/{name}.py"))
    texts = run.explain_keys(config)
    for key in leaves(config):
        assert texts.get(key), f"{key} has no explanation"
    assert help_text(f"configs/{name}.py")


@pytest.mark.shared
@pytest.mark.parametrize("name", ["vit_base", "resnet50", "efficientnet_b3"])
def test_fine_tune_configs_run_from_a_local_timm_file(name: str, tmp_path: Path, shared: Path) -> None:
    """The recipe on real CIFAR-10, with the family's tiny model instead of the big one."""
    family = {"vit_base": "vit", "resnet50": "resnet", "efficientnet_b3": "efficientnet"}[name]
    config = load(f"configs/{name}.py")
    save_timm(create_model(TINY[family], seed=5), tmp_path / "model.safetensors")
    config.model.update(
        {"name": TINY[family], "checkpoint_path": str(tmp_path / "model.safetensors"), "image_size": 32}
    )
    if family == "vit":
        config.model.update({"image_size": 160})
    splits = {"train": "train[:256]", "validation": "train[256:320]", "test": "test[:100]"}
    config.source.update({"data_dir": str(shared / "data" / "tfds"), **splits})
    config.data.batch_size = 16
    config.mesh = ConfigDict({"data": 1})
    config.train.update({"steps": 6})  # milestones at 0.3 of it come after the warm-up
    config.schedule.warmup_steps = 1
    result = run.train(config, tmp_path / "run")
    assert result["count"] == 100
    assert np.isfinite(result["loss"])


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_base", "resnet50", "efficientnet_b3"])
def test_fine_tune_configs_run_as_they_are(name: str, tmp_path: Path, shared: Path) -> None:
    """The models at their own size, a few steps of a few images."""
    config = load(f"configs/{name}.py")
    save_timm(create_model(config.model.name.partition(".")[0], seed=5), tmp_path / "model.safetensors")
    config.model.checkpoint_path = str(tmp_path / "model.safetensors")
    splits = {"train": "train[:64]", "validation": "train[64:80]", "test": "test[:16]"}
    config.source.update({"data_dir": str(shared / "data" / "tfds"), **splits})
    config.data.batch_size = 8
    config.mesh = ConfigDict({"data": 1})
    config.train.update({"steps": 6})  # milestones at 0.3 of it come after the warm-up
    config.schedule.warmup_steps = 1
    assert run.train(config, tmp_path / "run")["count"] == 16


def test_help_lists_configs_and_keys(capsys: pytest.CaptureFixture) -> None:
    status, out, _ = start(capsys, "--help")
    assert status == 0
    assert "configs/quickstart.py" in out
    status, out, _ = start(capsys, "--config", "configs/quickstart.py:vit", "--help")
    assert status == 0
    assert "--config.optimizer.layer_decay=None" in out


def test_a_list_of_patterns_is_separated_by_commas() -> None:
    config, _ = command.parse(
        ["--config=configs/quickstart.py:vit", "--config.model.freeze=blocks\\.[01]\\.,patch_embed"]
    )
    assert config is not None
    assert config.model.freeze == ("blocks\\.[01]\\.", "patch_embed")


def test_a_flag_has_the_type_of_the_key() -> None:
    config, _ = command.parse(["--config=configs/quickstart.py:vit", "--config.train.epochs=0.5"])
    assert config is not None
    assert config.train.epochs == 0.5
