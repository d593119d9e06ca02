"""Huge memory pages: which commands restart to get them, and with what."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jaxvision.cli import huge_pages

TUNABLES, ON = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


@pytest.fixture
def restarts(monkeypatch, tmp_path):
    """Returns the restarts, as pairs of arguments and environment, on a system that provides huge pages on request."""
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    found: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(huge_pages, "PAGES", tmp_path)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36", raising=False)
    monkeypatch.setattr(os, "execve", lambda program, arguments, environment: found.append((arguments, environment)))
    monkeypatch.setenv(TUNABLES, "")  # so that it is restored
    monkeypatch.delenv(TUNABLES)
    start(monkeypatch, "-m", "jaxvision.main")
    return found


def start(monkeypatch, *python: str, arguments: tuple[str, ...] = ("--config", "vit.py")) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", *python, *arguments])
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments])


@pytest.mark.parametrize("python", [["-m", "jaxvision.main"], ["-u", "-m", "jaxvision.cli"], ["/usr/bin/jaxvision"]])
def test_a_command_restarts_once(restarts, monkeypatch, python):
    start(monkeypatch, *python)
    huge_pages.restart_with_huge_pages()
    ((arguments, environment),) = restarts
    assert arguments == [sys.executable, *python, "--config", "vit.py"]
    assert environment[TUNABLES] == ON
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    huge_pages.restart_with_huge_pages()
    assert len(restarts) == 1
    assert TUNABLES not in os.environ  # for the processes that it starts


@pytest.mark.parametrize(
    "python",
    [
        ["-m", "pdb", "-m", "jaxvision.main"],
        ["-m", "coverage", "run", "-m", "jaxvision.main"],
        ["train.py"],
        ["-c", "x"],
    ],
)
def test_another_program_that_runs_a_command_does_not_restart(restarts, monkeypatch, python):
    start(monkeypatch, *python)
    huge_pages.restart_with_huge_pages()
    assert restarts == []


def test_a_system_without_huge_pages_on_request_does_not_restart(restarts, monkeypatch):
    enabled, size = (huge_pages.PAGES / name for name in ("enabled", "hpage_pmd_size"))
    for path, text in ((enabled, "[always] madvise never"), (enabled, "always madvise [never]"), (size, "536870912")):
        before = path.read_text()
        path.write_text(text)
        huge_pages.restart_with_huge_pages()
        path.write_text(before)
    for library in ("glibc 2.31", "musl", None):
        monkeypatch.setattr(os, "confstr", lambda name, library=library: library)
        huge_pages.restart_with_huge_pages()
    enabled.unlink()
    huge_pages.restart_with_huge_pages()
    assert restarts == []


def test_help_and_a_chosen_value_do_not_restart(restarts, monkeypatch):
    with monkeypatch.context() as patch:
        start(patch, "-m", "jaxvision.main", arguments=("--help",))
        huge_pages.restart_with_huge_pages()
    monkeypatch.setenv(TUNABLES, "")
    huge_pages.restart_with_huge_pages()
    assert restarts == []


def test_a_restart_that_fails_leaves_the_command_running(restarts, monkeypatch):
    def fail(*arguments):
        raise PermissionError(13, "not permitted")

    monkeypatch.setattr(os, "execve", fail)
    huge_pages.restart_with_huge_pages()
    assert TUNABLES not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="a restart needs Linux")
def test_a_restarted_command_has_the_same_arguments_and_streams():
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
    for chosen in ({}, {TUNABLES: ""}):  # with a restart where the system provides huge pages, and without
        arguments = ["--config=configs/quickstart.py:vit", "--config.model.name=resnet51"]
        command = [sys.executable, "-m", "jaxvision.main", *arguments]
        run = subprocess.run(command, env=environment | chosen, capture_output=True, text=True, check=False)
        assert run.returncode == 2
        assert run.stderr.count("resnet51") == 1
