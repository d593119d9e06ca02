"""``jaxvision attention``: an image of where a model looks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvision.cli.arguments import add_model_arguments, image_files, load_model, warn
from jaxvision.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    import numpy as np

    from jaxvision.classifier import Classifier

HELP = "write a PNG that shows where a model looks"
EXAMPLES = """examples:
  jaxvision attention --model vit_base_patch16_224.augreg2_in21k_ft_in1k photo.jpg
  jaxvision attention --model resnet50.a1_in1k photo.jpg --label 'tabby, tabby cat' -o cat.png"""

MIN_SIDE = 448  # Smaller images are enlarged to at least this many pixels.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision attention``."""
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    add_model_arguments(parser)
    parser.add_argument(
        "--layer",
        type=int,
        help="show the attention of the class token in this layer of a ViT, -1 for the last "
        "(default: attention rollout over all layers of a ViT, Grad-CAM for a convnet)",
    )
    parser.add_argument("--label", help="explain this class with Grad-CAM (default: the predicted class)")
    parser.add_argument(
        "--output", "-o", help="the PNG to write (default: IMAGE-attention.png in the current directory)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the image next to a copy with a heat map on top, and prints the file's name and the method."""
    import numpy as np
    from PIL import Image

    from jaxvision.analysis.saliency import overlay
    from jaxvision.parallel.accelerators import check_accelerator

    check_accelerator(warn)
    files = list(image_files([arguments.image]))
    if len(files) != 1:
        raise UserError(f"{arguments.image}: got {len(files)} images, expected one.")
    output = Path(arguments.output or f"{files[0].stem}-attention.png")
    classifier = load_model(arguments)
    images = classifier.images([files[0]])
    pixels = classifier.pixels(files[0], times=math.ceil(MIN_SIDE / images.shape[1]))
    heat, method = _heat_map(classifier, images, layer=arguments.layer, label=arguments.label)
    image = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]
    try:
        heated = overlay(image, heat / max(heat.max(), 1e-12))
        Image.fromarray(np.concatenate([image, heated], axis=1)).save(output)
    except (OSError, ValueError) as e:
        raise UserError(f"cannot write {output}: {e}") from e
    print(f"{output}: {method}, {arguments.model} on {files[0].name}")
    if min(heat.shape) < 3:
        warn(
            f"the map of this model is only {heat.shape[0]} x {heat.shape[1]} at {images.shape[1]} pixels, too coarse "
            "to show where it looks. Try a larger --image-size."
        )


def _heat_map(classifier: Classifier, images: Any, *, layer: int | None, label: str | None) -> tuple[np.ndarray, str]:
    """Returns a heat map [h, w] of one image, and the name of the method."""
    import jax
    import numpy as np

    from jaxvision.analysis.attention import class_attention
    from jaxvision.analysis.saliency import explain

    model = classifier.model
    if layer is not None:
        if model.explanation != "attention rollout":
            raise UserError(f"--layer: {model.architecture} has no attention layers. Use --label instead.")
        heat = class_attention(model, images, layer_idx=layer)
        method = f"attention of layer {layer}"
    elif model.explanation != "Grad-CAM":
        if label is not None:
            raise UserError(
                f"--label: {model.architecture} is explained by {model.explanation}, which does not depend on a class. "
                "Remove --label."
            )
        heat, method = jax.jit(explain)(model, images), model.explanation
    else:
        probabilities = np.asarray(jax.jit(lambda model, images: jax.nn.softmax(model(images)))(model, images))[0]
        chosen = int(probabilities.argmax()) if label is None else _class_index(label, classifier.classes)
        heat = explain(model, images, classes=np.array([chosen]))
        method = f"Grad-CAM for {classifier.classes[chosen]!r} ({probabilities[chosen]:.1%})"
    return np.asarray(heat)[0], method


def _class_index(label: str, classes: Sequence[str]) -> int:
    if label not in classes:
        raise unknown_name_error("--label", label, classes, expected="a class of the model")
    return classes.index(label)
