"""The model card of a classifier: the README.md of its repository on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jaxvision
from jaxvision.classifier import Classifier
from jaxvision.errors import UserError, count, printable, printable_line
from jaxvision.eval.metrics import headline
from jaxvision.models import registry
from jaxvision.report import wording
from jaxvision.weights import catalog, timm

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_METRICS = {"top1": "Top-1 accuracy", "top5": "Top-5 accuracy"}  # those of the hub's index, where both are "accuracy"
_MOST_CLASSES = 100  # that are listed
# Licenses of the catalog that are not among the hub's own names.
_OTHER_LICENSES = frozenset({"nvidia-open-model-license"})


class Start(NamedTuple):
    """The weights that a run started from.

    Attributes:
      text: in words, as a sentence.
      repository: of these weights on the hub; None if they are not from there.
      license: their license; None if it is not known or there are no such weights.
      note: what their license restricts; None if nothing is known.
    """

    text: str
    repository: str | None = None
    license: str | None = None
    note: str | None = None


def find_start(config: Mapping[str, Any]) -> Start:
    """Returns the weights that the run of a config started from.

    Example:
      >>> start = find_start({"model": {"name": "resnet18.fb_swsl_ig1b_ft_in1k", "pretrained": True}})
      >>> start.repository, start.license
      ('timm/resnet18.fb_swsl_ig1b_ft_in1k', 'cc-by-nc-4.0')
    """
    if probe := config.get("probe"):
        begin, model = "The head was fitted to features of", {**probe, "name": probe["model"], "pretrained": True}
    else:
        begin, model = "Training started from", config["model"]
    if model.get("checkpoint_path"):
        return Start(f"{begin} the weights in a file, {_code(os.path.basename(model['checkpoint_path']))}.")
    if not model.get("pretrained"):
        return Start(f"{begin} random weights.")
    name = str(model["name"])
    if catalog.is_on_hub(name):
        repository = name.partition(":")[2]
        return Start(f"{begin} {_code(name)}.", repository.partition("@")[0])
    try:
        entry = catalog.lookup(name)
    except UserError:  # such as a folder, or a model of the user's own, which is not registered here
        return Start(f"{begin} {_code(os.path.basename(name.rstrip('/')))}.")
    return Start(f"{begin} {_code(entry.name)}.", entry.hub_id, entry.license, entry.license_note)


def model_card(
    classifier: Classifier,
    repo: str,
    *,
    config: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """Returns the text of the card: metadata in YAML, and a page in Markdown.

    Names of folders in the config are left out, because they may reveal private facts about a machine.

    Args:
      classifier: the model.
      repo: its repository, ``"owner/name"``.
      config: of the run that trained the model; None if it is not known.
      result: from `jaxvision.run.workdir.read_result`; None if it is not known.
      license: of the model, by the hub's name. None: that of the weights that the run started from.
    """
    start = None if config is None else find_start(config)
    license = license or (start and start.license)
    sections = [
        f"# {repo.partition('/')[2]}\n\n{_summary(classifier)}",
        f"## Use\n\n{_usage(classifier, repo)}",
        f"## Classes and data\n\n{_data(classifier, config)}",
        "" if result is None else f"## Results\n\n{_results(classifier, config, result)}",
        "" if config is None or start is None else f"## Recipe\n\n{_recipe(config, start)}",
        f"## License\n\n{_license(license, start)}",
    ]
    metadata = _metadata(classifier, repo, config, result, license, start)
    return printable("\n\n".join([f"---\n{metadata}\n---", *filter(None, sections)]) + "\n")


def _metadata(
    classifier: Classifier,
    repo: str,
    config: Mapping[str, Any] | None,
    result: Mapping[str, Any] | None,
    license: str | None,
    start: Start | None,
) -> str:
    from huggingface_hub import ModelCardData

    is_timms = _is_timms(classifier)
    is_other = license in _OTHER_LICENSES
    dataset = None if config is None else _dataset(config["source"])
    return ModelCardData(
        library_name="timm" if is_timms else "jaxvision",
        pipeline_tag="image-classification",
        tags=["image-classification", *(["timm"] if is_timms else []), "jaxvision"],
        license="other" if is_other else license,
        license_name=license if is_other else None,
        datasets=[dataset] if dataset else None,
        base_model=start and start.repository,
        metrics=["accuracy"],
        model_name=repo.partition("/")[2],
        eval_results=None if config is None or result is None else _index(classifier, config["source"], result),
    ).to_yaml()


def _index(classifier: Classifier, source: Mapping[str, Any], result: Mapping[str, Any]) -> list[EvalResult] | None:
    """Returns the results for the hub's index."""
    from huggingface_hub import EvalResult

    found = headline(result["metrics"], classifier.model.num_classes)
    metrics = [
        EvalResult(
            task_type="image-classification",
            dataset_type=_dataset(source) or "imagefolder",
            dataset_name=_dataset_name(source),
            dataset_split=result["split"],
            metric_type="accuracy",
            metric_name=name,
            metric_value=found[key],
        )
        for key, name in _METRICS.items()
        if key in found
    ]
    return metrics or None


def _dataset(source: Mapping[str, Any]) -> str | None:
    """Returns the public name of a dataset; None for the user's own files."""
    if source["name"] == "tfds":
        return str(source["dataset"]).partition(":")[0].partition("/")[0]
    if source["name"] == "huggingface" and not os.path.isdir(source["path"]):
        # The run may have been trained on another machine, which has the folder.
        return source["path"] if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source["path"]) else None
    return None


