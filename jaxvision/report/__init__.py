"""The output of a run: messages on the console, metrics on disk, and an HTML report."""

from jaxvision.report.console import Console, show_progress
from jaxvision.report.content import LabeledImage, Report
from jaxvision.report.machine import environment
from jaxvision.report.metrics import MetricsWriter, read_metrics
from jaxvision.report.page import write_report
from jaxvision.report.timing import Clock, Timing

__all__ = [
    "Clock",
    "Console",
    "LabeledImage",
    "MetricsWriter",
    "Report",
    "Timing",
    "environment",
    "read_metrics",
    "show_progress",
    "write_report",
]
