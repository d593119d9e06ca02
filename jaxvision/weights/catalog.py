"""The catalog of published weights: one row for every weight tag that timm publishes for these architectures.

``tools/make_catalog.py`` writes ``catalog.json`` from an installed timm. Every row is complete, and nothing is derived
from another row: two tags of one architecture may differ in crop, mean, license and number of classes.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from jaxvision import extend
from jaxvision.augment.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.weights import download
from jaxvision.weights.folder import Export, read_config, read_export

# Licenses that need no note to the user. For all others see `Entry.license_note`.
_FREE_LICENSES = frozenset({"apache-2.0", "bsd-3-clause", "mit"})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the catalog: a set of weights and how to use it.

    Attributes:
      architecture: name of the model, without the tag.
      tag: name of the weights; ``""`` if timm has none.
      hub_id: repository on the Hugging Face hub; None if the weights are not there.
      url: address of weights that are not on the hub, a PyTorch pickle.
      filename: name of the file in the repository, or of the pickle.
      num_classes: size of the head in the file; 0 for a backbone without a head.
      image_size: side of the images in the last phase of training, in pixels.
      test_image_size: side at which timm evaluates; larger than `image_size` for many convnets.
      crop_pct, test_crop_pct: fraction of the resized image's side that the crop keeps, at `image_size` and at
        `test_image_size`.
      crop_mode, interpolation, mean, std: see `Preprocess`.
      license: license of the weights, not of the code.
      classifier: dotted names of the layers that form the head: the model's ``classifier_names``. Empty for a model
        from `jaxvision.register_model`.
      first_conv: dotted name of the convolution that takes the images.
      activation: ``"quick_gelu"`` for weights that were trained with it although timm also lists them under an
        architecture with exact GELU. Otherwise None: the architecture's own.
      params: number of parameters, including the head of these weights; None if unknown.
      macs: multiply-adds per image by image size, including attention itself. The number that timm publishes,
        rounded to 1e7, or else the count of `model_info`. Empty if unknown.
      accuracy: published ImageNet-1k (top-1, top-5) in percent by image size; may be empty.
      folder: folder with the ``config.json`` that the row is from, for a name such as ``"local-dir:runs/mine/export"``;
        None for a row of timm's. Without a `hub_id` the folder contains the weights as well.
      revision: revision of the repository, for a name such as ``"hf-hub:someone/mine@v1"``.
      options: arguments of the model with which a folder or a repository says that its weights were trained.
      classes: names of the classes, if a folder or a repository has them.
      probabilities: how logits become probabilities, as for `jaxvision.classifier.Classifier`.
    """

    architecture: str
    tag: str = ""
    hub_id: str | None = None
    url: str | None = None
    filename: str = "model.safetensors"
    num_classes: int = 1000
    image_size: int = 224
    test_image_size: int = 224
    crop_pct: float = 0.875
    test_crop_pct: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    license: str | None = None
    classifier: tuple[str, ...] = ()
    first_conv: str = ""
    activation: str | None = None
    params: int | None = None
    macs: Mapping[int, int] = field(default_factory=dict)
    accuracy: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    folder: Path | None = None
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    probabilities: str = "softmax"

    @property
    def name(self) -> str:
        """The full name, such as ``"resnet50.a1_in1k"``."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture

    @property
    def published(self) -> bool:
        """Whether weights are published."""
        return self.hub_id is not None or self.url is not None or self.folder is not None

    @property
    def rated_size(self) -> int:
        """The image size of `top1`, `top5` and ``macs[rated_size]``: timm's test size if its accuracy is known."""
        return self.test_image_size if self.test_image_size in self.accuracy or not self.accuracy else self.image_size

    @property
    def top1(self) -> float | None:
        """Published ImageNet-1k top-1 in percent at `rated_size`, or None."""
        return self.accuracy.get(self.rated_size, (None, None))[0]

    @property
    def top5(self) -> float | None:
        """Published ImageNet-1k top-5 in percent at `rated_size`, or None."""
        return self.accuracy.get(self.rated_size, (None, None))[1]

    @property
    def preprocess(self) -> Preprocess:
        """The evaluation transform at the training size."""
        return self._preprocess(self.image_size, self.crop_pct)

    @property
    def test_preprocess(self) -> Preprocess:
        """The evaluation transform at the test size, with which timm measures its accuracy."""
        return self._preprocess(self.test_image_size, self.test_crop_pct)

    def _preprocess(self, image_size: int, crop_pct: float) -> Preprocess:
        return Preprocess(
            image_size=image_size,
            crop_pct=crop_pct,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )

    @property
    def license_note(self) -> str | None:
        """A note on weights that are not free for any use; otherwise None."""
        if not self.published or self.folder is not None or self.license in _FREE_LICENSES:
            return None
        if self.license is None:
            return f"the weights {self.name} have no stated license"
        terms = "non-commercial use only" if "-nc" in self.license else "a license with its own terms"
        return f"the weights {self.name} are licensed {self.license}: {terms}"


