"""Features on the disk: the files of ``jaxvision embed``, and the cache by model and image."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxvision import report, tree
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier
from jaxvision.data.dataset import Dataset, take
from jaxvision.data.pipeline import InputPipeline
from jaxvision.data.reading import read_examples
from jaxvision.disk import replaced
from jaxvision.errors import UserError
from jaxvision.features.extraction import Features, describe, extract, extract_parts, level_number, transform_of
from jaxvision.models.base import Model

_VERSION = 1  # of the cache, and of how features are computed
_TOGETHER = 32  # images read at once for their digests
_SAVE_EVERY = 20.0  # seconds of computation that an interruption may cost

FORMATS = (".npz", ".parquet")

# What np.load raises for damaged files, such as an empty one, or one whose version or encryption flag is damaged.
_DAMAGE = (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile)


def check_format(path: Path) -> None:
    """Raises `UserError` unless a file of features can have this name."""
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: got the ending {path.suffix!r}, expected .npz or .parquet. Rename the output.")


def save_features(path: str | Path, features: Features, **facts: Any) -> None:
    """Writes features atomically.

    A ``.npz`` file has the arrays ``features`` float32 [n, d], ``label`` and ``index`` int32 [n], ``path``, ``split``
    and ``classes``, and ``facts`` as JSON. A ``.parquet`` file has a row for each image, and the classes and the facts
    in its metadata.

    Args:
      path: ends in ``.npz`` or ``.parquet``.
      features: from `extract`.
      **facts: for the reader, such as the name of the model.

    Raises:
      UserError: another ending, or the file cannot be written.
    """
    path = Path(path)
    check_format(path)
    try:
        with replaced(path) as temporary:
            (_write_npz if path.suffix == ".npz" else _write_parquet)(temporary, features, facts)
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {e.strerror or e}. Choose another output.") from e


def _write_npz(path: Path, features: Features, facts: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(
            file,
            features=features.values,
            label=features.label,
            index=features.index,
            path=np.array(features.path, np.str_),
            split=np.array(features.split, np.str_),
            classes=np.array(features.classes, np.str_),
            facts=np.array(json.dumps(facts)),
        )


def _write_parquet(path: Path, features: Features, facts: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, d = features.values.shape
    flat = pa.array(np.ascontiguousarray(features.values).reshape(n * d))
    table = pa.table(
        {
            "path": pa.array([path.encode("utf-8", "backslashreplace").decode() for path in features.path]),
            "split": pa.array(features.split, pa.string()),
            "index": pa.array(features.index),
            "label": pa.array(features.label),
            "features": pa.FixedSizeListArray.from_arrays(flat, d),
        }
    )
    metadata = {"classes": json.dumps(features.classes), "facts": json.dumps(facts)}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def load_features(path: str | Path) -> Features:
    """Returns the features that `save_features` wrote.

    Raises:
      UserError: the file does not exist or is not one of `save_features`.
    """
    path = Path(path)
    check_format(path)
    try:
        if path.suffix == ".npz":
            with path.open("rb") as opened, np.load(opened) as file:  # np.load leaves a damaged file open
                texts = [tuple(map(str, file[name])) for name in ("path", "split", "classes")]
                return Features(file["features"], file["label"], file["index"], *texts)
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        flat = table["features"].combine_chunks()
        d = flat.type.list_size
        return Features(
            values=flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, d),
            label=table["label"].to_numpy(),
            index=table["index"].to_numpy(),
            path=tuple(table["path"].to_pylist()),
            split=tuple(table["split"].to_pylist()),
            classes=tuple(json.loads(table.schema.metadata[b"classes"])),
        )
    except (*_DAMAGE, TypeError, AttributeError) as e:
        raise UserError(f"{path}: cannot be read as features: {e}. Run jaxvision embed again.") from e


def cached_extract(
    classifier: Classifier,
    images: Dataset,
    *,
    cache: str | Path | None,
    level: int | str | None = None,
    preprocess: Preprocess | None = None,
    console: report.Console | None = None,
    name: str = "images",
    **options: Any,
) -> Features:
    """Returns what `extract` returns, and computes only the features that are not in the cache.

    The cache has a folder for each model, transform and level. It finds an image by the digest of its bytes, wherever
    its file is. An interrupted call keeps what it has computed. Features of a model of your own are not kept, because
    its code may change. For a single process.

    Args:
      classifier, images, level, preprocess, console, name: as for `extract`.
      cache: its folder. None: no cache.
      **options: the other arguments of `extract`.

    Raises:
      UserError: as for `extract`, or the cache cannot be written.
    """
    preprocess = preprocess or transform_of(classifier, images.pipeline)
    options |= {"level": level, "preprocess": preprocess, "console": console, "name": name}
    if cache is not None and classifier.model.family == "custom":
        if console is not None:
            console.note(f"{name}: the features of your own model are not cached, because its code may change")
        cache = None
    if cache is None:
        return extract(classifier, images, **options)
    shards = _Shards(Path(cache) / features_key(classifier, preprocess, images.pipeline, level))
    digests, label = _digests(images)
    values, known = shards.find(digests)
    if console is not None and known.any():
        console.note(f"{name}: the features of {known.sum():,} of {len(known):,} images are in {shards.folder}")
    missing = np.flatnonzero(~known)
    rows: list[np.ndarray] = []
    found: list[np.ndarray] = [] if values is None else [values]
    if len(missing):
        part = take(images, missing)
        try:
            batches = extract_parts(classifier, part, **options)
            for new, index, labels in shards.saved(batches, [digests[i] for i in missing]):
                rows.append(missing[index])
                label[missing[index]] = labels
                found.append(new)
        except KeyboardInterrupt as e:
            raise KeyboardInterrupt(f"interrupted. The same command continues with what is in {shards.folder}") from e
        finally:
            images.corrupt |= {int(missing[i]): why for i, why in part.corrupt.items()}
    index = np.concatenate([np.flatnonzero(known), *rows])
    order = np.argsort(index)
    index = index[order].astype(np.int32)
    return describe(np.concatenate(found)[order], label[index], index, images, name=name)


def features_key(
    classifier: Classifier, preprocess: Preprocess, pipeline: InputPipeline, level: int | str | None
) -> str:
    """Returns a digest of everything that the features of a built-in model depend on besides the image.

    It depends on the weights, not on their file, and not on the head.
    """
    model = classifier.model
    facts = {
        "version": _VERSION,
        "architecture": model.architecture,
        "options": repr(model.options),
        "dtype": str(getattr(model, "dtype", None)),  # of the computation, which the options leave out
        "image_size": repr(model.image_size),
        "preprocess": asdict(preprocess),
        "pipeline": repr(pipeline),
        "level": level_number(model, level),
        "backend": jax.default_backend(),
        "weights": weights_digest(model),
    }
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def weights_digest(model: Model) -> str:
    """Returns a digest of the parameters and statistics of a model without its head."""
    digest = hashlib.blake2b(digest_size=16)
    state = nnx.state(model)
    heads = tuple(f"{path}." for path in model.classifier_names)
    for leaf_name, leaf in zip(tree.names(state), jax.tree.leaves(state), strict=True):
        if not leaf_name.startswith(heads) and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            array = np.asarray(leaf)
            digest.update(f"{leaf_name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _digests(images: Dataset) -> tuple[list[bytes], np.ndarray]:
    """Returns the digest of each image, random for one that cannot be read, and the labels int32 [n]."""
    digests, label = [], np.zeros(len(images), np.int32)
    for start in range(0, len(images), _TOGETHER):
        rows = range(start, min(start + _TOGETHER, len(images)))
        for i, example in zip(rows, read_examples(images.source, rows), strict=True):
            if isinstance(example, OSError):  # `extract` reports it
                digests.append(uuid.uuid4().bytes)
                continue
            label[i] = example["label"]
            image = example["image"]
            digest = hashlib.blake2b(digest_size=16)
            if isinstance(image, np.ndarray):
                digest.update(repr(image.shape).encode())
                image = image.tobytes()
            digest.update(image)
            digests.append(digest.digest())
    return digests, label


class _Shards:
    """Files with the features of some images, in one folder for each model.

    Args:
      folder: need not exist.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def find(self, digests: list[bytes]) -> tuple[np.ndarray | None, np.ndarray]:
        """Returns the features of the images that are known, in their order, and which are known: bool [n]."""
        wanted = set(digests)
        values: dict[bytes, np.ndarray] = {}
        for file in sorted(self.folder.glob("*.npz")):
            # Opened here, because np.load leaves a damaged file open.
            with suppress(*_DAMAGE), file.open("rb") as opened, np.load(opened) as shard:
                keys = shard["digest"].reshape(-1, 16)
                of_file = {key.tobytes(): row for row, key in enumerate(keys)}
                if shared := wanted & of_file.keys():
                    features = shard["values"]
                    values |= {key: features[of_file[key]] for key in shared}
        known = np.array([digest in values for digest in digests], bool)
        if not known.any():
            return None, known
        return np.stack([values[digest] for digest in digests if digest in values]), known

    def saved(
        self, parts: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]], digests: list[bytes]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields the features of each batch, and saves them every 20 seconds and at the end, or after an error."""
        unsaved: list[tuple[np.ndarray, np.ndarray]] = []
        since = time.monotonic()
        try:
            for values, index, label in parts:
                unsaved.append((values, index))
                yield values, index, label
                if time.monotonic() - since > _SAVE_EVERY:
                    self._save(unsaved, digests)
                    unsaved, since = [], time.monotonic()
        finally:
            self._save(unsaved, digests)

    def _save(self, parts: list[tuple[np.ndarray, np.ndarray]], digests: list[bytes]) -> None:
        if not sum(len(index) for _, index in parts):
            return
        values, index = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        keys = np.frombuffer(b"".join(digests[i] for i in index), np.uint8).reshape(-1, 16)
        file = self.folder / f"{uuid.uuid4().hex}.npz"
        try:
            with replaced(file) as temporary, temporary.open("wb") as opened:
                np.savez(opened, digest=keys, values=values)
        except OSError as e:
            raise UserError(
                f"{self.folder}: cannot write the cache of features: {e.strerror or e}. Choose another folder with "
                "--cache, or add --no-cache."
            ) from e
