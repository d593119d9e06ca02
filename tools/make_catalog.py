"""Writes the catalog of timm's weights and the classes of ImageNet: jaxvision/weights/catalog.json and imagenet1k.txt.

Every fact is from an installed timm, which needs PyTorch. The catalog has each architecture of the timm modules with
our families, also those that jaxvision does not have:

    python tools/make_catalog.py [--results results-imagenet.csv] [--costs benchmark-infer-amp-nchw-....csv]

Run it again when timm publishes new weights. timm's package has no accuracies and multiply-adds; they are in the folder
results/ of its repository. Numbers in `--results` and `--costs` replace those in the catalog, and all others are kept.
Multiply-adds that timm does not publish are counted by jaxvision.model_info.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.reference import import_timm  # noqa: E402

from jaxvision.analysis.cost import model_info  # noqa: E402
from jaxvision.models import registry  # noqa: E402

MODULES = ["resnet", "vision_transformer", "deit", "vision_transformer_hybrid", "efficientnet", "resnetv2"]
WEIGHTS = ROOT / "jaxvision" / "weights"
# WordNet's first word names two classes in each of these cases; labels must be unique.
RENAMED = {
    "n02012849": "crane (bird)",
    "n03126707": "crane (machine)",
    "n03710637": "maillot (tights)",
    "n03710721": "maillot (tank suit)",
}


def published(results: Path | None) -> dict[str, dict[str, list[float]]]:
    """Returns {name: {image size: [top-1, top-5]}} on ImageNet-1k, in percent."""
    found = collections.defaultdict(dict, {name: row["accuracy"] for name, row in kept().items()})
    for row in table(results):
        found[row["model"]][row["img_size"]] = [float(row["top1"]), float(row["top5"])]
    return found


def multiply_adds(costs: Path | None) -> dict[str, dict[str, int]]:
    """Returns {architecture: {image size: multiply-adds per image}}, as published by timm."""
    found: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for name, row in kept().items():
        # timm publishes hundredths of 1e9; a finer number was counted by jaxvision.
        found[name.partition(".")[0]] |= {size: macs for size, macs in row["macs"].items() if macs % 10_000_000 == 0}
    for row in table(costs):
        if row["infer_gmacs"]:
            macs = round(float(row["infer_gmacs"]) * 100) * 10_000_000
            found[row["model"].partition(".")[0]][row["infer_img_size"]] = macs
    return found


def count(costs: dict[str, dict[str, int]], architecture: str, num_classes: int, sizes: set[int]) -> None:
    """Adds multiply-adds that timm does not publish to `costs`, if jaxvision has the architecture."""
    for size in sorted(sizes):
        if str(size) not in costs[architecture] and architecture in registry.architectures():
            model = registry.build_abstract(architecture, num_classes=num_classes, image_size=size)
            costs[architecture][str(size)] = model_info(model, size).total.multiply_adds_with_attention


def table(path: Path | None) -> list[dict[str, str]]:
    """Returns the rows of a CSV file; an empty list for None."""
    if path is None:
        return []
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def kept() -> dict[str, dict[str, Any]]:
    """Returns the rows of the present catalog."""
    return json.loads((WEIGHTS / "catalog.json").read_text(encoding="utf-8"))["weights"]


def parameters(timm: Any, name: str, cfg: Any) -> int:
    """Returns the number of parameters of a model with the number of classes and the image size of its weights."""
    import torch

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=cfg.num_classes)
    return sum(parameter.numel() for parameter in model.parameters())


def row(cfg: Any, params: int, accuracy: dict[str, list[float]], macs: dict[str, int]) -> dict[str, Any]:
    """Returns the row for one of timm's pretrained configurations."""
    test_size = cfg.test_input_size or cfg.input_size
    for c, h, w in (cfg.input_size, test_size):
        assert (c, h) == (3, w), f"{cfg.architecture}.{cfg.tag} is not trained on square RGB images"
    sizes = sorted({cfg.input_size[-1], test_size[-1]})
    found = {
        "hub_id": cfg.hf_hub_id,
        "filename": cfg.hf_hub_filename or "model.safetensors",
        "num_classes": cfg.num_classes,
        "image_size": cfg.input_size[-1],
        "test_image_size": test_size[-1],
        "crop_pct": cfg.crop_pct,
        "test_crop_pct": cfg.test_crop_pct or cfg.crop_pct,
        "crop_mode": cfg.crop_mode,
        "interpolation": cfg.interpolation,
        "mean": list(cfg.mean),
        "std": list(cfg.std),
        "license": cfg.license,
        "classifier": [cfg.classifier] if isinstance(cfg.classifier, str) else list(cfg.classifier or ()),
        "first_conv": cfg.first_conv,
        "params": params,
        "macs": {str(size): macs[str(size)] for size in sizes if str(size) in macs},
        "accuracy": dict(sorted(accuracy.items(), key=lambda item: int(item[0]))),
    }
    if cfg.url and not cfg.hf_hub_id:
        found |= {"url": cfg.url, "filename": cfg.url.rsplit("/", 1)[-1]}
    if any("quickgelu" in note.lower() for note in cfg.notes or ()) and "quickgelu" not in cfg.architecture:
        found["activation"] = "quick_gelu"  # timm also lists the weights under an architecture with exact GELU
    return found


