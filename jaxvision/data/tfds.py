"""Datasets of TensorFlow Datasets (TFDS) as ArrayRecord files, read without TensorFlow."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxvision.data.prepare import ORIGINALS, find_original, prepare
from jaxvision.data.source import Example, Splits
from jaxvision.errors import UserError, nearest


class TfdsSource:
    """One split of a prepared dataset.

    Args:
      builder: from TFDS.
      split: in TFDS's notation, such as ``"train[:98%]"``.
      image_key, label_key: names of the features.
    """

    labels: np.ndarray | None = None  # known only after reading every example

    def __init__(self, builder: Any, split: str, *, image_key: str, label_key: str):
        import tensorflow_datasets as tfds

        try:
            parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
            # If a part ends before it begins, TFDS itself reads other examples than those of the part.
            chosen = [range(builder.info.splits[part.splitname].num_examples)[part.from_ : part.to] for part in parts]
            if not all(chosen):
                raise ValueError("a part without examples")
            with _quiet():
                self._data = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
        except (ValueError, AssertionError, KeyError, AttributeError, TypeError) as e:
            valid = ", ".join(f"{name} ({info.num_examples:,})" for name, info in builder.info.splits.items())
            raise UserError(
                f"tfds {builder.name}: got the split {split!r}, expected one of {valid}, or examples of one such as "
                "'train[:90%]'. Set source.train, source.validation and source.test to those, or to None."
            ) from e
        self._image, self._label = image_key, label_key
        self.classes = list(builder.info.features[label_key].names)
        self.name = f"tfds {builder.name} {split}"

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Example:
        example = self._data[index]
        return {"image": example[self._image], "label": int(example[self._label])}

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Returns several examples. Reads them in parallel, five times as fast as one by one."""
        examples = self._data.__getitems__(list(indices))
        return [{"image": example[self._image], "label": int(example[self._label])} for example in examples]

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"


def open_tfds(
    *,
    dataset: str,
    data_dir: str | None = None,
    train: str | None = "train",
    validation: str | None = None,
    test: str | None = "test",
) -> Splits:
    """Returns the splits of a dataset of TensorFlow Datasets.

    A dataset that is not in `data_dir` is downloaded from its authors and written there as TFDS would: CIFAR-10 and
    CIFAR-100, MNIST, Fashion-MNIST, SVHN, Flowers-102, Oxford-IIIT Pet, Food-101, Imagenette, Imagewoof, and from the
    user's archives ImageNet. Other datasets are prepared by TFDS itself, which needs TensorFlow for it.

    Args:
      dataset: its name, such as ``"cifar10"``, ``"imagenet2012"`` or ``"imagenette/320px-v2"``, optionally with a
        config and a version.
      data_dir: folder of prepared datasets. None: the default of TFDS, ``~/tensorflow_datasets`` or ``TFDS_DATA_DIR``.
      train: the split for training, in TFDS's notation: ``"train"``, ``"train[:98%]"``.
      validation: the split for choosing the best checkpoint. None: no validation.
      test: the split for the final evaluation. None: no test.

    Raises:
      UserError: no such dataset or split, or the dataset is not prepared and cannot be downloaded or needs TensorFlow.
    """
    data_dir = os.path.expanduser(data_dir) if data_dir else None
    _check_folder(data_dir)
    if dataset.startswith("huggingface:"):  # TFDS would read the hub by a library that jaxvision does not need
        raise UserError(
            f"source.dataset: got {dataset!r}, expected a dataset of TFDS. For the hub set "
            f"--config.source.name=huggingface and --config.source.path={dataset.partition(':')[2]}."
        )
    with _quiet():
        import tensorflow_datasets as tfds

        builder = _prepared(dataset, data_dir)
    if builder.info.file_format not in tfds.core.FileFormat.with_random_access():
        raise UserError(
            f"tfds {dataset}: got the format {builder.info.file_format.value} in {builder.data_path}, expected "
            "array_record, which needs no TensorFlow. Run pip install '.[tfds]' in the checkout, and convert it: "
            f"tfds convert_format --dataset_version_dir={builder.data_path} --out_file_format=array_record "
            f"--out_dir=NEW_FOLDER"
        )
    if builder.info.supervised_keys is None:
        raise UserError(f"tfds {dataset}: got a dataset without (image, label) pairs. Choose one for classification.")
    image_key, label_key = builder.info.supervised_keys[:2]
    if not hasattr(builder.info.features[label_key], "names"):
        raise UserError(f"tfds {dataset}: {label_key!r} is not a class label. Choose a dataset for classification.")

    def open_split(split: str | None) -> TfdsSource | None:
        return None if not split else TfdsSource(builder, split, image_key=image_key, label_key=label_key)

    return Splits(train=open_split(train), validation=open_split(validation), test=open_split(test))


