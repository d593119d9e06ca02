"""What timm publishes: every weight tag of our architectures, as data.

``catalog.json`` is written by ``tools/make_catalog.py`` from an installed timm. Nothing is known by rule that timm
states for each tag: two tags of one architecture may differ in crop, mean, license and number of classes.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jaxvision.augment.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models import registry

# What these licenses allow is for a lawyer to say; that they are not the usual ones is for us to say.
_FREE_LICENSES = frozenset({"apache-2.0", "bsd-3-clause", "mit"})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the catalog: a set of weights and what they were made for.

    Attributes:
      architecture: name of the model, without the tag.
      tag: name of the weights; ``""`` where timm gives none.
      hub_id: repository on the Hugging Face hub, or None where nothing is published there.
      url: of weights that are not on the hub: a PyTorch pickle.
      filename: of the weights in that repository, or of the pickle.
      sha256: of the file, in hexadecimal digits, or None where it is not known.
      num_classes: size of the head in the file; 0 for a backbone without one.
      image_size: side of the images in the last phase of training, in pixels.
      test_image_size: side at which timm evaluates; larger than `image_size` for many convnets.
      crop_pct, test_crop_pct: share of the resized picture that the crop keeps, at either size.
      crop_mode, interpolation, mean, std: see `Preprocess`.
      license: of the weights, not of the code.
      classifier: attributes of the model that hold its head: its ``classifier_names``.
      first_conv: path of the convolution that sees the image.
      activation: ``"quick_gelu"`` of weights that were trained with it and that timm lists under an architecture of
        exact GELU, too; else None, the architecture's own.
      params: number of parameters, the head of these weights included; None for an architecture of ours alone.
      macs: multiply-adds for one image by image size, attention's own products included: those that timm publishes, in
        hundredths of 1e9, or where it publishes none those that `model_info` counts by the same rule, to the last one.
        Empty for an architecture of ours alone.
      accuracy: published ImageNet-1k top-1 and top-5 in percent by image size; may be empty.
    """

    architecture: str
    tag: str = ""
    hub_id: str | None = None
    url: str | None = None
    filename: str = "model.safetensors"
    sha256: str | None = None
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

    @property
    def name(self) -> str:
        """The full name, such as ``"resnet50.a1_in1k"``."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture

    @property
    def published(self) -> bool:
        """Whether there are weights to be had."""
        return self.hub_id is not None or self.url is not None

    @property
    def rated_size(self) -> int:
        """The image size that accuracy and multiply-adds are told for: that of timm's evaluation if published."""
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
        """How pictures are prepared at the size of training."""
        return self._preprocess(self.image_size, self.crop_pct)

    @property
    def test_preprocess(self) -> Preprocess:
        """How timm prepares pictures for its published accuracy."""
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
        """One line for the user of weights that are not simply free to use, else None."""
        if not self.published or self.license in _FREE_LICENSES:
            return None
        if self.license is None:
            return f"the weights {self.name} state no license"
        terms = "non-commercial use only" if "-nc" in self.license else "a license with terms of its own"
        return f"the weights {self.name} are licensed {self.license}: {terms}"


@functools.cache
def _catalog() -> dict[str, dict[str, Entry]]:
    """Returns {architecture: {tag: Entry}}; the first tag of an architecture is its default."""
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


def lookup(name: str) -> Entry:
    """Returns the catalog's row of ``"architecture.tag"``, or of an architecture's default tag.

    The default is timm's: the tag that it would load for the bare architecture. One that timm publishes nothing for
    gets a row without weights.

    Raises:
      UserError: no such architecture or tag; the message names the nearest, or whose tag it is.

    Example:
      >>> lookup("resnet50").name, lookup("hf_hub:timm/resnet50.a1_in1k").name
      ('resnet50.a1_in1k', 'resnet50.a1_in1k')
      >>> lookup("resnet50.tv_in1k").preprocess.interpolation
      'bilinear'
    """
    name = re.sub(r"^(hf[-_]hub:)?timm/", "", str(name))  # timm's own spellings of where its weights are
    if re.search(r"[^\w.-]", name):
        raise UserError(
            f"{name[:300]!r} is not the name of a model; a weight file is given beside the name, as checkpoint_path"
        )
    architecture, dot, tag = name.partition(".")
    known = registry.architectures()
    if architecture not in known:
        raise unknown_name_error("model", architecture, known)
    tags = _catalog().get(architecture) or {"": Entry(architecture=architecture)}
    if not dot:
        return next(iter(tags.values()))
    if tag not in tags:
        error = unknown_name_error(f"weight tag of {architecture}", tag, tags)
        owners = [other for other in known if tag and tag in _catalog().get(other, ())]
        raise UserError(f"{error}; it is a tag of {' and '.join(owners[:3])}") if owners else error
    return tags[tag]


def entries(architecture: str) -> list[Entry]:
    """Returns the rows of an architecture, the default first; an empty list if it is not in the catalog.

    >>> [entry.tag for entry in entries("resnet152")][:3]
    ['a1h_in1k', 'a1_in1k', 'a2_in1k']
    """
    return list(_catalog().get(architecture, {}).values())


