"""Checkpoints: what a run needs to go on, to the bit, after it was stopped in any way.

A checkpoint is a folder ``WORKDIR/checkpoints/STEP`` that Orbax writes in the background while training goes on. It
holds the state (model with BatchNorm statistics and random keys, optimizer, average), the position in the data, the
metrics and the config. When all of it is on disk, checksums are added; by them a damaged one is told from a good one.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxvision import tree
from jaxvision.errors import UserError

_SEAL = "checksums.json"
_UNFINISHED = ".orbax-checkpoint-tmp"
_ASIDE = ".aside"  # the same step, which is being written anew
_SAVED = ".saved"  # in the workdir: tells a run whose checkpoints are gone from one that has none yet


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
      step: number of the step after which it was saved.
      state: on the devices, laid out as asked.
      position: where the data goes on, as `Checkpoints.save` was given it.
      metrics: of the evaluation at that step; empty if there was none.
    """

    step: int
    state: Any
    position: dict[str, Any]
    metrics: dict[str, float]


class Checkpoints:
    """The checkpoints of one run: the newest few, and the best.

    Use it as a context manager, or call `close` at the end: the last checkpoint may still be on its way to the disk.

    Args:
      workdir: folder of the run; the checkpoints go into ``checkpoints`` in it.
      keep: how many of the newest are kept.
      best: metric by which one more is kept, such as ``"top1"``; None keeps none.
      best_mode: ``"max"`` or ``"min"``: which end of it is best.
      config: kept in each checkpoint, so that one that is copied elsewhere tells what it is of.
      read_only: for evaluation beside a run that goes on: nothing is ever written or removed.
      log: called with each message, such as that a damaged checkpoint was skipped.

    Raises:
      UserError: a bad option.

    The folder is made when the first checkpoint is saved.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> state = {"model": {"bias": jnp.arange(3.0)}}
      >>> workdir = tempfile.mkdtemp()
      >>> with Checkpoints(workdir, keep=1) as checkpoints:
      ...     checkpoints.save(10, state, position={"epoch": 1}, metrics={"top1": 0.5})
      ...     checkpoints.save(20, state, position={"epoch": 2}, metrics={"top1": 0.4})
      ...     checkpoints.save(30, state, position={"epoch": 3}, metrics={"top1": 0.3})
      >>> with Checkpoints(workdir) as checkpoints:
      ...     checkpoints.steps(), checkpoints.best_step()
      ...     restored = checkpoints.restore(state, jax.tree.map(lambda x: x.sharding, state))
      ([10, 30], 10)
      >>> restored.step, restored.position, restored.state["model"]["bias"]
      (30, {'epoch': 3}, Array([0., 1., 2.], dtype=float32))
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep: int = 2,
        best: str | None = "top1",
        best_mode: str = "max",
        config: Mapping[str, Any] | None = None,
        read_only: bool = False,
        log: Callable[[str], None] = print,
    ):
        if keep < 1:
            raise UserError(f"checkpoints: keep at least 1, got keep={keep}")
        if best_mode not in ("max", "min"):
            raise UserError(f"checkpoints: best_mode is 'max' or 'min', got {best_mode!r}")
        self.directory = epath.Path(workdir).resolve() / "checkpoints"
        self._best = best
        self._sign = 1.0 if best_mode == "max" else -1.0
        self._config = plain(config or {})
        self._read_only = read_only
        self._say = log
        self._sealer: threading.Thread | None = None
        self._failure: Exception | None = None
        self._saving: int | None = None
        _hush_orbax()

        if not read_only:
            for path in self.directory.iterdir() if self.directory.is_dir() else ():
                if path.name.isdigit() and not path.is_dir():
                    log(f"{path} is a file and no checkpoint; skipped")
                if _UNFINISHED in path.name:
                    log(f"the checkpoint of step {path.name.split('.')[0]} was interrupted while it was saved; skipped")
            self._put_back()
            _all_processes("opened")
        policies = [LatestN(keep)]
        if best is not None:
            policies.append(BestN(n=1, get_metric_fn=self._score, keep_checkpoints_without_metrics=False))
        self._manager = _Manager(
            self.directory,
            log=log,
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "about": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                best_fn=self._score,  # without it Orbax does not write the metrics that the policy reads
                cleanup_tmp_directories=not read_only,
                create=False,
            ),
        )

    def save(
        self,
        step: int,
        state: Any,
        *,
        position: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        anew: bool = False,
    ) -> None:
        """Begins to save; returns as soon as `state` has been copied and may be used up.

        Args:
          step: number of steps made. A step that is there already is not written again.
          state: a pytree of arrays, random keys included, such as the state of a train step.
          position: where the data goes on; anything that JSON can hold.
          metrics: of an evaluation of this state. Only checkpoints that have them can be the best.
          anew: write a step that is there already again: its state is the same, but its metrics were not known yet.

        Raises:
          UserError: this checkpoint, or the one before, could not be written (a full disk). The earlier ones stand.
        """
        self.wait()  # for the one before, which must be sealed before an older one may go
        if step in self.steps():
            if not anew:
                return
            _all_processes("looked")
            if jax.process_index() == 0:
                (self.directory / str(step)).rename(self.directory / f"{step}{_ASIDE}")
            _all_processes("aside")
            self._manager.reload()
        about = {"position": plain(position), "metrics": plain(metrics or {}), "config": self._config}
        self._saving = step
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about)),
                metrics=about["metrics"],
                force=True,
            )
        except Exception as e:
            self._failure = e
            self.wait()
        self._sealer = threading.Thread(target=self._seal, args=(step,), name="checkpoint-seal")
        self._sealer.start()

    def _seal(self, step: int) -> None:
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                sums = json.dumps(_checksums(self.directory / str(step)))
                # Beside and moved: half a seal would make a sound checkpoint a damaged one.
                beside = self.directory / str(step) / f"{_SEAL}.tmp"
                beside.write_text(sums)
                beside.replace(self.directory / str(step) / _SEAL)
                (self.directory.parent / _SAVED).touch()
                (self.directory / f"{step}{_ASIDE}").rmtree(missing_ok=True)
        except Exception as e:  # told by `wait`, in the thread that trains
            self._failure = e

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          UserError: the last checkpoint could not be written. The earlier ones stand.
        """
        if self._sealer is not None:
            self._sealer.join()
            self._sealer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._discard(self._saving)
            good = self.steps()
            stands = f"the one of step {good[-1]} stands" if good else "there is no earlier one"
            raise UserError(
                f"the checkpoint of step {self._saving} could not be written to {self.directory} "
                f"({_reason(failure)}); {stands}"
            ) from failure

    def _discard(self, step: int | None) -> None:
        """Removes what there is of a checkpoint that could not be written."""
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.name == str(step) or path.name.startswith(f"{step}{_UNFINISHED}"):
                    path.rmtree(missing_ok=True)
        self._put_back()

    def _put_back(self) -> None:
        """Takes up a checkpoint that was to be written anew, where that one was not completed."""
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.name.endswith(_ASIDE):
                    anew = path.with_name(path.name.removesuffix(_ASIDE))
                    if (anew / _SEAL).exists():
                        path.rmtree()
                    else:
                        anew.rmtree(missing_ok=True)
                        path.rename(anew)

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints on disk, oldest first."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Returns the step of the best checkpoint by the metric, or None where none has that metric."""
        scores = [(self._score(self._manager.metrics(step)), step) for step in self.steps()]
        score, step = max(scores, default=(-math.inf, None))  # the newest of equals, which is the one that Orbax keeps
        return None if score == -math.inf else step

    def restore(self, abstract: Any, shardings: Any, *, step: int | str = "newest") -> Restored | None:
        """Returns the newest good checkpoint, or None if the run has none yet.

        Checkpoints that are damaged are skipped, with a message; those newer than the one that is returned are
        removed, for the run will come by their steps again.

        Args:
          abstract: shapes and dtypes of the state, or of a part of it: without ``optimizer``, it is not read.
          shardings: of every leaf of `abstract`; they need not be those with which it was saved: a run
            goes on with another number of devices.
          step: a step, ``"newest"`` or ``"best"``.

        Raises:
          UserError: no such step, all checkpoints are damaged or gone, or they hold another model.
        """
        self.wait()
        known = self.steps()
        if not known and (self.directory.parent / _SAVED).exists():
            raise UserError(
                f"this run has saved checkpoints, but there are none in {self.directory}; put them back, or take "
                f"another workdir (or remove {self.directory.parent}) to start afresh"
            )
        if step == "newest":
            candidates = known[::-1]
        else:
            wanted = self.best_step() if step == "best" else step
            if wanted not in known:
                of = f" by {self._best!r}" if step == "best" else ""
                raise UserError(f"no checkpoint {step!r}{of} in {self.directory}; there are the steps {known}")
            candidates = [int(wanted)]
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        bad: list[str] = []
        for candidate in candidates:
            try:
                restored = self._read(candidate, target)
            except _Damaged as e:
                bad.append(f"step {candidate}: {e}")
                continue
            for message in bad:
                self._say(f"skipped a damaged checkpoint, {message}")
            if step == "newest" and not self._read_only:
                for damaged in candidates[: len(bad)]:
                    self._manager.delete(damaged)
            return restored
        if bad and step != "newest":
            raise UserError(f"the checkpoint asked for cannot be read ({bad[0]}); of {self.directory} are left {known}")
        if bad:
            raise UserError(
                f"no checkpoint in {self.directory} can be read ({'; '.join(bad)}); remove the folder to start afresh"
            )
        return None

    def _read(self, step: int, target: Any) -> Restored:
        """Returns one checkpoint, or raises `_Damaged`; a `UserError` if it is sound but of another model."""
        folder = self.directory / str(step)
        try:
            if (folder / _SEAL).exists():
                _verify(folder)
            saved, failure = _shapes(self._manager.item_metadata(step)["state"].tree), None
        except _Damaged as e:
            failure = e
        except Exception as e:
            failure = _Damaged(_reason(e))
        if others := _any_process(failure is not None):
            raise failure or _Damaged(f"found by process {others[0]}")
        _check_shapes(saved, _shapes(target), folder)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        item=target,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                        partial_restore=True,
                    ),
                    about=ocp.args.JsonRestore(),
                ),
            )
        except Exception as e:
            if jax.process_count() > 1:  # the others may have read theirs: no process goes back to another one alone
                raise UserError(f"{folder} is sound, but cannot be read here: {_reason(e)}") from e
            raise _Damaged(_reason(e)) from e
        if not (folder / _SEAL).exists():
            self._say(f"the checkpoint of step {step} has no {_SEAL}, which come last: it could not be checked")
        return Restored(step, restored["state"], restored["about"]["position"], restored["about"]["metrics"])

    def close(self) -> None:
        """Waits for what is being saved, and lets go of the folder.

        Raises:
          UserError: the last checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            try:
                self._manager.close()
            except Exception:  # the failure that `wait` has told: Orbax tells it to each thread once
                logging.getLogger(__name__).debug("closing after a failure", exc_info=True)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except UserError as e:  # what went wrong first is what the user should read
            self._say(str(e))

    def _score(self, metrics: Mapping[str, float] | None) -> float:
        value = (metrics or {}).get(self._best or "", math.nan)
        return -math.inf if math.isnan(value) else self._sign * value


class _Manager(ocp.CheckpointManager):
    """Orbax's, which opens a folder where the metrics of a checkpoint are damaged, and says so."""

    def __init__(self, *args: Any, log: Callable[[str], None], **options: Any):
        self._say, self._told = log, set[int]()
        super().__init__(*args, **options)

    def reached_preemption(self, step: int) -> bool:
        # JAX tells of a SIGTERM once, at one of the calls that ask: Orbax's would be the one, and the run would go on.
        return False

    def metrics(self, step: int) -> Any:
        try:
            found = super().metrics(step)
        except (OSError, ValueError):
            found = None
        if isinstance(found, dict) and all(isinstance(x, int | float) for x in found.values()):
            return found
        if step not in self._told and (self.directory / str(step) / "metrics").exists():
            self._told.add(step)
            self._say(f"the metrics of the checkpoint of step {step} are damaged; it will not be taken for the best")
        return {}


