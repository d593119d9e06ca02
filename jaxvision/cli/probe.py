"""``jaxvision probe``: a linear classifier on the features of a model."""

from __future__ import annotations

import argparse

from jaxvision.cli.arguments import add_model_arguments, path_argument, warn
from jaxvision.cli.data import add_feature_arguments, cache_of, source_options

HELP = "train a linear classifier on the features of a model, in a minute"
EXAMPLES = """Computes the features of all images once, and fits a logistic regression to them, whose regularization is
chosen by cross-validation. The result is an ordinary run: predict, attention, evaluate and convert take RUN as --model,
and timm reads RUN/export. A folder without test images is evaluated by cross-validation: each image is predicted by a
classifier that has not seen it. With a folder test/ (or val/), the classifier is fitted to train/ and tested there.

examples:
  jaxvision probe --data photos -m resnet50.a1_in1k --workdir runs/photos
  jaxvision probe --data tfds --option dataset=cifar10 -m vit_small_patch14_dinov2.lvd142m --workdir runs/cifar10
  jaxvision predict -m runs/photos new.jpg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision probe``."""
    parser.add_argument(
        "--data",
        required=True,
        type=path_argument,
        metavar="FOLDER|SOURCE",
        help="a folder with one subfolder per class or with splits of such folders, or a source such as digits or tfds",
    )
    add_model_arguments(parser)
    parser.add_argument("--workdir", required=True, type=path_argument, metavar="RUN", help="folder of the result")
    parser.add_argument("--folds", type=int, default=5, help="parts of the cross-validation (default: 5)")
    parser.add_argument("--max-corrupt", type=int, default=10, help="damaged images that are skipped (default: 10)")
    add_feature_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints the accuracies and writes the run."""
    from jaxvision.models.registry import keyword_parameters
    from jaxvision.parallel.accelerators import check_accelerator
    from jaxvision.run.probe import probe

    check_accelerator(warn)
    probe(
        arguments.model,
        arguments.data,
        arguments.workdir,
        checkpoint_path=arguments.checkpoint,
        num_classes=arguments.num_classes,
        image_size=arguments.image_size,
        folds=arguments.folds,
        batch_size=arguments.batch_size,
        max_corrupt=arguments.max_corrupt,
        cache=cache_of(arguments),
        **source_options(arguments, keyword_parameters(probe)),
    )