def _dataset_name(source: Mapping[str, Any]) -> str:
    """Returns the name of a dataset, public or not, without folders."""
    name = os.path.basename(os.path.abspath(source.get("data_dir") or source["name"]))
    return _dataset(source) or printable_line(name)


def _is_timms(classifier: Classifier) -> bool:
    """Returns whether timm builds the model from the repository."""
    is_own = registry.variant(classifier.model.architecture).module is not None
    return not is_own and not timm.unknown_to_timm(classifier.model)


def _summary(classifier: Classifier) -> str:
    model = classifier.model
    formats = "timm and jaxvision read" if _is_timms(classifier) else "jaxvision reads"
    return (
        f"An image classifier: {model.architecture} with {count(model.num_classes, 'class', 'classes')}, for images of "
        f"{classifier.preprocess.image_size} pixels. It was saved by jaxvision {jaxvision.__version__}, in the format "
        f"that {formats}."
    )


def _usage(classifier: Classifier, repo: str) -> str:
    ours = f"""In JAX:

```python
import jaxvision                                                # from a checkout; the one on PyPI is another project

classifier = jaxvision.load_classifier("hf-hub:{repo}")
images = classifier.images(["photo.jpg"])                       # resized, cropped and normalized
probabilities = classifier.to_probabilities(classifier.model(images))[0]
best = int(probabilities.argmax())
print(classifier.classes[best], float(probabilities[best]))
```"""
    if not _is_timms(classifier):
        return ours
    mode = "L" if classifier.model.in_channels == 1 else "RGB"
    probabilities = "softmax(-1)" if classifier.probabilities == "softmax" else "sigmoid()"
    return f'''{ours}

In PyTorch:

```python
import timm                                                     # pip install timm
from PIL import Image

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
logits = model(transform(Image.open("photo.jpg").convert("{mode}")).unsqueeze(0)).detach()
probabilities = logits.{probabilities}[0]
best = int(probabilities.argmax())
print(model.pretrained_cfg["label_names"][best], float(probabilities[best]))
```'''


def _data(classifier: Classifier, config: Mapping[str, Any] | None) -> str:
    names = [_code(name) for name in classifier.classes]
    more = len(names) - _MOST_CLASSES
    listed = ", ".join(names[:_MOST_CLASSES]) + (f" and {more:,} more (`config.json` has all)" if more > 0 else "")
    text = f"{count(len(names), 'class', 'classes')}: {listed}."
    if classifier.probabilities == "sigmoid":
        text += " Each probability stands by itself; they do not sum to 1."
    if config is None:
        return text
    source = config["source"]
    kind = "images of the folder" if source["name"] == "folder" else "the dataset"
    return f"{text}\n\nTrained on {kind} {_code(_dataset_name(source))}."


def _code(text: str) -> str:
    """Returns a name as Markdown's code, in which nothing has a meaning but a backtick."""
    return f"`{printable_line(text).replace('`', chr(39))}`"


def _results(classifier: Classifier, config: Mapping[str, Any] | None, result: Mapping[str, Any]) -> str:
    split, images = result["split"], result["metrics"].get("count")
    metrics = headline(result["metrics"], classifier.model.num_classes)
    metrics.pop("regularization", None)  # of a probe: a setting, not a result
    on = f"{int(images):,} images of the {split} data" if images is not None else f"the {split} data"
    if split == "cross-validation":
        on = on.removesuffix(" data")
        metrics.pop("cross_validated_accuracy", None)  # is the top-1 accuracy
    rows = [f"| {wording.label(name)} | {wording.value(name, value)} |" for name, value in metrics.items()]
    text = "\n".join([f"| metric | on {on} |", "|---|---|", *rows])
    run = {} if config is None or config.get("probe") else config  # a probe chooses no checkpoint
    if split == "validation" and (run.get("checkpoint") or {}).get("best"):
        text += "\n\nThe checkpoint was chosen by these images, so the result is optimistic."
    return text


def _recipe(config: Mapping[str, Any], start: Start) -> str:
    if config.get("probe"):  # the rest is that of a training run, and was not used
        config = {section: config[section] for section in ("source", "data", "probe")}
    public = {config["source"].get("dataset"), _dataset(config["source"])}
    text = json.dumps(_without_folders(config, public), indent=1, ensure_ascii=False, default=str)
    return f"{start.text}\n\n<details><summary>The config of the run</summary>\n\n```json\n{text}\n```\n\n</details>"


def _without_folders(value: Any, public: Collection[str | None]) -> Any:
    """Returns a value of a config without keys that are None, and with paths reduced to their last part.

    Args:
      value: the config or a part of it.
      public: names of datasets, which may have slashes.
    """
    if isinstance(value, Mapping):
        return {key: _without_folders(x, public) for key, x in value.items() if x is not None}
    if isinstance(value, list | tuple):
        return [_without_folders(x, public) for x in value]
    if not isinstance(value, str) or value in public or re.match(r"hf[-_]hub:|timm/", value):
        return value
    if "/" in value or value.startswith("~"):
        return f"{'local-dir:' * value.startswith('local-dir:')}.../{os.path.basename(value.rstrip('/'))}"
    return value


def _license(license: str | None, start: Start | None) -> str:
    text = f"This model: {license}." if license else "No license is stated."
    if start is not None and start.license is not None:
        text += f" The weights it started from: {start.license}."
    if start is not None and start.note is not None:
        text += f" Note: {start.note}."
    return text
