"""Writes docs/parity.md from what the tests of the golden logits measured.

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

Made by `tests/golden/make_parity.py`; nothing here is typed.

Each of the {n} architectures is filled with weights that come from the name of each parameter and a seed (nothing
is left at zero or one): in real timm {timm} on PyTorch in float64 and, read from a safetensors file in timm's form,
in jaxvision on jax {jax} in float32 at the highest matmul precision. Two images go in, at the size that the
architecture was made for. The error is the largest difference between the logits, in standard deviations of the
logits. Beside it stands how far PyTorch's own float32 is from its float64: nobody can expect to be much closer.

The bar of the tests is five times PyTorch's figure, though never under 1e-5 nor over 1e-4. The worst is {worst}
({worst_name}), the median {median}. In {closer} of {n} rows jaxvision is as close to float64 as PyTorch's float32
is, or closer.

Of architectures with more than 400 million parameters a ViT keeps two blocks and 16 by 16 patches, and a convnet sees
256 pixels at most (marked \\*); names and shapes of all tensors of the whole model are held to timm's for every
architecture.

Everything again, and this page ({minutes:.0f} minutes on two cores):

```
pytest --slow -n 2 tests/models/test_golden.py --junitxml=golden.xml && python tests/golden/make_parity.py golden.xml
```

The comparison can fail: tests change each tensor by a hundredth, and an epsilon, a padding or a GELU, and see it.

| family | architectures | median | worst | PyTorch's median | PyTorch's worst |
|---|---|---|---|---|---|
"""


def errors(file: Path) -> tuple[dict[str, float], float]:
    """Returns the error of each row of golden.json, and the seconds that all tests took together."""
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
