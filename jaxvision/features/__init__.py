"""The features of a model: extraction, files and cache, linear probe, nearest neighbors, and the check of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxvision.lazy import lazy_names

if TYPE_CHECKING:
    from jaxvision.features.dataset_check.findings import Finding, Findings, check
    from jaxvision.features.dataset_check.page import write_check
    from jaxvision.features.extraction import Features, concatenate, extract
    from jaxvision.features.images import open_images
    from jaxvision.features.neighbors import knn_accuracy
    from jaxvision.features.probe import Probe, fit_probe, with_head
    from jaxvision.features.store import cached_extract, load_features, save_features

__all__ = [
    "Features",
    "Finding",
    "Findings",
    "Probe",
    "cached_extract",
    "check",
    "concatenate",
    "extract",
    "fit_probe",
    "knn_accuracy",
    "load_features",
    "open_images",
    "save_features",
    "with_head",
    "write_check",
]

_HOME = {
    "dataset_check.findings": ("Finding", "Findings", "check"),
    "dataset_check.page": ("write_check",),
    "extraction": ("Features", "concatenate", "extract"),
    "images": ("open_images",),
    "neighbors": ("knn_accuracy",),
    "probe": ("Probe", "fit_probe", "with_head"),
    "store": ("cached_extract", "load_features", "save_features"),
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
