"""The images of a folder or a source by split, without holding any out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jaxvision.data.folder import open_all_images
from jaxvision.data.source import SOURCES, Source, open_source
from jaxvision.errors import UserError, unknown_name_error


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
    folder = Path(data).expanduser()
    if os.path.isdir(folder):
        if unknown := sorted({*options} - {"layout"}):
            raise unknown_name_error("--option", unknown[0], ["layout"], expected="an option of a folder")
        return {**open_all_images(folder, **options)}
    if data not in SOURCES and ":" not in data:
        raise UserError(
            f"data: got {data!r}, expected a folder that exists or one of the sources {', '.join(SOURCES)}. "
            "Check the path."
        )
    splits = open_source(data, **options)._asdict()
    return {split: source for split, source in splits.items() if source is not None}
