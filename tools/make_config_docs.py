"""Writes docs/configs.md: every config that comes along, every key and what it does. Run it after a docstring changed.

python tools/make_config_docs.py
"""

from __future__ import annotations

import ast
from pathlib import Path

from jaxvision import main, run
from jaxvision.data import source
from jaxvision.run import sections

ROOT = Path(__file__).parent.parent

HEAD = """# Configs

A config file is a Python file with `get_config()`; it says only what differs from the defaults.
`python -m jaxvision.main --config FILE --help` lists every key with its value and meaning; any of them can be set
on the command line, and one that is misspelled is an error that names the nearest.

```bash
python -m jaxvision.main --config configs/quickstart.py:resnet --config.train.epochs=5 --config.optimizer.name=sgd
```

| config | what it does |
|---|---|"""

MIDDLE = """
Each section is splatted into one function; its docstring is the reference. `seed` seeds everything random. `mesh` names
axes of devices; `-1` takes what is left. `source` has a `name` (`digits`, `folder`, `tfds`, `huggingface`) and that
source's options. `model` takes the arguments of `jaxvision.create_model` and of the architecture's class.
"""


def page() -> str:
    """Returns the page's text."""
    lines = [HEAD]
    for name in main.packaged():
        summary = (ast.get_docstring(ast.parse((ROOT / name).read_text())) or "").splitlines()[0]
        lines.append(f"| `{name}` | {summary} |")
    lines.append(MIDDLE)
    for name in source.SOURCES:
        lines.append(f"## `source`, name `{name}`\n")
        texts = sections.argument_texts(source.source_function(name))
        lines += [*[f"- `{key}`: {text}" for key, text in texts.items()], ""]
    config = run.complete(main.load("configs/quickstart.py:vit"))
    texts, section = run.explain_keys(config), ""
    for key in main.leaves(config):
        owner, _, rest = key.partition(".")
        if owner in ("source", "seed", "mesh"):
            continue
        if owner != section:
            lines.append(f"{'' if not section else chr(10)}## `{owner}`\n")
            section = owner
        lines.append(f"- `{rest}`: {texts[key]}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "configs.md").write_text(page())