def rows(timm: Any, accuracies: dict[str, Any], costs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the rows by name, with the default tag of each architecture first.

    A tag without weights is omitted, unless it is the default: its row has the transform of the architecture's images.
    """
    found = {}
    counts: dict[tuple[Any, ...], int] = {}
    for architecture in sorted(name for module in MODULES for name in timm.list_models(module=module)):
        cfgs = timm.models.get_arch_pretrained_cfgs(architecture)  # the default first
        listed = {name: cfg for i, (name, cfg) in enumerate(cfgs.items()) if cfg.has_weights or i == 0}
        sizes = {
            (size or cfg.input_size)[-1] for cfg in listed.values() for size in (cfg.input_size, cfg.test_input_size)
        }
        count(costs, architecture, next(iter(listed.values())).num_classes, sizes)
        for name, cfg in listed.items():
            key = (architecture, cfg.num_classes, cfg.input_size)
            counts[key] = counts.get(key) or parameters(timm, name, cfg)
            found[name] = row(cfg, counts[key], accuracies.get(name, {}), costs[architecture])
    return found


def class_names() -> list[str]:
    """Returns the lines of imagenet1k.txt, "synset name" for each class."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    lines = []
    for label in range(info.num_classes()):
        synset = info.index_to_label_name(label)
        name = RENAMED.get(synset) or info.index_to_description(label).split(",")[0].strip()
        lines.append(f"{synset} {name}")
    names = collections.Counter(line.split(" ", 1)[1] for line in lines)
    assert max(names.values()) == 1, [name for name, n in names.items() if n > 1]
    return lines


def main() -> None:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="timm's results/results-imagenet.csv")
    parser.add_argument("--costs", type=Path, help="one of timm's results/benchmark-infer-*.csv")
    arguments = parser.parse_args()

    timm = import_timm()
    found = rows(timm, published(arguments.results), multiply_adds(arguments.costs))
    # One line per set of weights, so that a diff shows each change.
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in found.items())
    text = f'{{"timm": {json.dumps(timm.__version__)}, "weights": {{\n{lines}\n}}}}\n'
    (WEIGHTS / "catalog.json").write_text(text, encoding="utf-8")
    (WEIGHTS / "imagenet1k.txt").write_text("".join(f"{line}\n" for line in class_names()), encoding="utf-8")
    print(f"{len(found)} sets of weights of {len({name.split('.')[0] for name in found})} architectures")


if __name__ == "__main__":
    main()
