"""Train what a config file describes: ``python -m jaxvision.main --config configs/quickstart.py:vit``.

Flags:
  --config PATH[:ARGUMENT]    a Python file with ``get_config([argument])``; the files in configs/ are found from
                              anywhere, an own file is given by its path
  --workdir DIRECTORY         where checkpoints, metrics and the report go; started again with the same
                              directory, a run goes on where it stopped (default: runs/NAME)
  --config.SECTION.KEY=VALUE  overrides a key; `--help` with a config lists all of them
  --help                      this page, and every key of the config with its value
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import signal
import sys
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

from jaxvision.errors import Preempted, UserError, nearest, unknown_name_error

PACKAGED_CONFIGS = Path(__file__).parent / "configs"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own) and returns the exit status.

    0: done. 2: a mistake of the user's, told in one line. 75: told to stop (SIGTERM), saved, to be started again. 130:
    interrupted; the last checkpoint stands.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    workdir = Path()
    try:
        config, workdir, show_help = parse(argv)
        if show_help:
            print(help_text(config))
            return 0
        assert config is not None
        from jaxvision import run  # after the flags: JAX takes a second to start, a misspelled flag should not

        run.train(config, workdir)
        return 0
    except UserError as e:
        process = os.environ.get("JAX_PROCESS_ID") or os.environ.get("SLURM_PROCID") or "0"
        print(f"error{'' if process == '0' else f' in process {process}'}: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # ... --help | head
        sys.stderr.close()
        return 0
    except Preempted as e:
        from jaxvision.parallel import distributed

        if distributed.is_main():
            print(e, file=sys.stderr)
        return Preempted.STATUS
    except KeyboardInterrupt:
        print(f"interrupted; {_stands(workdir)}", file=sys.stderr)
        return 130


def _stands(workdir: Path) -> str:
    """Returns what is left of a run that was interrupted."""
    folders = [path.parent.name for path in workdir.glob("checkpoints/*/checksums.json")]
    saved = [int(name) for name in folders if name.isdigit()]
    if not saved:
        return "nothing was saved yet, and the same command begins anew"
    return f"the same command goes on from step {max(saved):,}, which is saved"


def parse(argv: Sequence[str]) -> tuple[ConfigDict | None, Path, bool]:
    """Returns the completed config with the overrides applied, the workdir, and whether help was asked for.

    Raises:
      UserError: no such file, flag or key, or a value of the wrong type.
    """
    spec, workdir, show_help, overrides = None, None, False, []
    rest = list(argv)
    while rest:
        flag, _, value = rest.pop(0).partition("=")
        name = "--" + flag.lstrip("-") if flag.startswith("-") else flag
        if name in ("--help", "--h"):
            show_help = True
        elif name in ("--config", "--workdir"):
            value = value or (rest.pop(0) if rest else "")
            if not value:
                raise UserError(f"{name} needs a value")
            if name == "--config":
                spec = value
            elif "://" in value:
                raise UserError(f"--workdir is a folder, not {value}; mount the bucket (gcsfuse) and give its path")
            else:
                workdir = Path(value)
        elif name.startswith("--config."):
            if not value and rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            overrides.append((name.removeprefix("--config."), value))
        else:
            raise UserError(f"unknown flag {flag!r}; the flags are --config, --workdir, --config.KEY=VALUE and --help")
    if spec is None:
        if show_help:
            return None, Path(), True
        raise UserError(f"--config is missing; there are: {', '.join(packaged())}")
    config = complete(load(spec))
    override(config, overrides)
    if workdir is None:
        name, _, argument = spec.partition(":")
        workdir = Path("runs") / (Path(name).stem + (f"-{argument}" if argument else ""))
    return config, workdir, show_help


def packaged() -> list[str]:
    """Returns the names of the configs that come along, as ``configs/NAME.py``."""
    return [f"configs/{p.name}" for p in sorted(_configs_folder().glob("*.py")) if not p.name.startswith("_")]


def _configs_folder() -> Path:
    # In the wheel the configs lie inside the package; in a checkout beside it.
    return PACKAGED_CONFIGS if PACKAGED_CONFIGS.is_dir() else PACKAGED_CONFIGS.parent.parent / "configs"


def load(spec: str) -> ConfigDict:
    """Returns what the config file's ``get_config`` gives, before defaults are filled in.

    Args:
      spec: ``path`` or ``path:argument``; a path that does not exist is looked for among the packaged configs.
    """
    path, colon, argument = spec.partition(":")
    file = Path(path)
    if not file.is_file():
        file = _configs_folder() / Path(path).name
        if not file.is_file() or file.suffix != ".py" or Path(path).parent.name not in ("", "configs"):
            close = nearest(f"configs/{Path(path).name}", packaged())
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(packaged())}"
            raise UserError(f"no config file {path!r}; {hint}")
    if file.suffix != ".py":
        raise UserError(f"--config is a Python file with get_config(), got {path}; there are: {', '.join(packaged())}")
    module_spec = importlib.util.spec_from_file_location(f"_jaxvision_config_{file.stem}", file)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{file} has no function get_config(), which gives a config")
        get_config = module.get_config
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{file} cannot be read as a config: {type(e).__name__}: {e}") from e
    try:
        return get_config(argument) if colon else get_config()
    except ValueError as e:  # what a config says of its argument
        raise UserError(f"{spec}: {e}") from e
    except Exception as e:
        raise UserError(f"{spec} cannot be read as a config: {type(e).__name__}: {e}") from e


def complete(config: ConfigDict) -> ConfigDict:
    """Returns `config` with every key that a section's function takes, at that function's default.

    So a file says only what it means, and the command line can still override anything.

    Raises:
      UserError: a section or key that nothing takes; the message names the nearest.
    """
    from jaxvision import run

    return run.complete(config)


def override(config: ConfigDict, overrides: Sequence[tuple[str, str]]) -> None:
    """Sets keys (``section.key``, text) of a completed config in place, with the types that the config has."""
    for axis in ("data", "fsdp", "tensor"):
        if axis not in config.mesh and f"mesh.{axis}" in dict(overrides):
            config.mesh[axis] = 1  # an axis that the file does not name has one device along it
    keys = leaves(config)
    for key, _ in overrides:
        if key not in keys:
            if key.startswith("mesh."):
                raise unknown_name_error("axis of config.mesh", key.removeprefix("mesh."), ("data", "fsdp", "tensor"))
            close = nearest(key, keys) or nearest(key.rpartition(".")[2], keys)
            hint = f"did you mean {' or '.join(close)}?" if close else "--help lists the keys"
            raise UserError(f"unknown config key {key!r}; {hint}")
    for key, text in overrides:
        section, _, name = key.rpartition(".")
        owner = functools.reduce(getattr, section.split(".") if section else [], config)
        try:
            owner[name] = _value(text, owner.get_type(name), keys[key])
        except (ValueError, TypeError, KeyError, SyntaxError) as e:
            kind = owner.get_type(name).__name__
            raise UserError(f"config key {key!r} takes a {kind} (now: {keys[key]!r}), not {text!r}") from e


def _value(text: str, kind: type, now: Any) -> Any:
    """Returns what a flag's text means for a key of a type, whose value is `now`; ``None`` is none of any."""
    if text == "None":
        return None
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind in (int, float, str):
        return kind(text)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if kind is object:  # a key without a type takes words, too
            return text
        if kind is tuple and all(isinstance(item, str) for item in now):  # patterns, such as layer1,layer2
            return tuple(text.split(","))
        raise
    if kind is tuple:
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    return value


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns ``{"section.key": value}`` for all keys of a config."""
    found: dict[str, Any] = {}
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def help_text(config: ConfigDict | None) -> str:
    """Returns the page that --help prints."""
    lines = [(__doc__ or "").strip(), ""]
    if config is None:
        lines += ["Configs that come along:", *[f"  {name}" for name in packaged()]]
        return "\n".join(lines)
    from jaxvision import run

    texts = run.explain_keys(config)
    lines.append("Keys of this config, their values and what they do:")
    for key, value in leaves(config).items():
        lines.append(f"  --config.{key}={value}")
        lines += textwrap.wrap(texts.get(key, ""), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    if found.exc_type is KeyboardInterrupt:
        # Python drops what is raised in a finalizer or in a callback of the garbage collector (JAX has one), Ctrl-C as
        # well. It is sent once more, a little later.
        threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
        return
    # TensorStore tells this of each write that ends after one has failed: a full disk would bring a screenful.
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def _in_thread(found: threading.ExceptHookArgs) -> None:
    # On a full disk the thread that writes TensorBoard's events ends; the run tells of the disk itself.
    if not (isinstance(found.exc_value, OSError) and type(found.thread).__module__.startswith("tensorboardX")):
        threading.__excepthook__(found)


def _one_of_several() -> bool:
    """Returns whether this process was joined to others."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _leave_by(error: Exception) -> NoReturn:
    """Ends one of several processes by an error that is nobody's mistake, perhaps that another one is gone."""
    from jaxvision.parallel import distributed

    if re.search(r"Gloo|NCCL|UNAVAILABLE|onnection|eartbeat", str(error)):
        gist = str(error).splitlines()[0][:200]
        print(f"error: another process does not answer ({gist}); if it died, JAX will name it", file=sys.stderr)
        time.sleep(1)  # whoever looks on shall see which was the first to end
    else:
        traceback.print_exception(error)
    traceback.clear_frames(error.__traceback__)  # they hold batches
    # If it is another's death, JAX ends this process when it has found out whose.
    distributed.leave(1, after=distributed.HEARTBEAT + 15)


def run_and_exit(command: Callable[[], int] = main) -> None:
    """Ends the process with the status of a command."""
    if command is main:  # until a run has begun and listens itself
        signal.signal(signal.SIGTERM, lambda *_: os._exit(Preempted.STATUS))
    sys.unraisablehook = _unraisable
    threading.excepthook = _in_thread
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)  # Orbax's, when a save fails
    try:
        status = command()
    except Exception as e:
        if _one_of_several():
            _leave_by(e)
        raise
    if status not in (0, Preempted.STATUS) and _one_of_several():
        from jaxvision.parallel import distributed

        distributed.leave(status)
    if status == 130:  # XLA may still be compiling, and would crash at the end that Python makes in good order
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run_and_exit()
