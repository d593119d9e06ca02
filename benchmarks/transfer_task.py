"""Builds the folder of the 4-class task: 248 photographs of dogs, birds, insects and reptiles.

The photographs are those of `../shared/data/imagenet_sample/test`, one for each ImageNet class. The classes of the
task are ranges of WordNet identifiers.

    python benchmarks/transfer_task.py ../shared/data/imagenet_sample/test photos
    jaxvision probe --data photos -m tf_efficientnet_lite0.in1k --workdir runs/photos
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

# Class -> ranges of WordNet identifiers, both ends included.
RANGES = {
    "bird": [(1514668, 1622779), (1795545, 1860187), (2002556, 2058221)],
    "dog": [(2085620, 2113978)],
    "insect": [(2165105, 2281787)],
    "reptile": [(1629819, 1756291)],
}


def class_of(synset: str) -> str | None:
    """Returns the class of a WordNet identifier, or None.

    >>> class_of("n02085620"), class_of("n02123045")
    ('dog', None)
    """
    number = int(synset.removeprefix("n"))
    return next((name for name, ranges in RANGES.items() if any(a <= number <= b for a, b in ranges)), None)


def build(source: Path, target: Path) -> int:
    """Copies the photographs into one folder for each class, and returns their number."""
    copied = 0
    for folder in sorted(source.glob("n*")):
        if name := class_of(folder.name):
            (target / name).mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir()):
                shutil.copy(file, target / name / f"{folder.name}-{file.name}")
                copied += 1
    return copied


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with one folder for each WordNet identifier")
    parser.add_argument("target", type=Path, help="folder that is written")
    arguments = parser.parse_args()
    print(build(arguments.source, arguments.target), "photographs")
