"""The model that a run started from, for WiSE-FT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jaxvision.classifier import Classifier
from jaxvision.errors import UserError
from jaxvision.run.program import build_model
from jaxvision.run.recorded import recorded_config
from jaxvision.soup import with_head_of
from jaxvision.train.partial import merge_lora
from jaxvision.weights.folder import find_export


def load_origin(workdir: str | Path, classifier: Classifier) -> Classifier:
    """Returns the model that a finished run started from, with the classes of the run.

    Unless the run started from a model of the same classes, such as the result of a probe, the origin has no head for
    them. It then gets that of the run, so that only the other layers differ.

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
    export = find_export(config.model.get("checkpoint_path"), result.architecture)
    if export is None or export.classes != classifier.classes:
        model = with_head_of(model, result)
    return replace(classifier, model=model)
