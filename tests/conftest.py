"""What every test stands on: the CPU, eight of them when asked, no silent broadcasting, and reasons for skips."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

# Eight fake devices let sharding be tested on a laptop. Before JAX starts, or they are not there.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",  # most of the suite's time is compilation, of programs that run once
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network

import jax
import pytest
from support.paths import shared_folder
from support.reference import have_timm

jax.config.update("jax_numpy_rank_promotion", "raise")


def have_slurm() -> bool:
    """Returns whether jobs can be submitted here."""
    return (
        shutil.which("sinfo") is not None and not subprocess.run(["sinfo"], capture_output=True, check=False).returncode
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take more than half a minute, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    conditions = {
        "slow": (config.getoption("--slow"), "takes long: run with --slow"),
        "shared": ((shared_folder() / "data").is_dir(), "needs ../shared/data (or JAXVISION_SHARED)"),
        "timm": (have_timm(), "needs the extra [reference]: PyTorch and timm"),
        "libtpu": (importlib.util.find_spec("libtpu") is not None, "needs the extra [tpu]: libtpu"),
        "slurm": (have_slurm(), "needs a Slurm cluster that answers sinfo"),
        "ray": (importlib.util.find_spec("ray") is not None, "needs Ray: pip install 'ray[default,train]'"),
        "gpu": (any(d.platform == "gpu" for d in jax.devices()), "needs a GPU"),
    }
    for item in items:
        for name, (met, reason) in conditions.items():
            if item.get_closest_marker(name) and not met:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def shared() -> Path:
    """The folder ../shared; use it in tests marked `shared`."""
    return shared_folder()