SORTS: dict[str, Callable[[Entry], float | None]] = {
    "top1": lambda entry: None if entry.top1 is None else -entry.top1,
    "params": lambda entry: entry.params,
    "macs": lambda entry: entry.macs.get(entry.rated_size),
}


def list_models(
    pattern: str | Sequence[str] = "*",
    *,
    family: str | None = None,
    pretrained: bool = False,
    license: str | None = None,
    max_params: str | float | None = None,
    max_macs: str | float | None = None,
    sort: str = "name",
) -> list[str]:
    """Returns names of models.

    What is said of an architecture (license, size, accuracy) is what holds for its default weights, those that
    ``create_model(name, pretrained=True)`` loads; `lookup` has the numbers.

    Args:
      pattern: a shell pattern of the architecture or, with `pretrained`, of ``architecture.tag``. One without a dot
        takes every tag. Of several any one has to match.
      family: ``"resnet"``, ``"vit"`` or ``"efficientnet"``; None takes all.
      pretrained: list ``architecture.tag`` of every published set of weights, instead of architectures.
      license: a shell pattern of the weights' license, such as ``"apache-2.0"`` or ``"cc-*"``; None takes all.
      max_params: most parameters, as a number or as ``"30M"``.
      max_macs: most multiply-adds for an image, as a number or as ``"4G"``: as timm publishes them or, where it
        publishes none, as `model_info` counts them. Attention's own products are included.
      sort: ``"name"`` with numbers in it sorted as numbers; ``"top1"``, the best published ImageNet-1k accuracy first;
        ``"params"`` or ``"macs"``, the smallest first. What has no such number comes last.

    Raises:
      UserError: no such family, license or order, or a budget that is no number.

    Example:
      >>> list_models("resnet1*", max_params="15M")
      ['resnet10t', 'resnet14t', 'resnet18', 'resnet18d']
      >>> list_models("deit_*_224", max_params="30M", pretrained=True, sort="top1")[0]
      'deit_small_distilled_patch16_224.fb_in1k'
    """
    if family is not None and family not in registry.families():
        raise unknown_name_error("family", family, registry.families())
    if sort != "name" and sort not in SORTS:
        raise unknown_name_error("order", sort, ["name", *SORTS])
    rows = [
        (name, entry)
        for architecture in registry.architectures(family=family)
        for name, entry in _named(architecture, pretrained)
    ]
    # As in timm: without a dot it means every tag, and the tags in which it occurs.
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    patterns += [f"{each}.*" for each in patterns if pretrained and "." not in each]
    if license is not None:
        licenses = {entry.license for _, entry in rows if entry.license}
        matching = fnmatch.filter(licenses, str(license).lower())
        if not matching:
            raise unknown_name_error("license", license, licenses)
        rows = [(name, entry) for name, entry in rows if entry.published and entry.license in matching]
    for what, budget in (("params", max_params), ("macs", max_macs)):
        if budget is not None:
            most = _number(f"max_{what}", budget)
            rows = [(name, entry) for name, entry in rows if (n := SORTS[what](entry)) is not None and n <= most]
    rows = [(name, entry) for name, entry in rows if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    rows.sort(key=lambda row: _natural(row[0]))
    if sort != "name":
        values = {name: SORTS[sort](entry) for name, entry in rows}
        rows.sort(key=lambda row: math.inf if (value := values[row[0]]) is None else value)
    return [name for name, _ in rows]


def _named(architecture: str, pretrained: bool) -> list[tuple[str, Entry]]:
    if pretrained:
        return [(entry.name, entry) for entry in entries(architecture) if entry.published]
    return [(architecture, lookup(architecture))]


def _number(what: str, value: str | float) -> float:
    """Returns 30e6 for ``"30M"``."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(e\d+)?([KMGBT]?)", str(value).strip().upper().replace("E", "e"))
    if found is None:
        raise UserError(f"{what} is a number such as 30M, 4.1G or 2e9, got {value!r}")
    return float(found[1] + (found[2] or "")) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}[found[3]]


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


@functools.cache
def _imagenet() -> tuple[tuple[str, str], ...]:
    text = resources.files(__package__).joinpath("imagenet1k.txt").read_text(encoding="utf-8")
    rows = [line.split(" ", 1) for line in text.splitlines()]
    return tuple((synset, name) for synset, name in rows)


def class_names(num_classes: int = 1000) -> tuple[str, ...]:
    """Returns a short name for each class of a published head.

    A head of 1000 has ImageNet-1k's classes, in the order that every such head has. Others are numbered.

    >>> class_names()[:3], class_names()[134], class_names()[517]
    (('tench', 'goldfish', 'great white shark'), 'crane (bird)', 'crane (machine)')
    >>> class_names(2)
    ('class 0', 'class 1')
    """
    if num_classes == len(_imagenet()):
        return tuple(name for _, name in _imagenet())
    return tuple(f"class {label}" for label in range(num_classes))


def synsets() -> tuple[str, ...]:
    """Returns the WordNet identifiers of ImageNet-1k's classes, which its folders are named by.

    >>> synsets()[0]
    'n01440764'
    """
    return tuple(synset for synset, _ in _imagenet())
