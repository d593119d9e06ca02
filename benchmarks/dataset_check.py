"""Measures what `jaxvision embed --check` finds: planted copies, changed labels, odd images, and the known duplicates
and wrong labels of CIFAR-10.

    python benchmarks/transfer_task.py ../shared/data/imagenet_sample/test photos
    python benchmarks/dataset_check.py copies ../shared/data/imagenet_sample/test
    python benchmarks/dataset_check.py labels photos
    python benchmarks/dataset_check.py outliers photos ../shared/data/imagenet_sample/test
    python benchmarks/dataset_check.py cifar10 ../shared/data/tfds duplicates_cifar10.csv --judged cifar10_mturk.json

The features are those of tf_efficientnet_lite0. They are cached, so only the first run computes them. Measured:

| part | listed | correct | out of |
|---|---|---|---|
| copies, 1,400 images | 374 | 374 | 400 planted copies |
| labels, 5 % changed, 20 times | 205 | 176, and 20 times a duck with a wrong label | 240 changed labels |
| labels, 10 % changed, 20 times | 407 | 367, and 16 times the duck | 500 changed labels |
| outliers, 248 photographs | 3 | | |
| outliers, one more image, 10 times | 7 | 7 | 10 odd images |
| cifar10, test images | 377 | 173, and 71 % of the others | 286 duplicates that ciFAIR lists |
| cifar10, labels of the test images | 930 | 12 | 54 that people judged wrong |

The 71 % is our own count: 34 of the 48 pairs on the page that --others writes show the same photograph. The images of
CIFAR-10 were JPEG-recompressed copies of the originals.

The duplicates are the file meta/duplicates_cifar10.csv of https://github.com/cvjena/cifair, and the judgments of labels
the file mturk/cifar10_mturk.json of https://github.com/cleanlab/label-errors. Both count the test images in the
original order, which TFDS keeps in the ids of the images. Where the ids are numbers within a class instead, --labels
takes original_test_labels/cifar10_test_set_original_labels.npy of the second repository.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from jaxvision import load_classifier, report
from jaxvision.data import open_dataset
from jaxvision.data.dataset import Dataset
from jaxvision.data.source import Source
from jaxvision.disk import cache_folder
from jaxvision.features import Features, Finding, Findings, cached_extract, check, concatenate, open_images, write_check

MODEL = "tf_efficientnet_lite0.in1k"
PER_EDIT = 40  # copies
RATES, DRAWS = (0.0, 0.05, 0.1), 20  # shares of changed labels, and how often each is drawn
ODD_CLASSES = {  # of the sample, which the four classes of the task do not have
    "a soccer ball": "n04254680",
    "an airliner": "n02690373",
    "a keyboard": "n03085013",
    "a pizza": "n07873807",
    "a piano": "n03452741",
}
CIFAR_SIZE = 96  # pixels
JUDGMENTS = {"0": "exact duplicates", "1": "near-duplicates", "2": "very similar"}  # of ciFAIR
OTHERS = 48  # copies that ciFAIR does not list, as many as a page shows


def extract(sources: Mapping[str, Source], **options: Any) -> tuple[Features, dict[str, Dataset]]:
    """Returns the features of all splits, and their datasets."""
    classifier = load_classifier(MODEL, **options)
    images = {split: open_dataset(source) for split, source in sources.items()}
    with report.Console() as console:
        parts = [
            cached_extract(classifier, part, cache=cache_folder("features"), name=split, console=console)
            for split, part in images.items()
        ]
    return concatenate(parts), images


def unlabeled(features: Features) -> Features:
    """Returns features without labels, so that a check omits the cross-validation of the labels."""
    return replace(features, label=np.full(len(features), -1, np.int32), classes=())


def rows_of(features: Features, rows: slice) -> Features:
    """Returns the features of some images."""
    values, label, index = (array[rows] for array in (features.values, features.label, features.index))
    return Features(values, label, index, features.path[rows], features.split[rows], features.classes)


# Copies


def crop(image: Image.Image, share: float, rng: random.Random) -> Image.Image:
    """Returns a part of an image at a random position, with a share of its width and of its height."""
    w, h = (int(side * share) for side in image.size)
    x, y = rng.randrange(image.width - w + 1), rng.randrange(image.height - h + 1)
    return image.crop((x, y, x + w, y + h))


#: What is done to a copy: the edit, and the quality of its JPEG file.
EDITS: dict[str, tuple[Callable[[Image.Image, random.Random], Image.Image], int]] = {
    "half the size": (lambda image, _: image.resize((image.width // 2, image.height // 2)), 88),
    "recompressed at quality 30": (lambda image, _: image, 30),
    "mirrored": (lambda image, _: ImageOps.mirror(image), 88),
    "cropped to 90 %": (lambda image, rng: crop(image, 0.9, rng), 88),
    "cropped to 80 %": (lambda image, rng: crop(image, 0.8, rng), 88),
    "mirrored, cropped to 90 %": (lambda image, rng: ImageOps.mirror(crop(image, 0.9, rng)), 60),
    "gray": (lambda image, _: image.convert("L"), 88),
    "brightened": (lambda image, _: image.point(lambda level: min(255, int(level * 1.25 + 8))), 88),
    "resized to a square": (lambda image, _: image.resize((image.width, image.width)), 88),
    "cropped to 70 %": (lambda image, rng: crop(image, 0.7, rng), 88),
}


def plant_copies(sample: Path, folder: Path) -> None:
    """Writes edited copies of random photographs, named by the edit and by the folder of the original."""
    files, rng = sorted(sample.glob("*/*.jpg")), random.Random(0)
    rng.shuffle(files)
    for number, (edit, quality) in enumerate(EDITS.values()):
        for file in files[PER_EDIT * number : PER_EDIT * (number + 1)]:
            copy = edit(Image.open(file).convert("RGB"), rng)
            copy.save(folder / f"{number}-{file.parent.name}.jpg", quality=quality)


def measure_copies(arguments: argparse.Namespace) -> None:
    """Prints how many planted copies are found with their originals, by edit, and which other images are reported."""
    with tempfile.TemporaryDirectory() as folder:
        plant_copies(arguments.sample, Path(folder))
        sources = {"test": open_images(str(arguments.sample))["all"], "train": open_images(folder)["all"]}
        features, images = extract(sources)
        features = unlabeled(features)
        findings = check(features, images)
    edits, found, wrong = list(EDITS), Counter[str](), 0
    for finding in findings.of("leak"):
        number, _, original = Path(features.path[finding.row]).stem.partition("-")
        if Path(features.path[finding.partner or 0]).parent.name == original:
            found[edits[int(number)]] += 1
        else:
            wrong += 1
    for edit in edits:
        print(f"{edit:<28}{found[edit]:>4} of {PER_EDIT}")
    print(f"{'all':<28}{found.total():>4} of {PER_EDIT * len(edits)}")
    print(f"copies with another image: {wrong}; copies among the originals: {of_originals(findings)}")


def of_originals(findings: Findings) -> int:
    """Returns how many originals are reported as copies of another original."""
    return sum(findings.features.split[finding.row] == "test" for finding in findings.of("duplicate"))


# Labels


def measure_labels(arguments: argparse.Namespace) -> None:
    """Prints how many changed labels are listed, and which others."""
    features, images = extract(open_images(str(arguments.photos)))
    n, classes = len(features), len(features.classes)
    for rate in RATES:
        listed, hits, changed, others = 0, 0, 0, Counter[str]()
        for seed in range(DRAWS if rate else 1):
            rng = np.random.default_rng(seed)
            rows = rng.choice(n, round(rate * n), replace=False)
            label = features.label.copy()
            label[rows] = (label[rows] + rng.integers(1, classes, len(rows))) % classes
            found = [finding.row for finding in check(replace(features, label=label), images).of("label")]
            listed, changed, hits = listed + len(found), changed + len(rows), hits + np.isin(found, rows).sum()
            others.update(Path(features.path[row]).name for row in found if row not in rows)
        print(f"{changed} labels changed ({rate:.0%}): {listed} listed, {hits} of them changed; others:")
        for name, times in others.most_common(3):
            print(f"  {name}: {times}")


# Outliers


def draw_odd_images(folder: Path) -> None:
    """Writes images that are not photographs."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    document, chart = (Image.new("RGB", (400, 300), "white") for _ in range(2))
    for line in range(25):
        text = f"Invoice 2024 total amount due please pay within thirty days {line}"
        ImageDraw.Draw(document).text((10, 12 * line), text, fill="black")
    draw = ImageDraw.Draw(chart)
    draw.line([(20, 280), (100, 200), (200, 240), (380, 30)], fill="blue", width=3)
    draw.rectangle((15, 15, 390, 285), outline="black")
    drawn = {"noise": Image.fromarray(noise), "a document": document, "a chart": chart}
    for name in ("black", "white"):
        drawn[f"a {name} image"] = Image.new("RGB", (400, 300), name)
    for name, image in drawn.items():
        image.save(folder / f"{name}.png")