@functools.cache
def _catalog() -> dict[str, dict[str, Entry]]:
    """Returns {architecture: {tag: row}}; the first tag of an architecture is its default."""
    rows = json.loads(resources.files(__package__).joinpath("catalog.json").read_text(encoding="utf-8"))["weights"]
    catalog: dict[str, dict[str, Entry]] = {}
    for name, row in rows.items():
        architecture, _, tag = name.partition(".")
        catalog.setdefault(architecture, {})[tag] = _entry(architecture, tag, row)
    return catalog


def _entry(architecture: str, tag: str, row: Mapping[str, Any]) -> Entry:
    tuples = {key: tuple(row[key]) for key in ("mean", "std", "classifier")}
    sizes = {
        "macs": {int(size): macs for size, macs in row["macs"].items()},
        "accuracy": {int(size): (top1, top5) for size, (top1, top5) in row["accuracy"].items()},
    }
    return Entry(architecture=architecture, tag=tag, **{**row, **tuples, **sizes})


def lookup(name: str | Callable[..., Model], *, where: str = "name") -> Entry:
    """Returns the row of ``"architecture.tag"``, or of an architecture's default tag.

    Args:
      name: timm's name. Without a tag, the row of the tag that timm loads by default. timm's prefixes are accepted:
        ``timm/``, ``hf-hub:timm/`` and ``hf_hub:timm/`` before such a name, ``hf-hub:`` before another repository in
        timm's format (whose ``config.json`` is downloaded), and ``local-dir:`` before a folder in that format. For a
        model from outside jaxvision: its registered name, the class or function that builds it, or
        ``"package.module:function"``. An architecture without published weights has a row too.
      where: the key or argument that has the name, for messages.

    Raises:
      UserError: the architecture or the tag is unknown, a function cannot be imported, or a folder or repository is not
        in timm's format.

    Example:
      >>> lookup("resnet50").name, lookup("hf_hub:timm/resnet50.a1_in1k").name
      ('resnet50.a1_in1k', 'resnet50.a1_in1k')
      >>> lookup("resnet50.tv_in1k").preprocess.interpolation
      'bilinear'
    """
    if isinstance(name, str) and name.startswith("local-dir:"):
        return _folder_entry(name.removeprefix("local-dir:"), where)
    if isinstance(name, str) and is_on_hub(name):
        return _hub_entry(name)
    if callable(name) or re.fullmatch(r"[\w.]+:[\w.]+", name):
        return _own_entry(_register(name, where))
    name = re.sub(r"^(hf[-_]hub:)?timm/", "", str(name))
    if re.search(r"[^\w.-]", name):
        raise UserError(
            f"{where}: got {name[:300]!r}, expected a name such as 'resnet50.a1_in1k'. Pass a weight file as "
            "checkpoint_path, in addition to the name, or a folder with config.json as local-dir:FOLDER, or another "
            "repository of the hub as hf-hub:NAME."
        )
    architecture, dot, tag = name.partition(".")
    known = registry.architectures()
    if architecture not in known:
        raise unknown_name_error(where, architecture, known, expected="a model name", fix=registry.ALL_NAMES)
    tags = _catalog().get(architecture) or {"": _own_entry(architecture)}
    if not dot:
        return next(iter(tags.values()))
    if tag not in tags:
        owners = [other for other in known if tag and tag in _catalog().get(other, ())]
        fix = f"{tag!r} is a tag of {' and '.join(owners[:3])}." if owners else ""
        raise unknown_name_error(where, tag, tags, expected=f"a weight tag of {architecture}", fix=fix)
    return tags[tag]


