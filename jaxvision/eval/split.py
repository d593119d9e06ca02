"""The evaluation of one split of a dataset, on the devices of a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from jaxvision import report
from jaxvision.augment.preprocess import Preprocess
from jaxvision.data.dataset import Dataset, StoredDataset
from jaxvision.data.order import eval_steps
from jaxvision.data.pipeline import InputPipeline
from jaxvision.data.pool import WorkerPool
from jaxvision.data.prefetch import prefetch
from jaxvision.errors import Preempted
from jaxvision.eval.metrics import Evaluation, summarize
from jaxvision.eval.step import predict_batches
from jaxvision.parallel.mesh import shard_batch


def evaluate_split(images: Dataset, *, classes: int, **options: Any) -> Evaluation:
    """Returns the evaluation of a model on one split of a dataset.

    Args:
      images: from `jaxvision.data.open_dataset`.
      classes: number of classes of the model.
      **options: as for `predict_split`.

    Raises:
      Preempted: `should_stop` returned True.
      UserError: there are no images, a label is out of range, or too many images are damaged.
    """
    return summarize(**predict_split(images, **options), classes=classes)


def predict_split(
    images: Dataset,
    *,
    state: nnx.State,
    name: str,
    step_of: Callable[[InputPipeline], Any],
    mesh: jax.sharding.Mesh,
    preprocess: Preprocess,
    batch_size: int,
    workers: int | WorkerPool | None,
    process: tuple[int, int],
    console: report.Console,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, np.ndarray]:
    """Returns the predictions of a model on one split of a dataset: what the step returns, arrays of n rows.

    Args:
      images: from `jaxvision.data.open_dataset`.
      state: state of the model or of training, whichever the step takes.
      name: name of the split, such as ``"test"``, for progress and messages.
      step_of: (input pipeline) -> the step, from `make_eval_step`, for images that reach the model in this way.
      mesh: the devices.
      preprocess: the evaluation transform.
      batch_size: images per step, over all devices.
      workers: processes that decode images; as for `Dataset.eval_batches`.
      process: (i, n): this process reads part i of n of each batch.
      console: shows the progress.
      should_stop: called before each batch.

    Raises:
      Preempted: `should_stop` returned True.
      UserError: there are no images, or too many images are damaged.
    """

    def until_stopped(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if should_stop():
                raise Preempted(
                    f"stopped by SIGTERM during the evaluation on the {name} data. Run the same command to resume."
                )
            yield batch

    batches = images.eval_batches(batch_size=batch_size, preprocess=preprocess, workers=workers, process=process)
    on_devices = prefetch(batches, functools.partial(shard_batch, mesh=mesh))
    total = eval_steps(len(images), batch_size)
    shown = console.evaluation(until_stopped(on_devices), total=total, name=name)
    result = predict_batches(step_of(images.pipeline), state, shown)
    share_damaged(images)
    return result


def share_damaged(images: Dataset) -> None:
    """Records the damaged images of all processes on every process, so that process 0 can report them.

    All processes must call it.

    Raises:
      UserError: there are more than ``data.max_corrupt``; raised on all processes.
    """
    if jax.process_count() == 1 or isinstance(images, StoredDataset):
        return
    mine = np.array(sorted(images.corrupt), np.int32)
    most = int(np.max(multihost_utils.process_allgather(np.int32(len(mine)))))
    if most:
        padded = np.pad(mine, (0, most - len(mine)), constant_values=-1)
        gathered = np.asarray(multihost_utils.process_allgather(padded))
        images.record_corrupt(np.unique(gathered[gathered >= 0]).tolist())
