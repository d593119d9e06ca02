"""Originals that are archives of JPEG files. Their bytes are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from jaxvision.data.prepare.split import Split
from jaxvision.data.prepare.tar import Member, Tar
from jaxvision.report import show_progress


def read_flowers(files: Mapping[str, Path], features: Any, scratch: Path) -> Iterator[Split]:
    """Yields the splits of Oxford Flowers-102."""
    from scipy.io import loadmat

    labels = loadmat(files["imagelabels.mat"])["labels"][0]
    numbers = loadmat(files["setid.mat"])
    with Tar(files["102flowers.tgz"], scratch) as tar:
        members = tar.files()
        for split, key in {"train": "trnid", "test": "tstid", "validation": "valid"}.items():
            examples = {}
            for number in numbers[key][0]:
                name = f"image_{number:05d}.jpg"
                examples[name] = {
                    "image": members[f"jpg/{name}"],
                    "label": int(labels[number - 1]) - 1,
                    "file_name": name,
                }
            yield _split_of_examples(split, examples)


def read_pets(files: Mapping[str, Path], features: Any, scratch: Path) -> Iterator[Split]:
    """Yields the splits of Oxford-IIIT Pet. TFDS recodes twelve damaged images; here they keep their bytes."""
    with Tar(files["images.tar.gz"], scratch) as images, Tar(files["annotations.tar.gz"], scratch) as annotations:
        photographs, notes = images.files(), annotations.files()
        for split, listed in {"train": "trainval", "test": "test"}.items():
            examples = {}
            for line in notes[f"annotations/{listed}.txt"].read().decode().splitlines():
                name, label, species, _ = line.split()
                examples[f"{name}.jpg"] = {
                    "image": photographs[f"images/{name}.jpg"],
                    "label": int(label) - 1,
                    "species": int(species) - 1,
                    "file_name": f"{name}.jpg",
                    "segmentation_mask": notes[f"annotations/trimaps/{name}.png"],
                    "head_bbox": _head_box(notes.get(f"annotations/xmls/{name}.xml")),
                }
            yield _split_of_examples(split, examples)


def _head_box(annotation: Member | None) -> Any:
    """Returns the box of the head, empty if the image has no annotation."""
    import tensorflow_datasets as tfds

    if annotation is None:
        return tfds.features.BBox(0.0, 0.0, 0.0, 0.0)
    root = ElementTree.fromstring(annotation.read())

    def number(path: str) -> float:
        return float(root.findtext(path) or "missing")

    height, width = number("size/height"), number("size/width")
    box = {side: number(f"object/bndbox/{side}") for side in ("ymin", "xmin", "ymax", "xmax")}
    return tfds.features.BBox(box["ymin"] / height, box["xmin"] / width, box["ymax"] / height, box["xmax"] / width)


def read_food(files: Mapping[str, Path], features: Any, scratch: Path) -> Iterator[Split]:
    """Yields the splits of Food-101. TFDS calls its test images "validation"."""
    with Tar(files["food-101.tar.gz"], scratch) as tar:
        members = tar.files()
        for split, listed in {"train": "train", "validation": "test"}.items():
            lists = json.loads(members[f"food-101/meta/{listed}.json"].read())
            examples = {
                name: {"image": members[f"food-101/images/{name}.jpg"], "label": label, "id": name}
                for label, names in lists.items()
                for name in names
            }
            yield _split_of_examples(split, examples)


def read_imagenette(files: Mapping[str, Path], features: Any, scratch: Path) -> Iterator[Split]:
    """Yields the splits of Imagenette or Imagewoof: a folder for each class, in a folder for each split."""
    (archive,) = files.values()
    with Tar(archive, scratch) as tar:
        members = {PurePosixPath(path).parts[-3:]: member for path, member in tar.files().items()}
        for split, folder in {"train": "train", "validation": "val"}.items():
            examples = {
                path[2]: {"image": member, "label": path[1]}
                for path, member in members.items()
                if path[0] == folder and path[-1].endswith(".JPEG")
            }
            yield _split_of_examples(split, examples)


def read_imagenet(files: Mapping[str, Path], features: Any, scratch: Path) -> Iterator[Split]:
    """Yields the splits of ImageNet-1k, the smaller one first, so that its errors are found before hours of writing.

    TFDS recodes the few images that are a PNG or have four channels; here they keep their bytes.
    """
    import tensorflow_datasets as tfds

    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    with Tar(files["ILSVRC2012_img_val.tar"], scratch) as tar:
        examples: dict[str, dict[str, Any]] = {}
        for path, member in tar.files().items():
            name = PurePosixPath(path).name
            line = int(name.removeprefix("ILSVRC2012_val_").removesuffix(".JPEG"))  # counts from 1
            examples[name] = {"image": member, "label": labels[line - 1], "file_name": name}
        yield _split_of_examples("validation", examples)
    with Tar(files["ILSVRC2012_img_train.tar"], scratch) as tar:
        examples = {}
        archives = tar.files()
        with show_progress("list imagenet2012 train", len(archives), unit="classes") as update:
            for done, (archive, inside) in enumerate(archives.items(), start=1):
                for name, member in tar.files(inside).items():
                    examples[name] = {"image": member, "label": PurePosixPath(archive).stem, "file_name": name}
                update(done)
        yield _split_of_examples("train", examples)


def _split_of_examples(split: str, examples: Mapping[str, dict[str, Any]]) -> Split:
    """Returns a split of examples by key."""
    keys = list(examples)
    return Split(split, keys, lambda i: examples[keys[i]])
