"""The text of a recommendation: its reasons, notes and commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jaxvision.advice.choices import Choice, Training, Trial
from jaxvision.advice.images import Images
from jaxvision.advice.rule import Case
from jaxvision.advice.target import Target
from jaxvision.errors import count

#: The config of the recommended command.
CONFIG = "configs/folder.py"

# A class with fewer training images than this is named, and an imbalance of this or more.
_FEW_IMAGES, _IMBALANCE = 10, 10


def reasons(rows: Sequence[Choice], case: Case, training: Training, *, left_out: Mapping[str, str]) -> Iterator[str]:
    """Yields the sentences that say why the first row is recommended.

    Args:
      rows: the short list.
      case: the case of the decision tree.
      training: how the rows are trained.
      left_out: the picks of the case that are not in the list -> why.
    """
    best = rows[0]
    why = _why(best, case, left_out) if best.trial is None else _trial_text(rows, best.trial)
    yield f"Take {best.name}. Your case is: {case.name}. {why}"
    yield (
        f"Its weights classify {best.top1:.1f} % of ImageNet correctly at {best.image_size} px. It has "
        f"{best.params / 1e6:.1f} M parameters and takes {best.macs / 1e9:.2f} G multiply-adds per image."
    )
    if best.training_seconds is not None:
        yield (
            f"Fine-tuning on {count(training.images or 0, 'image')} for {training.epochs:g} epochs takes at least "
            f"{time_text(best.training_seconds)} on {training.chip.name}. A probe passes each image through the model "
            f"once, in about 1/{3 * training.epochs:.0f} of that time."
        )
    better = max(rows, key=lambda row: row.top1)
    if best.trial is None and better.top1 > best.top1:
        yield (
            f"{better.name} is {better.top1 - best.top1:.1f} points more accurate on ImageNet, with "
            f"{better.macs / best.macs:.1f} times the multiply-adds."
        )


def _trial_text(rows: Sequence[Choice], best: Trial) -> str:
    text = f"On {best.images:,} of your images a cross-validated probe of it is {best.accuracy:.1f} % accurate"
    second = next((row for row in rows[1:] if row.trial is not None), None)
    if second is None or second.trial is None:
        return f"{text}. No other model was tried."
    difference = best.accuracy - second.trial.accuracy
    text = f"{text}, {difference:.1f} points more than {second.name}"
    if difference < best.standard_error:
        return f"{text}. This is less than the standard error: prefer the model that is cheaper to run."
    return f"{text}."


def _why(best: Choice, case: Case, left_out: Mapping[str, str]) -> str:
    named = " and ".join(f"{pick} ({why})" for pick, why in left_out.items())
    excluded = f" Left out: {named}." if named else ""
    if best.architecture in case.picks:
        return f"{case.reason[0].upper()}{case.reason[1:]}.{excluded}"
    return f"It is the most accurate model on ImageNet with at most {case.macs / 1e9:g} G multiply-adds.{excluded}"


def notes(rows: Sequence[Choice], target: Target, images: Images | None) -> Iterator[str]:
    """Yields what else to know about the images, the list and the device, as sentences."""
    best = rows[0]
    if images is not None:
        yield from _image_notes(images, best)
    if best.accumulate is not None and best.accumulate > 1:
        yield f"A whole step does not fit into the memory: the command splits it into {best.accumulate} microbatches."
    for row in rows:
        if row.license_note is not None:
            yield f"{row.license_note[0].upper()}{row.license_note[1:]}."
    if not best.is_offline:
        yield f"The weights of {best.name} (about {4 * best.params / 1e6:,.0f} MB) are downloaded on first use."
    if images is not None and best.trial is None:
        yield "The order on your images may be another: --try 3 probes the first three on a sample of them."
    if target.is_mobile:
        yield (
            f"No data sheet says how fast a {target.name} runs a network, so the list is limited by multiply-adds. "
            "Measure the exported model there."
        )
    if any(row.latency is not None for row in rows) and (target.is_mobile or not target.is_here):
        yield f"The latency was measured on this machine, not on {target.name}."


def _image_notes(images: Images, best: Choice) -> Iterator[str]:
    name, number = images.smallest
    if number < _FEW_IMAGES:
        yield f"The class {name} has only {count(number, 'training image')}. Add some."
    if images.imbalance >= _IMBALANCE:
        yield (
            f"The class {images.largest[0]} has {images.imbalance:.0f} times the images of {name}. The overall "
            "accuracy hides rare classes: read the accuracy of each class in the report."
        )
    if images.side is not None and images.side < best.image_size / 2:
        yield f"The images have {images.side} px and are enlarged to {best.image_size} px."


def commands(best: Choice, data: str | Path | None) -> Iterator[str]:
    """Yields the commands to run next: a probe of the features, and fine-tuning."""
    folder, workdir = shlex.quote(str(data or "photos")), f"runs/{best.architecture}"
    yield f"jaxvision probe --data {folder} -m {best.name} --workdir {workdir}-probe"
    train = f"python -m jaxvision.main --config {CONFIG}:{best.name} --workdir {workdir}"
    flags = [f"--config.source.data_dir={folder}"]
    if best.accumulate is not None and best.accumulate > 1:
        flags.append(f"--config.train.accumulate={best.accumulate}")
    yield " ".join([train, *flags])


def time_text(seconds: float) -> str:
    """Returns a rough duration.

    >>> [time_text(s) for s in (0.2, 50, 3000, 20_000, 500_000)]
    ['1 s', '50 s', '50 min', '5.6 h', '5.8 days']
    """
    for unit, size, limit in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{max(seconds / size, 1):.{int(size == 3600)}f} {unit}"
    return f"{seconds / 86_400:.1f} days"