class _Damaged(Exception):
    """One checkpoint cannot be read; another may."""


def _checksums(folder: epath.Path) -> dict[str, str]:
    """Returns {path: size and CRC-32} of the files in the folders of `folder`."""
    # Orbax checks some of what it reads, but neither JSON nor the bytes of arrays: a flipped bit there goes unnoticed.
    files = [file for item in folder.iterdir() if item.is_dir() for file in _files(item)]
    return {str(file.relative_to(folder)): _checksum(file) for file in sorted(files)}


def _verify(folder: epath.Path) -> None:
    """Raises `_Damaged` where a file is not what it was. Of several processes each reads its share."""
    try:
        wanted = dict(json.loads((folder / _SEAL).read_text()))
    except ValueError as e:
        raise _Damaged(f"{_SEAL} is damaged") from e
    if not wanted:
        raise _Damaged(f"{_SEAL} is damaged")
    for name in sorted(wanted)[jax.process_index() :: jax.process_count()]:
        if not (folder / name).exists():
            raise _Damaged(f"{name} is missing")
        if _checksum(folder / name) != wanted[name]:
            raise _Damaged(f"{name} is damaged")


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        yield from _files(path) if path.is_dir() else (path,)


def _checksum(file: epath.Path) -> str:
    size, crc = 0, 0
    with file.open("rb") as f:
        while block := f.read(2**22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return f"{size}:{crc:08x}"


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
    def shape(x: Any) -> tuple[int, ...]:
        # A random key is stored as the numbers that it is made of.
        if hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype)).shape
        return tuple(x.shape)

    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {tree.join(path).removesuffix(".value"): shape(x) for path, x in leaves}


