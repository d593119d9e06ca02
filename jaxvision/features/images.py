"""The images of a folder or a source by split, without holding any out."""

from __future__ import annotations

from typing import Any

from jaxvision.data.folder import find_folder, open_all_images
from jaxvision.data.source import Source, open_source


def open_images(data: str, **options: Any) -> dict[str, Source]:
    """Returns all images of a folder or a source, by split.

    Args:
      data: a folder of images, of folders for each class, or of splits; or the name of a source, such as ``"digits"``.
      **options: of the source; of a folder only ``layout``.

    Raises:
      UserError: no such folder, source or option, or no images.

    Example:
      >>> {split: len(images) for split, images in open_images("digits").items()}
      {'train': 1438, 'test': 359}
    """
    folder = find_folder(data, options)
    if folder is not None:
        return {**open_all_images(folder, **options)}
    splits = open_source(data, **options)._asdict()
    return {split: source for split, source in splits.items() if source is not None}
