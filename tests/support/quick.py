"""Runs that take seconds, and command lines that must fail."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from jaxvision import main as command
from jaxvision.run.config import load


def quick(family: str = "resnet", **sections: dict) -> ConfigDict:
    """Returns the quickstart config with so few steps that it takes seconds, and with further keys by section."""
    config = load(f"configs/quickstart.py:{family}")
    config.train.steps = 6
    config.data.batch_size = 16
    config.mesh = ConfigDict({"data": 1})  # eight fake devices on two cores only cost time
    for name, keys in sections.items():
        if name not in config:
            config[name] = ConfigDict()
        config[name].update(keys)
    return config


def start(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    """Runs the command line; returns exit status, standard output and standard error."""
    status = command.main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Runs a command line that must end with status 2 and one line of standard error, and returns that line."""
    status, _, err = start(capsys, *arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err