def _prepared(dataset: str, data_dir: str | None) -> Any:
    """Returns the builder of a dataset, which is downloaded and prepared as ArrayRecord files if necessary."""
    import tensorflow_datasets as tfds

    with _errors_of_tfds(dataset, data_dir):
        target = find_original(dataset, data_dir)
        try:
            builder = tfds.builder(dataset, data_dir=data_dir)
            if builder.is_prepared():
                return builder
        except tfds.core.DatasetNotFoundError:
            if target is None:
                raise
    if target is None:
        return _prepared_by_tensorflow(dataset, data_dir)
    prepare(target)
    return tfds.builder(f"{target.name}:{target.builder.version}", data_dir=data_dir)


@contextlib.contextmanager
def _errors_of_tfds(dataset: str, data_dir: str | None) -> Iterator[None]:
    """Raises what TFDS raises for a name, a version, a config or a damaged folder as a `UserError`."""
    import tensorflow_datasets as tfds

    name = dataset.partition(":")[0]
    similar = [] if name in ORIGINALS else nearest(name, ORIGINALS, n=1)
    fix = f"Did you mean {similar[0]!r}?" if similar else "Check the name and source.data_dir."
    try:
        yield
    except tfds.core.DatasetNotFoundError as e:
        raise UserError(
            f"source.dataset: got {dataset[:120]!r}, expected a dataset of TFDS or one in {_folder(data_dir)}. {fix}"
        ) from e
    except Exception as e:  # an unknown version or config, a damaged file, a missing package for a bucket
        said = re.sub(r'^Failed to construct dataset ".*?": (?=\w)', "", str(e).strip())
        reason = (said.splitlines() or [type(e).__name__])[0].split(" Here are ")[0].rstrip(".")
        raise UserError(f"source.dataset: cannot open {dataset[:120]!r} in {_folder(data_dir)}: {reason}. {fix}") from e


def _check_folder(data_dir: str | None) -> None:
    if data_dir is None or "://" in data_dir:
        return
    try:
        if not stat.S_ISDIR(os.stat(data_dir).st_mode):
            raise UserError(f"source.data_dir: got the file {data_dir!r}, expected a folder.")
    except FileNotFoundError:
        pass  # it is created
    except (OSError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"source.data_dir: got {data_dir[:300]!r} ({reason}), expected a folder.") from e


def _prepared_by_tensorflow(dataset: str, data_dir: str | None) -> Any:
    """Downloads and prepares a dataset with TensorFlow, and returns its builder."""
    import tensorflow_datasets as tfds

    if importlib.util.find_spec("tensorflow") is None:
        name = dataset.lower().partition("/")[0].partition(":")[0]
        others = ", ".join(repr(key) for key in ORIGINALS if key.partition("/")[0] == name)
        fix = f", or choose one that needs no TensorFlow: {others}" if others else ""
        raise UserError(
            f"tfds {dataset}: not prepared in {_folder(data_dir)}. Set --config.source.data_dir to its folder{fix}, or "
            "prepare it with TensorFlow: run pip install '.[tfds]' in the checkout, then the same command again."
        )
    builder = tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
    _hide_accelerators()
    try:
        builder.download_and_prepare()
    except Exception as e:  # network, disk or license; the message of TFDS says which
        raise UserError(f"tfds {dataset}: cannot download and prepare the dataset: {e}") from e
    return builder


def _hide_accelerators() -> None:
    """Hides the accelerators from TensorFlow, which would otherwise reserve all memory of the GPUs."""
    import tensorflow

    for kind in ("GPU", "TPU"):
        with contextlib.suppress(RuntimeError):  # the program has already started TensorFlow
            tensorflow.config.set_visible_devices([], kind)


def _folder(data_dir: str | None) -> str:
    return data_dir or "~/tensorflow_datasets"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # TFDS logs every folder lookup through absl; problems are raised as exceptions.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