def measure_outliers(arguments: argparse.Namespace) -> None:
    """Prints the outliers among the photographs, and which odd images are listed if they are added one at a time."""
    with tempfile.TemporaryDirectory() as folder:
        draw_odd_images(Path(folder))
        for name, synset in ODD_CLASSES.items():
            (file,) = (arguments.sample / synset).iterdir()
            shutil.copy(file, Path(folder, f"{name}{file.suffix}"))
        photos, of_photos = extract(open_images(str(arguments.photos)))
        odd, of_odd = extract({"odd": open_images(folder)["all"]})
        photos, images = unlabeled(photos), of_photos | of_odd
        for finding in check(photos, images).of("outlier"):
            print(f"{Path(photos.path[finding.row]).name}: {finding.score:.3f}, {finding.note}")
        for row in range(len(odd)):
            one = unlabeled(rows_of(odd, slice(row, row + 1)))
            outliers = check(concatenate([photos, one]), images).of("outlier")
            listed = len(photos) in {finding.row for finding in outliers}
            print(f"{Path(odd.path[row]).stem:<16}{'listed' if listed else 'not listed'}")


# CIFAR-10


def original_positions(data_dir: Path, split: str, classes: Sequence[str], labels: Path | None) -> list[int]:
    """Returns the position of each test image in the original test data."""
    import tensorflow_datasets as tfds

    source = tfds.data_source("cifar10", split=split, data_dir=data_dir, decoders={"image": tfds.decode.SkipDecoding()})
    ids = [example["id"].decode().split("_")[1:] for example in source]
    if len(ids[0]) == 1:  # test_00042
        return [int(number) for (number,) in ids]
    if labels is None:
        raise SystemExit("--labels: got none, expected a file, because the ids are numbers within a class. See --help.")
    of_class = [np.flatnonzero(np.load(labels) == number) for number in range(len(classes))]
    return [int(of_class[classes.index(name)][int(number)]) for name, number in ids]  # test_frog_0037


