"""jaxvision.parallel.distributed: what a process says and does when another one is lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def outputs(code: str, count: int) -> list[tuple[int, str, str]]:
    """Runs code in several processes that JAX connects; returns exit status, output and errors of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
    }
    code = "import os, time, jax\nfrom jaxvision.parallel import distributed\ndistributed.initialize()\n" + code
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    texts = [process.communicate(timeout=100) for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def test_the_others_find_out_which_process_is_lost() -> None:
    code = """
if jax.process_index() < 2:
    print(distributed.lost_processes(), flush=True)
    time.sleep(2 if distributed.is_main() else 0)  # the others ask it
os._exit(0)
"""
    ended = outputs(code, 3)
    assert [out for _, out, _ in ended] == ["[2]\n", "[2]\n", ""], ended


def test_an_error_that_only_mentions_a_connection_keeps_its_traceback() -> None:
    code = """
from jaxvision.cli.exit import run_and_exit

def command():
    if jax.process_index() == 1:
        raise RuntimeError("the database refused the connection")
    return 0

run_and_exit(command)
"""
    (first, _, _), (status, _, errors) = outputs(code, 2)
    assert (first, status) == (0, 1), errors
    assert "RuntimeError: the database refused the connection" in errors
    assert "lost the connection" not in errors
