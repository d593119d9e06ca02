"""Datasets: where images come from, and how they become batches.

Names are imported on first use, so that worker processes, which import this package, do not import JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxvision.lazy import lazy_names

if TYPE_CHECKING:
    from jaxvision.data.arrays import ArraySource
    from jaxvision.data.dataset import Dataset, StoredDataset, StreamedDataset, open_dataset
    from jaxvision.data.pipeline import FromMemory, FromWorkers, InputPipeline, batch_shapes
    from jaxvision.data.source import Example, Source, Splits, open_source, source_function, stratified_split

__all__ = [
    "ArraySource",
    "Dataset",
    "Example",
    "FromMemory",
    "FromWorkers",
    "InputPipeline",
    "Source",
    "Splits",
    "StoredDataset",
    "StreamedDataset",
    "batch_shapes",
    "open_dataset",
    "open_source",
    "source_function",
    "stratified_split",
]

_HOME = {
    "arrays": ("ArraySource",),
    "dataset": ("Dataset", "StoredDataset", "StreamedDataset", "open_dataset"),
    "pipeline": ("FromMemory", "FromWorkers", "InputPipeline", "batch_shapes"),
    "source": ("Example", "Source", "Splits", "open_source", "source_function", "stratified_split"),
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
