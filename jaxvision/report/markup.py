"""HTML that escapes by default, and pictures inside of it."""

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
    """Text that is HTML already: `tag` takes it as it is and escapes every other string."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Returns the element `name`.

    Args:
      *children: `Markup` is taken as it is, lists of children are opened, None is left out; anything else is text,
        and escaped.
      **attributes: a trailing underscore is dropped (``class_``), other underscores become dashes. None and False
        leave an attribute out, True leaves it without a value.

    Example:
      >>> tag("td", "<b> & co", tag("br"), class_="name", data_count=3, hidden=True)
      '<td class="name" data-count="3" hidden>&lt;b&gt; &amp; co<br></td>'
    """
    written = "".join(_attribute(key, x) for key, x in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Markup:
    """Returns the children of an element, one after the other, as `tag` takes them."""
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
    """Returns a script element that holds JSON, for scripts of the page or programs that read the file."""
    # Inside a script nothing is unescaped, and "</script>" in a class name would end it.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return tag("script", Markup(text), type="application/json", **attributes)


def picture_uri(image: np.ndarray, *, side: int) -> str:
    """Returns a picture as a ``data:`` address.

    Args:
      image: uint8 [h, w], [h, w, 1] or [h, w, 3].
      side: the longer side is shrunk to so many pixels; a smaller picture is kept as it is.

    Raises:
      ValueError: another type or shape.
    """
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3):
        raise ValueError(f"a picture is uint8 [h, w], [h, w, 1] or [h, w, 3], got {image.dtype} {image.shape}")
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    # JPEG smears the few pixels of a small picture, and PNG costs little there.
    if max(picture.size) <= 64:
        return _uri(picture, "PNG", optimize=True)
    return _uri(picture, "JPEG", quality=86, optimize=True)


def palette_uri(indices: np.ndarray, rgba: np.ndarray) -> str:
    """Returns a picture of palette colors as a ``data:`` address.

    Args:
      indices: uint8 [h, w], which color is where.
      rgba: uint8 [256, 4], the colors; alpha 0 is transparent.
    """
    picture = Image.fromarray(indices)
    picture.putpalette(rgba[:, :3].tobytes(), "RGB")  # makes it a picture of mode P
    return _uri(picture, "PNG", optimize=True, transparency=rgba[:, 3].tobytes())


def _uri(picture: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
