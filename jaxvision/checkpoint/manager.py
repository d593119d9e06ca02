"""Saves and restores training states, so that an interrupted run resumes with bit-identical results.

A checkpoint is the folder ``WORKDIR/checkpoints/STEP``. Orbax writes it in the background while training continues. It
holds the state (the model with its BatchNorm statistics and random keys, the optimizer, the moving average), the
position in the data, the metrics and the config. Checksums are added last.
"""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN, PreservationPolicy

from jaxvision.checkpoint import checksums
from jaxvision.checkpoint.checksums import DamagedCheckpoint
from jaxvision.checkpoint.orbax_manager import OrbaxManager, short_reason, silence_orbax
from jaxvision.checkpoint.shapes import check_shapes, leaf_shapes
from jaxvision.errors import UserError, is_lost_connection

_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax has not finished
_REPLACED = ".aside"  # suffix of a checkpoint while the same step is written again
_SAVED = ".saved"  # in the workdir: this run has saved a checkpoint, so an empty folder means that they are lost


class ReadInOneProcessError(UserError):
    """A process cannot read a checkpoint that the others may have read, so it must not continue with another one."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds. A run without one starts from a `Checkpoint` of step 0.

    Attributes:
      step: number of steps done.
      state: the state on the devices, with the requested shardings.
      position: position in the data, as passed to `Checkpoints.save`.
      metrics: results of the evaluation at that step; empty if there was none.
    """

    step: int
    state: Any
    position: dict[str, Any]
    metrics: dict[str, float]


class _FirstBest(PreservationPolicy):
    """Keeps the best checkpoint, the first of equals. Orbax's own policy keeps the last one.

    Args:
      score: metrics -> a number, higher for a better checkpoint.
    """

    def __init__(self, score: Callable[[Any], float]):
        self._score = score

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        scores = [self._score(checkpoint.metrics or {}) for checkpoint in checkpoints]
        best = max(scores, default=-math.inf)
        first = scores.index(best) if best > -math.inf else None
        return [i == first for i in range(len(scores))]