def measure_cifar10(arguments: argparse.Namespace) -> None:
    """Prints how many duplicates of ciFAIR are found, and how many labels that people judged wrong are listed."""
    part = "" if arguments.percent == 100 else f"[:{arguments.percent}%]"
    splits = {split: f"{split}{part}" for split in ("train", "test")}
    sources = open_images("tfds", dataset="cifar10", data_dir=str(arguments.data_dir), **splits)
    position = original_positions(arguments.data_dir, splits["test"], sources["test"].classes, arguments.labels)
    features, images = extract(sources, image_size=CIFAR_SIZE)
    print_duplicates(check(unlabeled(features), images, log=print), images, position, arguments)
    if arguments.judged is not None:
        test = rows_of(features, slice(len(images["train"]), None))
        print_judged(check(test, images, log=print), position, arguments.judged)


def print_duplicates(
    findings: Findings, images: Mapping[str, Dataset], position: Sequence[int], arguments: argparse.Namespace
) -> None:
    """Prints how many of ciFAIR's duplicates are reported as leaks, and writes a page with some of the other leaks."""
    with arguments.duplicates.open(newline="") as file:
        rows = {int(row["TestID"]): row["Judgment"] for row in csv.DictReader(file)}
    known = {test: rows[test] for test in position if test in rows}
    reported: dict[int, Finding] = {}
    for leak in findings.of("leak"):  # the most certain first
        if leak.partner is not None:
            reported.setdefault(position[leak.partner - len(images["train"])], leak)
    print(f"{len(reported):,} of {len(position):,} test images are reported as copies of training images")
    total, hit = Counter(known.values()), Counter(known[test] for test in reported if test in known)
    for judgment, n in sorted(total.items()):
        print(f"{JUDGMENTS[judgment]}: {hit[judgment]} of {n}")
    print(f"all: {hit.total()} of {total.total()}")
    if arguments.others is not None:
        others = [leak for test, leak in reported.items() if test not in known]
        chosen = random.Random(0).sample(others, min(OTHERS, len(others)))
        page, _ = write_check(arguments.others, replace(findings, findings=tuple(chosen)), images, name="CIFAR-10")
        print(f"{len(chosen)} of the {len(others)} others are in {page}")


def print_judged(findings: Findings, position: Sequence[int], judgments: Path) -> None:
    """Prints how many labels are listed, and how many of them people judged wrong."""
    entries = json.loads(judgments.read_text())
    wrong = {entry["id"] for entry in entries if entry["mturk"]["given"] < 3} & set(position)  # of five people
    listed = {position[finding.row] for finding in findings.of("label")}
    print(*findings.notes, sep="\n")
    print(f"{len(listed):,} labels are listed, {len(listed & wrong)} of the {len(wrong)} that people judged wrong")


def main() -> None:
    """Runs one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)

    def add(name: str, measure: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        part = parts.add_parser(name, help=measure.__doc__)
        part.set_defaults(measure=measure)
        return part

    copies, labels = add("copies", measure_copies), add("labels", measure_labels)
    outliers, cifar10 = add("outliers", measure_outliers), add("cifar10", measure_cifar10)
    for part in (labels, outliers):
        part.add_argument("photos", type=Path, help="folder that transfer_task.py has written")
    for part in (copies, outliers):
        part.add_argument("sample", type=Path, help="folder with one folder for each WordNet identifier")
    cifar10.add_argument("data_dir", type=Path, help="folder of TFDS with CIFAR-10")
    cifar10.add_argument("duplicates", type=Path, help="ciFAIR's duplicates_cifar10.csv")
    cifar10.add_argument("--judged", type=Path, help="cifar10_mturk.json; without it labels are not checked")
    cifar10.add_argument("--labels", type=Path, help="labels in the original order, if the ids do not state it")
    cifar10.add_argument("--others", type=Path, help="folder for a page with copies that ciFAIR does not list")
    cifar10.add_argument(
        "--percent", type=int, default=100, help="share of each split to take, for a trial (default: 100)"
    )
    arguments = parser.parse_args()
    arguments.measure(arguments)


if __name__ == "__main__":
    main()
