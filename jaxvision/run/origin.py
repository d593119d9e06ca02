"""The model that a run started from, for WiSE-FT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from jaxvision.classifier import Classifier
from jaxvision.errors import UserError
from jaxvision.models.base import Model
from jaxvision.run.program import build_model
from jaxvision.run.recorded import recorded_config
from jaxvision.soup import with_head_of
from jaxvision.train.partial import merge_lora
from jaxvision.weights import catalog, files, imagenet, timm
from jaxvision.weights.folder import find_export
from jaxvision.weights.prefix import without_prefix


def load_origin(workdir: str | Path, classifier: Classifier) -> Classifier:
    """Returns the model that a finished run started from, with the classes of the run.

    If the weights that the run started from have a head for these classes, such as those of a probe, the origin has it.
    Otherwise it gets that of the run, so that only the other layers differ.

    Args:
      workdir: of the run.
      classifier: its result.

    Raises:
      UserError: the folder has no config of a run, or the run started from random weights.
    """
    config = recorded_config(workdir)
    if config is None:
        raise UserError(
            f"--wise: got {workdir}, expected the workdir of a run, whose config names what it started from."
        )
    if not (config.model.get("pretrained") or config.model.get("checkpoint_path")):
        raise UserError(f"--wise: {workdir} started from random weights, expected a run that was fine-tuned.")
    result = classifier.model
    preprocess = classifier.preprocess
    model = merge_lora(build_model(config, result.num_classes, result.in_channels, preprocess, weights=True))
    if not _is_head_for(classifier.classes, config, model):
        model = with_head_of(model, result)
    return replace(classifier, model=model)


def _is_head_for(classes: Sequence[str], config: ConfigDict, model: Model) -> bool:
    """Returns whether the head in the weights that a run started from is one for its classes."""
    path, entry = config.model.get("checkpoint_path"), catalog.lookup(config.model.name)
    if path is None:
        number, names = entry.num_classes, entry.classes
    elif export := find_export(path, entry.architecture):
        number, names = export.num_classes, export.classes
    else:
        file = without_prefix(files.open_weights(path), model.first_conv)
        number, names = timm.num_classes(file, model.classifier_names), ()
    if number != len(classes):
        return False
    if names not in ((), imagenet.class_names(number)):
        return names == classes
    if number == len(imagenet.synsets()):
        return classes in (imagenet.class_names(number), imagenet.synsets())
    return config.train.get("head_init") is None  # the weights do not name their classes, but the run kept their head
