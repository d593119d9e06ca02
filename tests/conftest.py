"""Settings of every test: the CPU as eight devices, no silent broadcasting, and which tests are collected."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from support.compile_flags import LEAST_EFFORT

# These must be set before JAX starts. Eight fake devices let a laptop test sharding.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation takes most of the suite's time, and most programs run once: compile them with the least effort. The tests
# of tests/project/test_default_optimization.py run representative ones again as users do.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        *(LEAST_EFFORT if os.environ.get("JAXVISION_TEST_OPTIMIZATION", "least") == "least" else []),
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network
# Test workers and the processes that tests start share compiled programs. The first process makes the folder; the
# others inherit the variable.
PROGRAMS = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/jaxvision-tests-{os.getpid()}")
OWNER = os.environ.setdefault("JAXVISION_TESTS_OWNER", str(os.getpid()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from support.paths import TESTS, shared_folder
from support.reference import have_timm

jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(50_000)  # JAX's caches grow to millions of objects, and each collection visits them


def have_slurm() -> bool:
    """Returns whether jobs can be submitted here."""
    return shutil.which("sinfo") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0


#: marker -> (what `--MARKER` adds, whether it can run here, what it needs)
ON_REQUEST = {
    "slow": ("tests that take more than a few seconds, and every row of large tables", lambda: True, ""),
    "shared": (
        "tests on real images",
        lambda: (shared_folder() / "data").is_dir(),
        "the folder ../shared/data (or JAXVISION_SHARED)",
    ),
    "timm": ("comparisons with timm on PyTorch", have_timm, "pip install '.[reference]'"),
    "libtpu": (
        "compilations for TPUs, on any machine",
        lambda: importlib.util.find_spec("libtpu") is not None,
        "pip install '.[tpu]'",
    ),
    "cuda": (
        "compilations for NVIDIA GPUs, on any machine",
        lambda: importlib.util.find_spec("jax_cuda12_plugin") is not None,
        "pip install '.[cuda12]'",
    ),
    "slurm": ("jobs on a Slurm cluster", have_slurm, "a Slurm cluster that answers sinfo"),
    "ray": ("runs on Ray", lambda: importlib.util.find_spec("ray") is not None, "pip install 'ray[default,train]'"),
}


#: The files of `pytest -m fast`: the contract, layers, tables and errors.
FAST = {
    "test_contract.py",
    "test_classifier.py",
    "advice/test_rule.py",
    "augment/test_augment_decoding.py",
    "augment/test_augment_host.py",
    "augment/test_depths.py",
    "data/test_folder.py",
    "data/test_huggingface.py",
    "data/test_sources.py",
    "data/test_tfds.py",
    "data/test_walk.py",
    "eval/test_metrics.py",
    "models/test_batch_norm.py",
    "models/test_layers.py",
    "models/test_registry.py",
    "parallel/test_mesh_text.py",
    "parallel/test_state_bytes.py",
    "plan/test_collectives.py",
    "plan/test_roofline.py",
    "plan/test_search.py",
    "plan/test_traffic.py",
    "project/test_imports.py",
    "project/test_public_names.py",
    "report/test_report_sections.py",
    "run/test_config.py",
    "run/test_user_errors.py",
    "train/test_loss.py",
    "train/test_schedule.py",
    "weights/test_adapt.py",
    "weights/test_catalog.py",
    "weights/test_damaged_files.py",
    "weights/test_listing.py",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jaxvision", "tests that run on request")
    group.addoption("--all", action="store_true", help="run every test; those that cannot run here skip with a reason")
    for marker, (adds, _, needs) in ON_REQUEST.items():
        group.addoption(f"--{marker}", action="store_true", help=f"add {adds}" + (f"; needs {needs}" if needs else ""))


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests whose flag is not given, and skips those whose flag is given but that cannot run here."""
    asked = {marker for marker in ON_REQUEST if config.getoption("--all") or config.getoption(f"--{marker}")}
    can_run = {marker: ON_REQUEST[marker][1]() for marker in asked}
    kept, left_out = [], []
    for item in items:
        if item.path.is_relative_to(TESTS) and item.path.relative_to(TESTS).as_posix() in FAST:
            item.add_marker(pytest.mark.fast)
        markers = [marker for marker in ON_REQUEST if item.get_closest_marker(marker)]
        if not asked.issuperset(markers):
            left_out.append(item)
            continue
        kept.append(item)
        for marker in markers:
            if not can_run[marker]:
                item.add_marker(pytest.mark.skip(reason=f"needs {ON_REQUEST[marker][2]}"))
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


def pytest_unconfigure(config: pytest.Config) -> None:
    if str(os.getpid()) == OWNER and "jaxvision-tests-" in PROGRAMS:
        shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.fixture
def shared() -> Path:
    """The folder ../shared; use it in tests marked `shared`."""
    return shared_folder()
