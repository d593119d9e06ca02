"""No private part of a dependency is used, except those listed here with their reason."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType

import jax
import pytest
from flax import nnx
from support.paths import ROOT

FOLDERS = ("jaxvision", "configs", "launch", "benchmarks", "tools", "tests")
OURS = {path.stem for folder in FOLDERS for path in [ROOT / folder, *(ROOT / folder).rglob("*")]}
DOTTED = re.compile(r"[a-z]\w*(\.\w+)+")

#: (file, name) -> why there is no public way, and what breaks without it.
ALLOWED = {
    ("jaxvision/parallel/distributed.py", "jax._src.distributed"): (
        "jax.distributed.initialize starts JAX's preemption service at once or never. From its start on, SIGTERM no "
        "longer ends a process that compiles. And processes can exchange messages without a collective only through "
        "JAX's client. The tests below say what breaks without it."
    ),
}


def names_used(source: str) -> Iterator[str]:
    """Yields the dotted names that a module uses of others: imports, attributes of what it imports, and strings."""
    syntax, imported = ast.parse(source), {}
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                package = alias.name.partition(".")[0]
                imported[alias.asname or package] = alias.name if alias.asname else package
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in ast.walk(syntax):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            first, _, rest = name.partition(".")
            if DOTTED.fullmatch(name) and first in imported:
                yield f"{imported[first]}.{rest}"
        elif isinstance(node, ast.Constant) and DOTTED.fullmatch(str(node.value)):
            text = str(node.value)  # such as the name of a logger
            if find_spec(text.partition(".")[0]):
                yield text


def is_private(name: str) -> bool:
    """Returns whether a dotted name goes through something private."""
    parts = name.split(".")
    if name.startswith("flax.nnx.") and len(parts) > 3 and parts[2] not in ("initializers", "bridge"):
        return isinstance(getattr(nnx, parts[2], None), ModuleType)  # Flax documents these two and names of flax.nnx
    return any(re.match(r"_[^_]", part) for part in parts[1:])


@pytest.mark.parametrize("folder", FOLDERS)
def test_only_listed_private_names_are_used(folder: str) -> None:
    used = {
        (file.relative_to(ROOT).as_posix(), name)
        for file in (ROOT / folder).rglob("*.py")
        if file.name != "test_private_apis.py"
        for name in names_used(file.read_text(encoding="utf-8"))
        if is_private(name) and name.split(".")[0] not in OURS | sys.stdlib_module_names
    }
    listed = {
        (file, name)
        for file, name in used
        for where, what in ALLOWED
        if file == where and f"{name}.".startswith(f"{what}.")
    }
    assert used == listed
    assert {key for key in ALLOWED if key[0].startswith(f"{folder}/")} <= used, "an entry of ALLOWED is not needed"


@pytest.mark.parametrize(
    ("line", "private"),
    [
        ("from jax._src import core", True),
        ("import jax._src.core as core", True),
        ("import jax\njax._src.core.Trace", True),
        ("from flax.nnx.nn import dtypes", True),
        ("from flax import nnx\nnnx.nn.dtypes.promote_dtype", True),
        ("from grain._src.python import data_loader", True),
        ("import logging\nlogging.getLogger('jax._src.xla_bridge')", True),
        ("from flax import nnx\nnnx.initializers.zeros_init", False),
        ("from jax.experimental import multihost_utils", False),
        ("import jax\njax.numpy.__name__", False),
    ],
)
def test_private_names_are_recognized(line: str, private: bool) -> None:
    assert any(map(is_private, names_used(line))) == private


def test_jax_can_start_its_preemption_service_late() -> None:
    """Needed by `parallel.distributed.start_preemption_service`.

    Without these, a run of several processes ends with an AttributeError at its first step. Then start the service in
    `jax.distributed.initialize`, and say in `parallel.preemption` that SIGTERM waits for the end of a compilation.
    """
    from jax._src import distributed

    assert hasattr(distributed.global_state, "preemption_sync_manager")
    assert callable(distributed.global_state.initialize_preemption_sync_manager)
    assert isinstance(jax.config.jax_enable_preemption_service, bool)


def test_the_client_of_jax_keeps_keys() -> None:
    """Needed by `parallel.distributed.lost_processes`.

    Without these, a process that has lost its connection to another cannot say to which one.
    """
    from jax._src import distributed
    from jax._src.lib import _jax

    assert hasattr(distributed.global_state, "client")
    assert callable(_jax.DistributedRuntimeClient.key_value_set)
    assert callable(_jax.DistributedRuntimeClient.key_value_dir_get)