def is_on_hub(name: str) -> bool:
    """Returns whether a name is that of a repository on the hub, with timm's prefix, that is not in the catalog.

    >>> is_on_hub("hf-hub:someone/mine"), is_on_hub("hf-hub:timm/resnet50.a1_in1k"), is_on_hub("resnet50.a1_in1k")
    (True, False, False)
    """
    repository = re.match(r"hf[-_]hub:(.*)", name)
    return repository is not None and not (repository[1].startswith("timm/") and "@" not in repository[1])


def _folder_entry(folder: str, where: str) -> Entry:
    path = Path(folder).expanduser()
    export = read_export(path) or read_export(path / "export")
    if export is None:
        raise UserError(f"{where}: got local-dir:{folder}, expected a folder with config.json and weights.")
    export.register()
    return export_entry(export)


def _hub_entry(name: str) -> Entry:
    repository, _, revision = re.sub(r"^hf[-_]hub:", "", name).partition("@")
    export = read_config(download.from_hub(repository, ("config.json",), revision or None))
    entry = export_entry(export)
    return replace(entry, hub_id=repository, revision=revision or None)


def export_entry(export: Export) -> Entry:
    """Returns the row of the weights in a folder in timm's format.

    Raises:
      UserError: the architecture is unknown, or does not take the options that the folder states.
    """
    where = f"{export.folder / 'config.json'}: architecture"
    if ":" in export.architecture and export.architecture not in registry.architectures():
        # `lookup` would import the module, whose name may come from a repository of anyone.
        raise UserError(
            f"{where}: got {export.architecture!r}, expected the name of a model. Import the module that registers it "
            "first."
        )
    row = lookup(export.architecture, where=where)
    options = export.arguments()
    if row.activation is not None:
        # The folder's weights have the activation of their own tag, not that of the default one.
        tagged = _catalog().get(export.architecture, {}).get(export.tag)
        own = registry.default_arguments(export.architecture)["activation"]
        options.setdefault("activation", (tagged and tagged.activation) or own)
    preprocess = export.preprocess
    return Entry(
        architecture=export.architecture,
        tag=export.tag,
        num_classes=export.num_classes,
        image_size=preprocess.image_size,
        test_image_size=preprocess.image_size,
        crop_pct=preprocess.crop_pct,
        test_crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        classifier=row.classifier,
        first_conv=row.first_conv,
        folder=export.folder,
        options=options,
        classes=export.classes,
        probabilities=export.probabilities,
    )


def _register(name: str | Callable[..., Model], where: str) -> str:
    """Returns the registered name of a model from outside jaxvision. Registers the model if it is not yet."""
    if isinstance(name, str):
        if name not in registry.architectures():
            registry.register_model(extend.resolve(where, name, {}, expected="a model"), name=name)
        return name
    own = [row for row in map(registry.variant, registry.architectures()) if row.module is not None]
    registered = [row.architecture for row in own if row.build is name]
    if registered:
        return registered[0]
    architecture = extend.import_path(where, name)
    registry.register_model(name, name=architecture)
    return architecture


def _own_entry(architecture: str) -> Entry:
    """Returns a row without weights, with the default sizes of the builder."""
    defaults = registry.default_arguments(architecture)
    sizes = {key: defaults[key] for key in ("num_classes", "image_size") if type(defaults.get(key)) is int}
    if "image_size" in sizes:
        sizes["test_image_size"] = sizes["image_size"]
    return Entry(architecture=architecture, **sizes)


def entries(architecture: str | None = None) -> list[Entry]:
    """Returns the rows of an architecture, or all rows of the catalog.

    Args:
      architecture: name of the architecture. Its default row comes first; the list is empty if it is not in the
        catalog. Default: all rows, including those of architectures that jaxvision does not have.

    Example:
      >>> [entry.tag for entry in entries("resnet152")][:3]
      ['a1h_in1k', 'a1_in1k', 'a2_in1k']
    """
    if architecture is None:
        return [entry for tags in _catalog().values() for entry in tags.values()]
    return list(_catalog().get(architecture, {}).values())
