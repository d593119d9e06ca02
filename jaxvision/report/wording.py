"""Display names and formats of numbers, shared by the console and the report."""

from __future__ import annotations

import math

_LABELS = {
    "top1": "top-1",
    "top5": "top-5",
    "calibration_error": "ECE",
    "cross_validated_accuracy": "cross-validated accuracy",
    "count": "images",
    "learning_rate": "learning rate",
    "images_per_second": "images/s",
    "mfu": "MFU",
    "data_wait": "data wait",
    "step_seconds": "step time",
    "grad_norm": "gradient norm",
}
_FRACTIONS = ("top1", "top5", "calibration_error", "accuracy", "standard_error", "data_wait", "mfu")


def label(name: str) -> str:
    """Returns the display name of a metric.

    >>> label("top1"), label("ema_top1"), label("weight_norm")
    ('top-1', 'ema top-1', 'weight norm')
    """
    for known, text in _LABELS.items():
        if name == known or name.endswith("_" + known):
            return name.removesuffix(known).replace("_", " ") + text
    return name.replace("_", " ")


def is_fraction(name: str) -> bool:
    """Returns whether the metric is a fraction between 0 and 1, displayed in percent."""
    return any(name == fraction or name.endswith("_" + fraction) for fraction in _FRACTIONS)


def value(name: str, x: float | None) -> str:
    """Returns the value of a metric as text. Accuracies have two decimals of a percent, the precision of papers.

    >>> value("top1", 0.93421), value("loss", 0.21), value("learning_rate", 3e-4), value("images_per_second", 1234.5)
    ('93.42 %', '0.2100', '0.0003', '1,234')
    """
    if x is None:
        return "—"
    x = float(x)
    if not math.isfinite(x):
        return str(x)
    if name.endswith(("data_wait", "mfu")):
        return f"{100 * x:.0f} %"
    if is_fraction(name):
        return f"{100 * x:.2f} %"
    if name.endswith("loss"):
        return f"{x:.4f}"
    if name.endswith("images_per_second"):
        return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
    if name.endswith("seconds"):
        return duration(x)
    return f"{x:,.0f}" if x == int(x) and abs(x) < 1e15 else f"{x:.4g}"


def epochs(x: float) -> str:
    """Returns a number of completed epochs as text, rounded down to a decimal; below 0.1 to two digits.

    The last batch of an epoch usually contains the first images of the next one.

    >>> epochs(0.5436), epochs(2.002), epochs(30.06), epochs(1.255), epochs(0.00312), epochs(1200.0)
    ('0.5', '2', '30', '1.2', '0.0031', '1,200')
    """
    if x < 0.1:
        return f"{x:.2g}"
    return f"{math.floor(10 * x + 1e-6) / 10:,.1f}".removesuffix(".0")


def amount(done: int, total: int | None, unit: str) -> str:
    """Returns how much of a total is done as text.

    >>> amount(1_500_000, 170_052_171, "bytes"), amount(30_000, 60_000, "images"), amount(40, None, "images")
    ('2 MB of 170 MB', '30,000 of 60,000 images', '40 images')
    """
    if unit == "bytes":
        return " of ".join(f"{x / 1e6:,.{0 if x >= 1e6 else 1}f} MB" for x in (done, total) if x is not None)
    return f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"


def rate(per_second: float, unit: str) -> str:
    """Returns a rate as text.

    >>> rate(12_345_678, "bytes"), rate(4321.5, "images")
    ('12.3 MB/s', '4,322 images/s')
    """
    return f"{per_second / 1e6:,.1f} MB/s" if unit == "bytes" else f"{per_second:,.0f} {unit}/s"


def duration(seconds: float) -> str:
    """Returns a duration as text.

    >>> [duration(s) for s in (0.0123, 8.36, 62, 7384, 200_000)]
    ['12 ms', '8.4 s', '1:02', '2:03:04', '2 d 7:33']
    """
    if not math.isfinite(seconds):
        return "—"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 86_400:
        return clock(seconds)
    days, rest = divmod(round(seconds), 86_400)
    return f"{days} d {rest // 3600}:{rest % 3600 // 60:02d}"


def clock(seconds: float) -> str:
    """Returns a duration as hours, minutes and seconds; the width stays constant while it counts.

    >>> clock(8), clock(754), clock(7384)
    ('0:08', '12:34', '2:03:04')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def parameters(total: int, trainable: int | None = None) -> str:
    """Returns the number of parameters and of trainable ones as text.

    >>> parameters(1000), parameters(1000, 10)
    ('1,000, all trainable', '1,000, of which 10 trainable')
    """
    if trainable is None or trainable == total:
        return f"{total:,}, all trainable"
    return f"{total:,}, of which {trainable:,} trainable"
