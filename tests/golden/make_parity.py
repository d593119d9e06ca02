"""Writes docs/parity.md from the errors that the tests of the golden logits measured.

pytest --slow -n 2 tests/models/test_golden.py --junitxml=golden.xml
python tests/golden/make_parity.py golden.xml
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from statistics import median

import jax

from jaxvision.models import registry
from jaxvision.weights import catalog

HERE = Path(__file__).resolve().parent
FILE = json.loads((HERE / "golden.json").read_text(encoding="utf-8"))
INTRODUCTION = """# Parity with timm

`tests/golden/make_parity.py` generates this page from test results.

The tests compare the logits of each of the {n} architectures with those of timm {timm}:

- Every parameter gets random weights, seeded by its name, so that none is zero or one.
- timm computes the reference on PyTorch in float64. jaxvision reads the same weights from a safetensors file in timm's
  format and computes on jax {jax} in float32 at the highest matmul precision.
- The input is two images of the size that the architecture was made for.
- The error is the largest difference between logits, in units of the standard deviation of the logits.

The tables also have the error of PyTorch in float32 against PyTorch in float64, which shows what float32 permits. The
tests accept five times that error, but at least 1e-5 and at most 1e-4. The largest error of jaxvision is {worst}
({worst_name}), the median {median}. For {closer} of {n} architectures jaxvision's error is at most PyTorch's.

For architectures of more than 400 million parameters, marked \\*, a ViT is reduced to two blocks and 16 by 16 patches,
and the images of a convolutional network to at most 256 pixels. The names and shapes of all tensors are compared for
the full model of every architecture.

To repeat the tests and generate this page ({minutes:.0f} minutes on two cores):

```
pytest --slow -n 2 tests/models/test_golden.py --junitxml=golden.xml && python tests/golden/make_parity.py golden.xml
```

Other tests check that the comparison detects errors. They change each tensor by one percent, or an epsilon, a padding
or the GELU.

| family | architectures | median | worst | PyTorch's median | PyTorch's worst |
|---|---|---|---|---|---|
"""


def errors(file: Path) -> tuple[dict[str, float], float]:
    """Returns the error of each row of golden.json, and the total duration of the tests in seconds."""
    root = ElementTree.parse(file).getroot()
    found = {}
    for entry in root.iter("property"):
        if entry.get("name") == "error":
            architecture, size, error = entry.get("value", "").split()
            found[f"{architecture} {size}"] = float(error)
    return found, sum(float(suite.get("time", 0)) for suite in root.iter("testsuite"))


def native_rows() -> dict[str, str]:
    """Returns the row of each architecture at its own size: the first of each."""
    rows: dict[str, str] = {}
    for row in FILE["golden"]:
        rows.setdefault(row.split()[0], row)
    return rows


def page(measured: dict[str, float], seconds: float) -> str:
    """Returns the page."""
    rows = native_rows()
    missing = [name for name, row in rows.items() if row not in measured]
    if missing:
        raise SystemExit(f"{len(missing)} architectures were not measured, such as {missing[0]}: run with --slow")
    ours = {name: measured[row] for name, row in rows.items()}
    theirs = {name: FILE["golden"][row]["torch_float32"] for name, row in rows.items()}
    worst = max(ours, key=ours.__getitem__)
    text = INTRODUCTION.format(
        n=len(rows),
        timm=FILE["timm"],
        jax=jax.__version__,
        worst=f"{ours[worst]:.1e}",
        worst_name=worst,
        median=f"{median(ours.values()):.1e}",
        closer=sum(ours[name] <= theirs[name] for name in rows),
        minutes=seconds / 60,
    )
    for family in registry.families():
        names = registry.architectures(family=family)
        a, b = [ours[name] for name in names], [theirs[name] for name in names]
        text += f"| {family} | {len(names)} | {median(a):.1e} | {max(a):.1e} | {median(b):.1e} | {max(b):.1e} |\n"
    for family in registry.families():
        text += f"\n## {family}\n\n| architecture | image | parameters | error | PyTorch's float32 |\n"
        text += "|---|---|---|---|---|\n"
        for name in registry.architectures(family=family):
            size, entry = int(rows[name].split()[1]), catalog.lookup(name)
            smaller = " \\*" if "options" in FILE["golden"][rows[name]] or size != entry.image_size else ""
            text += (
                f"| {name} | {size}{smaller} | {entry.params / 1e6:.1f} M | {ours[name]:.1e} | {theirs[name]:.1e} |\n"
            )
    return text


def main() -> None:
    """Writes the page."""
    measured, seconds = errors(Path(sys.argv[1]))
    (HERE.parent.parent / "docs" / "parity.md").write_text(page(measured, seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