def _check_shapes(saved: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], folder: epath.Path) -> None:
    """Raises when a checkpoint does not hold what is wanted. It may hold more parts, such as the optimizer."""
    parts = {name.split(".")[0] for name in wanted}
    missing = [name for name in wanted if name not in saved]
    unexpected = [name for name in saved if name not in wanted and name.split(".")[0] in parts]
    differ = [
        f"{name} {saved[name]} -> {wanted[name]}" for name in wanted if saved.get(name, wanted[name]) != wanted[name]
    ]
    found = {"not in it": missing, "only in it": unexpected, "other shapes": differ}
    if any(found.values()):
        lists = "; ".join(
            f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for what, names in found.items()
            if names
        )
        raise UserError(f"the checkpoint {folder} is of another model or optimizer: {lists}")


def _reason(error: BaseException) -> str:
    """Returns the gist of an error of the file system, of TensorStore or of Orbax, on one line."""
    text = str(error)
    for sign, words in (
        ("No space left", "no space left on the disk"),
        ("ENOSPC", "no space left on the disk"),
        ("Disk quota", "disk quota exceeded"),
        ("EDQUOT", "disk quota exceeded"),
    ):
        if sign in text:
            return words
    lines = text.strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _hush_orbax() -> None:
    """Keeps Orbax's own log records, tracebacks among them, off the console; its failures are raised as errors here."""
    for logger in (logging.getLogger("absl"), logging.getLogger("asyncio")):
        if not any(isinstance(f, _NotOrbax) for f in logger.filters):
            logger.addFilter(_NotOrbax())


class _NotOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        # asyncio names the task that failed, and with it its file.
        return "orbax" not in record.pathname and not (record.name == "asyncio" and "orbax" in record.getMessage())


def _all_processes(name: str) -> None:
    """Returns when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"jaxvision checkpoint {name}")


def _any_process(told: bool) -> list[int]:
    """Returns which processes say so; the same on all of them, each of which asks."""
    if jax.process_count() == 1:
        return [0] if told else []
    return np.flatnonzero(multihost_utils.process_allgather(np.bool_(told))).tolist()


def plain(value: Any) -> Any:
    """Returns what is left of `value` when it has been through JSON: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value, default=_as_json))


def _as_json(value: Any) -> Any:
    if hasattr(value, "to_dict"):  # ml_collections
        return value.to_dict()
    return value.item() if hasattr(value, "item") else str(value)