class Checkpoints:
    """The checkpoints of one run: the newest few, and the best one.

    Use it as a context manager, or call `close` at the end, because the last checkpoint is written in the background.
    The folder is created when the first checkpoint is saved.

    Args:
      workdir: folder of the run; checkpoints go to its folder ``checkpoints``.
      keep: how many of the newest checkpoints are kept.
      best: metric of the validation data that selects one more checkpoint to keep, such as ``"top1"`` or ``"loss"``.
        None keeps none.
      best_mode: whether the highest (``"max"``) or the lowest (``"min"``) value of that metric is best.
      config: stored in each checkpoint, so that a copy elsewhere is self-describing; anything that JSON can hold.
      read_only: never write or remove anything, for an evaluation while the run continues.
      log: called with each message, such as that a damaged checkpoint was skipped.

    Raises:
      UserError: an option has an invalid value.

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
            raise UserError(f"checkpoint.keep: got {keep}, expected 1 or more.")
        if best_mode not in ("max", "min"):
            raise UserError(f"checkpoint.best_mode: got {best_mode!r}, expected 'max' or 'min'.")
        self.directory = _folder(workdir)
        self._best = best
        self._sign = 1.0 if best_mode == "max" else -1.0
        self._config = dict(config or {})
        self._read_only = read_only
        self._log = log
        self._keep = keep
        self._committing: Future[None] | None = None  # Orbax writes the newest checkpoint
        self._unsealed: deque[tuple[int, Future[None]]] = deque()  # checkpoints whose checksums are not written yet
        self._commits, self._seals = (ThreadPoolExecutor(1, f"checkpoint-{name}") for name in ("commit", "checksums"))
        silence_orbax()

        if not read_only:
            for path in self.directory.iterdir() if self.directory.is_dir() else ():
                if path.name.isdigit() and not path.is_dir():
                    log(f"skipped {path}: it is a file, expected the folder of a checkpoint")
                if _UNFINISHED in path.name:
                    log(f"skipped the checkpoint of step {path.name.split('.')[0]}: saving it was interrupted")
            self._put_replaced_back()
            _wait_for_all_processes("opened")
        policies = [LatestN(keep)]
        if best is not None:
            policies.append(_FirstBest(self._score))
        self._manager = OrbaxManager(
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
        overwrite: bool = False,
    ) -> None:
        """Starts to save. Returns as soon as `state` has been copied and its memory may be reused.

        Args:
          step: number of steps done.
          state: a pytree of arrays, random keys included, such as the state of a train step.
          position: position in the data; anything that JSON can hold.
          metrics: of an evaluation of this state. Only a checkpoint with metrics can be the best.
          overwrite: write a step that exists again, to add its metrics. False leaves an existing step as it is.

        Raises:
          UserError: this checkpoint, or the one before, could not be written, for example to a full disk. Earlier
            checkpoints remain.
        """
        # The previous checkpoint has to be on disk before an older one may be removed. The newest `keep` - 1 remain, so
        # their checksums may still be missing.
        self._collect(pending=self._keep - 1)
        if step in self.steps():
            if not overwrite:
                return
            self.wait()
            self._move_aside(step)
        about = _json_copy({"position": position, "metrics": metrics or {}, "config": self._config})
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about)),
                metrics=about["metrics"],
                force=True,
            )
        except Exception as e:
            self._raise_failure(step, e)
        self._committing = self._commits.submit(self._manager.wait_until_finished)
        self._unsealed.append((step, self._seals.submit(self._seal, step, self._committing)))

    def _seal(self, step: int, committing: Future[None]) -> None:
        """Adds the checksums when Orbax has written everything; runs in a thread of its own."""
        committing.result()
        try:
            checksums.write_checksums(self.directory / str(step))
        except checksums.OtherProcessTimeout as e:  # the checkpoint itself is complete
            self._log(f"the checkpoint of step {step} has no checksums: {e}")
        if jax.process_index() == 0:
            (self.directory.parent / _SAVED).touch()
            (self.directory / f"{step}{_REPLACED}").rmtree(missing_ok=True)

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          UserError: the last checkpoint could not be written. Earlier checkpoints remain.
        """
        self._collect(pending=0)

    def _collect(self, pending: int) -> None:
        """Returns when the last checkpoint is on disk and at most `pending` checkpoints lack checksums."""
        if self._committing is not None and self._committing.exception() is not None:
            pending = 0
        self._committing = None
        failed = None
        while len(self._unsealed) > pending or (failed and self._unsealed):
            step, sealing = self._unsealed.popleft()
            failed = failed or ((step, sealing.exception()) if sealing.exception() else None)
        if failed:
            self._raise_failure(*failed)

    def _raise_failure(self, step: int, failure: BaseException | None) -> NoReturn:
        """Removes the remains of a checkpoint that could not be written, and raises the error."""
        if failure is not None and is_lost_connection(failure):
            raise failure  # not the fault of the disk
        self._discard(step)
        intact = self.steps()
        raise UserError(
            f"cannot write the checkpoint of step {step} to {self.directory} "
            f"({short_reason(failure) if failure else 'unknown'}). "
            f"{f'The checkpoint of step {intact[-1]} is intact' if intact else 'There is no earlier checkpoint'}. "
            f"Fix the cause and run the same command again."
        ) from failure

    def _discard(self, step: int) -> None:
        """Removes the remains of a checkpoint that could not be written."""
        if jax.process_index() == 0 and self.directory.is_dir():
            with suppress(OSError):  # renamed first, so that no process adds a file while it is removed
                (self.directory / str(step)).rename(self.directory / f"{step}{_UNFINISHED}-0")
            for path in self.directory.iterdir():
                if path.name == str(step) or path.name.startswith(f"{step}{_UNFINISHED}"):
                    path.rmtree(missing_ok=True)
        self._put_replaced_back()

    def _move_aside(self, step: int) -> None:
        """Renames a checkpoint, so that the same step can be written again without losing it meanwhile."""
        _wait_for_all_processes("looked")
        if jax.process_index() == 0:
            (self.directory / str(step)).rename(self.directory / f"{step}{_REPLACED}")
        _wait_for_all_processes("aside")
        self._manager.reload()

    def _put_replaced_back(self) -> None:
        """Renames checkpoints that were moved aside back, unless their replacement is complete."""
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.name.endswith(_REPLACED):
                    replacement = path.with_name(path.name.removesuffix(_REPLACED))
                    if checksums.has_checksums(replacement):
                        path.rmtree()
                    else:
                        replacement.rmtree(missing_ok=True)
                        path.rename(replacement)

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints on disk, oldest first."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Returns the step of the best checkpoint, the first of equals; None if no checkpoint has the metric."""
        scores = {step: self._score(self._manager.metrics(step)) for step in self.steps()}
        best = max(scores, key=scores.__getitem__, default=None)
        return None if best is None or scores[best] == -math.inf else best

    def restore(
        self, abstract: Any, shardings: Any, *, step: int | str = "newest", subset: bool = False
    ) -> Checkpoint | None:
        """Returns the newest intact checkpoint, or None if the run has none yet.

        Logs and skips damaged checkpoints. If `step` is ``"newest"``, it also removes them, because the run is going to
        save those steps again.

        Args:
          abstract: shapes and dtypes of the state, or of some of its parts: without ``optimizer``, that is not read.
          shardings: of every leaf of `abstract`. They may differ from those it was saved with: a run may resume on
            another number of devices.
          step: a step, ``"newest"`` or ``"best"``.
          subset: `abstract` may also leave out leaves of its parts, which are not read.

        Raises:
          UserError: there is no such step, all checkpoints are damaged or lost, or they hold another model.
          ReadInOneProcessError: this process failed, and others may not have. All of them raise any other error.
        """
        self.wait()
        candidates = self._candidates(step)
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        damaged: list[str] = []
        for candidate in candidates:
            try:
                restored = self._read(candidate, target, subset=subset)
            except DamagedCheckpoint as e:
                damaged.append(f"step {candidate}: {e}")
                continue
            for message in damaged:
                self._log(f"skipped a damaged checkpoint, {message}")
            if step == "newest" and not self._read_only:
                for earlier in candidates[: len(damaged)]:
                    self._manager.delete(earlier)
            return restored
        if damaged and step != "newest":
            raise UserError(
                f"{self.directory}: cannot read the checkpoint of {damaged[0]}. Choose another of the steps "
                f"{', '.join(map(str, self.steps()))}."
            )
        if damaged:
            raise UserError(
                f"cannot read any checkpoint in {self.directory} ({'; '.join(damaged)}). "
                f"Remove the folder to start from scratch."
            )
        return None

    def _candidates(self, step: int | str) -> list[int]:
        """Returns the steps to try, in order."""
        known = self.steps()
        if not known and (self.directory.parent / _SAVED).exists():
            raise UserError(
                f"{self.directory}: got no checkpoint, expected those that this run has saved. Put them back, choose "
                f"another --workdir, or remove {self.directory.parent} to start from scratch."
            )
        if step == "newest":
            return known[::-1]
        wanted = self.best_step() if step == "best" else step
        if wanted not in known:
            why = " (no evaluation on validation data chose one)" if step == "best" else ""
            raise UserError(f"{self.directory}: no checkpoint {step!r}{why}, expected one of the steps {known}.")
        return [int(wanted)]

    def _read(self, step: int, target: Any, *, subset: bool) -> Checkpoint:
        """Returns one checkpoint.

        Raises:
          DamagedCheckpoint: it cannot be read.
          UserError: it is intact, but holds another model.
        """
        folder = self.directory / str(step)
        try:
            if checksums.has_checksums(folder):
                checksums.verify_checksums(folder)
            saved, failure = leaf_shapes(self._manager.item_metadata(step)["state"].tree), None
        except DamagedCheckpoint as e:
            failure = e
        except Exception as e:
            failure = DamagedCheckpoint(short_reason(e))
        if failed := _failed_processes(failure is not None):
            raise failure or DamagedCheckpoint(f"found by process {failed[0]}")
        check_shapes(saved, leaf_shapes(target), folder, subset=subset)
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
            if jax.process_count() > 1:
                raise ReadInOneProcessError(
                    f"{folder}: cannot be read by this process: {short_reason(e)}. Check the disk of its host, and run "
                    "the same command again."
                ) from e
            raise DamagedCheckpoint(short_reason(e)) from e
        if not checksums.has_checksums(folder):
            self._log(f"the checkpoint of step {step} has no {checksums.FILE}, so it was not verified")
        return Checkpoint(step, restored["state"], restored["about"]["position"], restored["about"]["metrics"])

    def close(self) -> None:
        """Waits until everything is on disk and closes the manager.

        Raises:
          UserError: the last checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            for threads in (self._commits, self._seals):
                threads.shutdown()
            try:
                self._manager.close()
            except Exception:  # the failure that `wait` has raised; Orbax raises it once in each thread
                logging.getLogger(__name__).debug("closing after a failure", exc_info=True)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except UserError as e:  # the first error is the one to raise
            self._log(str(e))

    def _score(self, metrics: Mapping[str, float] | None) -> float:
        value = (metrics or {}).get(self._best or "", math.nan)
        return self._sign * value if math.isfinite(value) else -math.inf


def saved_steps(workdir: str | Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a workdir, oldest first, while a run may be writing another."""
    folder = _folder(workdir)
    complete = [path for path in folder.iterdir() if checksums.has_checksums(path)] if folder.is_dir() else []
    return sorted(int(path.name) for path in complete if path.name.isdigit())


def _folder(workdir: str | Path) -> epath.Path:
    return epath.Path(workdir).resolve() / "checkpoints"


def _json_copy(value: Any) -> Any:
    """Returns a copy, which the caller cannot change while Orbax writes it; tuples become lists."""
    return json.loads(json.dumps(value, default=lambda x: x.item()))


def _wait_for_all_processes(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"jaxvision checkpoint {name}")


def _failed_processes(failed: bool) -> list[int]:
    """Returns the indices of the processes that pass True. All processes call it and get the same answer."""
    if jax.process_count() == 1:
        return [0] if failed else []
    return np.flatnonzero(multihost_utils.process_allgather(np.bool_(failed))).tolist()
