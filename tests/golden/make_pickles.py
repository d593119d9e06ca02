"""Writes the small files of tests/golden/pickles with PyTorch: ``python tests/golden/make_pickles.py``.

The values are those of `expected` in tests/weights/test_torch_file.py.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "pickles"


def main() -> None:
    x = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    tensors = {
        "float32": x,
        "float64": x.double(),
        "float16": x.half(),
        "bfloat16": x.bfloat16(),
        "transposed": x.T,
        "strided": x[1:3, ::2],
        "expanded": x[:1, :1].expand(3, 2),
        "parameter": torch.nn.Parameter(x + 1),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
        "int8": torch.arange(3, dtype=torch.int8),
        "bool": x > 1,
        "complex64": x.to(torch.complex64),
    }
    state = OrderedDict(tensors)
    state._metadata = OrderedDict({"": {"version": 1}})
    torch.save(state, FOLDER / "zip.pth")
    torch.save(state, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"a": x, "uint16": torch.arange(3).to(torch.uint16)}, FOLDER / "protocol5.pth", pickle_protocol=5)
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, 0.5)
    torch.nn.init.constant_(model.bias, 0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint = {
        "epoch": 3,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "names": {"a", "b"},
        "device": torch.device("cpu"),
    }
    torch.save(checkpoint, FOLDER / "checkpoint.pth.tar")


if __name__ == "__main__":
    main()
