"""What a run says: live on the console, as numbers on disk, and as a page to look at when it is over."""

from jaxvision.report.console import Console
from jaxvision.report.machine import environment
from jaxvision.report.metrics import MetricsWriter, read_metrics
from jaxvision.report.page import Picture, Report, write_report
from jaxvision.report.timing import Clock, Timing

__all__ = [
    "Clock",
    "Console",
    "MetricsWriter",
    "Picture",
    "Report",
    "Timing",
    "environment",
    "read_metrics",
    "write_report",
]
