"""HTML elements that escape their text, and images embedded as data addresses."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

_VOID = {"br", "img", "input", "link", "meta"}


class Markup(str):
    """A string of HTML. `tag` inserts it unchanged and escapes every other string."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Returns the element `name`.

    Args:
      *children: `Markup` is inserted unchanged, lists are flattened, None is omitted; anything else is converted to
        text and escaped.
      **attributes: a trailing underscore is dropped (``class_``), other underscores become dashes. None and False
        omit the attribute, True writes it without a value.

    Example:
      >>> tag("td", "<b> & co", tag("br"), class_="name", data_count=3, hidden=True)
      '<td class="name" data-count="3" hidden>&lt;b&gt; &amp; co<br></td>'
    """
    written = "".join(_attribute(key, x) for key, x in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Markup:
    """Returns the children of an element, converted as `tag` does and concatenated."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, list | tuple):
            parts.append(join(child))
        elif child is not None:
            parts.append(html.escape(str(child), quote=False))
    return Markup("".join(parts))


def _attribute(key: str, x: Any) -> str:
    key = key.rstrip("_").replace("_", "-")
    if x is None or x is False:
        return ""
    return f" {key}" if x is True else f' {key}="{html.escape(str(x))}"'


def script_data(data: Any, **attributes: Any) -> Markup:
    """Returns a script element with JSON, for the page's script or for programs that read the file."""
    # HTML entities do not work inside a script, and "</script>" in a class name would end it.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return tag("script", Markup(text), type="application/json", **attributes)


def meter(fraction: float, kind: str) -> Markup:
    """Returns a small bar filled to `fraction`, 0 to 1; `kind` is ``"right"`` or ``"wrong"``."""
    return tag("span", tag("span", style=f"width:{100 * fraction:.1f}%", class_=kind), class_="meter")


def image_uri(image: np.ndarray, *, side: int) -> str:
    """Returns an image as a ``data:`` address.

    Args:
      image: uint8 [h, w], [h, w, 1] or [h, w, 3].
      side: length in pixels to which the longer side is reduced. Smaller images keep their size.

    Raises:
      ValueError: `image` has another type or shape.
    """
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3):
        raise ValueError(f"image: got {image.dtype} {image.shape}, expected uint8 [h, w], [h, w, 1] or [h, w, 3]")
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((side, side), Image.Resampling.LANCZOS)
    # JPEG blurs small images, and for those PNG is small as well.
    if max(thumbnail.size) <= 64:
        return _uri(thumbnail, "PNG", optimize=True)
    return _uri(thumbnail, "JPEG", quality=86, optimize=True)


def palette_uri(indices: np.ndarray, rgba: np.ndarray) -> str:
    """Returns an image of palette colors as a ``data:`` address.

    Args:
      indices: color of each pixel, uint8 [h, w].
      rgba: the colors, uint8 [256, 4]; alpha 0 is transparent.
    """
    image = Image.fromarray(indices)
    image.putpalette(rgba[:, :3].tobytes(), "RGB")
    return _uri(image, "PNG", optimize=True, transparency=rgba[:, 3].tobytes())


def _uri(image: Image.Image, file_format: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
