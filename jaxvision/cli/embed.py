"""``jaxvision embed``: the features of a model for every image of a folder or a source."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jaxvision.cli.arguments import (
    add_model_arguments,
    add_overwrite_argument,
    check_outputs,
    load_model,
    path_argument,
    warn,
)
from jaxvision.cli.data import add_feature_arguments, cache_of, source_options
from jaxvision.cli.exit import SOME_FAILED
from jaxvision.errors import UserError

if TYPE_CHECKING:
    from jaxvision.classifier import Classifier
    from jaxvision.data.dataset import Dataset
    from jaxvision.features import Features
    from jaxvision.report import Console

HELP = "compute the features of images, or check images and labels"
EXAMPLES = """The file has the features, labels, paths and splits of all images. In Python, read it with
jaxvision.features.load_features. Features are kept in a cache by model and image: after ten images are added, ten are
computed, and an interrupted command continues where it was.

--check looks for what is wrong with the data: copies in train and test, copies with different labels, likely wrong
labels, duplicates and outliers. It writes a page with the images, check.html, and a table, findings.csv.

examples:
  jaxvision embed photos -m vit_small_patch14_dinov2.lvd142m -o photos.npz
  jaxvision embed photos -m vit_small_patch14_dinov2.lvd142m --check photos-check
  jaxvision embed photos -m runs/mine --level layer3 -o photos.parquet
  jaxvision embed tfds --option dataset=cifar10 -m resnet50.a1_in1k -o cifar10.npz"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision embed``."""
    parser.add_argument(
        "data",
        type=path_argument,
        metavar="FOLDER|SOURCE",
        help="a folder of images, of one folder per class, or of splits, or a source such as digits or tfds",
    )
    add_model_arguments(parser)
    parser.add_argument("--output", "-o", type=path_argument, metavar="FILE", help="ends in .npz or .parquet")
    parser.add_argument(
        "--check", type=path_argument, metavar="FOLDER", help="write check.html and findings.csv to this folder"
    )
    parser.add_argument(
        "--level",
        help="name or number of a level of the model, whose map is averaged (default: the input of the head)",
    )
    add_feature_arguments(parser)
    add_overwrite_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the features, checks the images, or both. Returns 1 if some images cannot be read."""
    from jaxvision import report
    from jaxvision.data.dataset import open_dataset
    from jaxvision.data.layout import check_outputs_outside
    from jaxvision.errors import disk_errors_as_user_errors
    from jaxvision.features import open_images
    from jaxvision.features.extraction import concatenate, level_number, transform_of
    from jaxvision.features.store import cached_extract
    from jaxvision.models.registry import keyword_parameters
    from jaxvision.parallel.accelerators import check_accelerator
    from jaxvision.parallel.mesh import check_batch_size, make_mesh

    outputs = _outputs(arguments)
    check_outputs(outputs, arguments)
    check_accelerator(warn)
    if arguments.batch_size is not None:
        check_batch_size(arguments.batch_size, make_mesh(), what="--batch-size")
    options = source_options(arguments, keyword_parameters(open_images))
    check_outputs_outside(outputs, arguments.data, options.get("layout"))
    sources = open_images(arguments.data, **options)
    parts, skipped = [], 0
    with report.Console() as console, disk_errors_as_user_errors(outputs[0].parent):
        data = {
            split: open_dataset(images, max_corrupt=len(images), log=console.warn) for split, images in sources.items()
        }
        classifier = load_model(arguments, in_channels=max(images.channels for images in data.values()))
        level_number(classifier.model, arguments.level)  # raises before anything is computed
        preprocess = transform_of(classifier, next(iter(data.values())).pipeline)  # one for all splits
        for split, images in data.items():
            parts.append(
                cached_extract(
                    classifier,
                    images,
                    cache=cache_of(arguments),
                    level=arguments.level,
                    preprocess=preprocess,
                    batch_size=arguments.batch_size,
                    name=split,
                    console=console,
                )
            )
            skipped += len(images.corrupt)
        features = concatenate(parts)
        if arguments.output is not None:
            _save(features, classifier, arguments, console)
        if arguments.check is not None:
            _check(features, data, arguments, console)
    return SOME_FAILED if skipped else 0


def _outputs(arguments: argparse.Namespace) -> list[Path]:
    """Returns the files that the command writes."""
    from jaxvision.features.dataset_check.page import PAGE, TABLE
    from jaxvision.features.store import check_format

    outputs = []
    if arguments.output is not None:
        outputs.append(Path(arguments.output))
        check_format(outputs[0])
    if arguments.check is not None:
        outputs += [Path(arguments.check, name) for name in (PAGE, TABLE)]
    if not outputs:
        raise UserError("embed: got no output, expected one. Add -o FILE for the features, or --check FOLDER.")
    return outputs


def _save(features: Features, classifier: Classifier, arguments: argparse.Namespace, console: Console) -> None:
    from jaxvision.errors import count
    from jaxvision.features.store import save_features

    facts = {name: getattr(arguments, name) for name in ("model", "checkpoint", "image_size", "level")}
    save_features(arguments.output, features, architecture=classifier.model.architecture, **facts)
    n, d = features.values.shape
    console.note(f"{arguments.output}: {d:,} features of {count(n, 'image')}")


def _check(features: Features, data: Mapping[str, Dataset], arguments: argparse.Namespace, console: Console) -> None:
    """Checks the images, and prints how much was found of each kind."""
    from jaxvision.features.dataset_check.findings import check
    from jaxvision.features.dataset_check.page import summary, write_check

    findings = check(features, data, log=console.note)
    files = write_check(arguments.check, findings, data, name=arguments.data)
    for line in [*findings.notes, *summary(findings)]:
        console.note(line)
    console.note(f"look at {files[0]}; all findings are in {files[1]}")
