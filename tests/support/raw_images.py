"""Image files packed by hand, as a reference that shares no code with the decoder."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def tiff(pixels, *, bits=None, photometric=1, sample_format=None, order="<", samples=1, planes=None, tags=()):
    """Returns an uncompressed TIFF of one strip for each plane.

    Args:
      pixels: [h, w] or [h, w, samples], or the packed bytes of 16 x 16 pixels.
      bits: bits per sample. None: those of the array.
      photometric: 0: 0 is white, 1: 0 is black, 2: RGB, 3: palette, 5: CMYK, 6: YCbCr, 8: Lab.
      sample_format: 1 unsigned, 2 signed, 3 floating point. None: the tag is absent.
      order: ``"<"`` or ``">"``.
      samples: samples per pixel.
      planes: the planes, each [h, w], of a planar file, instead of `pixels`.
      tags: further tags: (number, values of 16 bits).
    """
    strips = planes if planes is not None else [pixels]
    packed = [s if isinstance(s, bytes) else s.astype(s.dtype.newbyteorder(order)).tobytes() for s in strips]
    h, w = (16, 16) if isinstance(strips[0], bytes) else strips[0].shape[:2]
    bits = bits or strips[0].dtype.itemsize * 8
    fields = {256: [w], 257: [h], 258: [bits] * samples, 259: [1], 262: [photometric], 277: [samples], 278: [h]}
    fields |= {284: [1 if planes is None else 2]}
    fields |= {339: [sample_format] * samples} if sample_format else {}
    fields |= dict(tags)
    longs = {273: [0] * len(packed), 279: [len(strip) for strip in packed]}
    start = 8 + 2 + 12 * (len(fields) + 2) + 4
    far = sum(size for size in [2 * len(v) for v in fields.values()] + [4 * len(v) for v in longs.values()] if size > 4)
    position = start + far
    for i, strip in enumerate(packed):
        longs[273][i] = position
        position += len(strip)
    entries, values = b"", b""
    for tag in sorted(fields | longs):
        kind, numbers = ("H", fields[tag]) if tag in fields else ("I", longs[tag])
        raw = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        entries += struct.pack(f"{order}HHI", tag, 3 if kind == "H" else 4, len(numbers))
        entries += raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(f"{order}I", start + len(values))
        values += raw if len(raw) > 4 else b""
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(fields) + 2)
    return head + entries + struct.pack(f"{order}I", 0) + values + b"".join(packed)


def png(pixels, color_type):
    """Returns a PNG of `pixels` [h, w] or [h, w, c], uint8 or uint16; color types: 0 gray, 2 RGB, 4 gray + alpha, 6."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    h, w = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", w, h, pixels.dtype.itemsize * 8, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg(color, *, adobe_transform=None, precision=8):
    """Returns a JPEG of 8 x 8 pixels whose components, not converted, have the values `color` in 0 to 255."""

    def segment(marker, data):
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data

    bits = ""
    for value in np.asarray(color) - 128:  # a quantizer of 8 makes the DC coefficient the value itself
        category = int(abs(value)).bit_length()
        magnitude = value if value > 0 else value + 2**category - 1
        bits += f"{category:04b}" + (f"{magnitude:0{category}b}" if category else "") + "0"  # then the end of block
    bits += "1" * (-len(bits) % 8)
    scan = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    n = len(color)
    frame = struct.pack(">BHHB", precision, 8, 8, n) + b"".join(bytes([i + 1, 0x11, 0]) for i in range(n))
    adobe = segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, adobe_transform or 0))
    return b"".join(
        (
            b"\xff\xd8",
            adobe if adobe_transform is not None else b"",
            segment(0xDB, b"\0" + bytes([8] * 64)),
            segment(0xC0 if precision == 8 else 0xC1, frame),
            segment(0xC4, b"\0" + bytes([0, 0, 0, 9] + [0] * 12) + bytes(range(9))),
            segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0"),
            segment(0xDA, bytes([n]) + b"".join(bytes([i + 1, 0]) for i in range(n)) + bytes([0, 63, 0])),
            scan,
            b"\xff\xd9",
        )
    )
