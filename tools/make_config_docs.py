"""Writes docs/configs.md: the included configs, and every key with its explanation. Run it after a docstring changed.

python tools/make_config_docs.py
"""

from __future__ import annotations

import ast
from pathlib import Path

from jaxvision.data import source
from jaxvision.run.config import complete, leaves, load, packaged
from jaxvision.run.explain import argument_texts, explain_keys
from jaxvision.run.sections import source_keys

ROOT = Path(__file__).parent.parent

HEAD = """# Configs

A config is a Python file with a function `get_config()`. It sets only the keys that differ from their defaults.
Override any key on the command line:

```bash
python -m jaxvision.main --config configs/quickstart.py:resnet --config.train.epochs=5 --config.optimizer.name=sgd
```

`python -m jaxvision.main --config FILE --help` lists every key of a config with its value and its explanation. A
misspelled key is an error that suggests the nearest one.

| config | what it does |
|---|---|"""

MIDDLE = """
Each section is passed to one function. The keys below are its keyword arguments, and its docstring is the reference.

- `seed` is the seed of everything random.
- `mesh` has the axes `data`, `fsdp` and `tensor`, each with a number of devices. `-1` uses all devices that the other
  axes leave.
- `source` has a `name` and the options of that source.
- `model` takes the arguments of `jaxvision.create_model` and of the architecture's class.

`source.name`, `model.name`, `augment.name`, `loss.kind`, `metric.name`, `optimizer.name` and `schedule.name` also
accept a function of your own, as `"package.module:function"`. Its keyword arguments become further keys of the
section, with flags, help and type checks.
"""


def page() -> str:
    """Returns the text of docs/configs.md."""
    lines = [HEAD]
    for name in packaged():
        summary = (ast.get_docstring(ast.parse((ROOT / name).read_text())) or "").splitlines()[0]
        lines.append(f"| `{name}` | {summary} |")
    lines += [MIDDLE, "## `source`, every source\n"]
    lines += [*[f"- `{key}`: {text}" for key, text in argument_texts(source_keys).items()], ""]
    for name in source.SOURCES:
        lines.append(f"## `source`, name `{name}`\n")
        texts = argument_texts(source.source_function(name))
        lines += [*[f"- `{key}`: {text}" for key, text in texts.items()], ""]
    config = complete(load("configs/quickstart.py:vit"))
    texts, section = explain_keys(config), ""
    for key in leaves(config):
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
