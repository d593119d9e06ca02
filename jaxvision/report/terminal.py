"""A stream of lines, on a terminal or in a log: styles, tables and characters that the stream can encode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

import rich.console
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from jaxvision.errors import printable_line

# ASCII replacements of the other characters that this package prints, for streams without Unicode (LANG=C).
_ASCII = str.maketrans({"×": "x", "—": "-", "★": "*"})  # noqa: RUF001


class Terminal(rich.console.Console):
    """A rich console that prints lines and tables and leaves the cursor visible.

    Args:
      stream: where to print.
      styled: whether to print colors and styles.
    """

    def __init__(self, stream: TextIO, *, styled: bool) -> None:
        super().__init__(
            file=stream,
            color_system="auto" if styled else None,
            highlight=False,
            markup=False,
            emoji=False,
            force_jupyter=False,
        )
        self._has_unicode = (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")

    def show_cursor(self, show: bool = True) -> bool:
        """Does nothing: a killed process could not show a hidden cursor again."""
        return False

    def print_line(self, text: Text) -> None:
        """Prints one line."""
        if (plain := printable_line(text.plain)) != text.plain:
            text = Text(plain, style=text.style)
        if not self._has_unicode:
            plain = text.plain.translate(_ASCII).encode("ascii", "replace").decode()
            text = Text(plain, style=text.style)
        self.print(text, soft_wrap=True)  # does not break long paths, so that they can be copied

    def print_rows(self, rows: Sequence[tuple[str, str]]) -> None:
        """Prints names and values in two columns."""
        width = max(cell_len(name) for name, _ in rows)
        for name, text in rows:
            self.print_line(Text.assemble((f"  {set_cell_size(name, width)}  ", "dim"), text))

    def print_table(self, header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
        """Prints a table: the first column left aligned, the others right aligned."""
        widths = [max(cell_len(row[i]) for row in [header, *body]) for i in range(len(header))]
        for i, row in enumerate([header, *body]):
            style = "dim" if i == 0 else "bold"
            line = Text.assemble(("  " + set_cell_size(row[0], widths[0]), "dim"))
            for cell, width in zip(row[1:], widths[1:], strict=True):
                line.append("   " + " " * (width - cell_len(cell)) + cell, style=style)
            self.print_line(line)


def is_terminal(stream: TextIO) -> bool:
    """Returns whether `stream` is a terminal.

    Unlike rich's ``is_terminal`` it ignores FORCE_COLOR, which CI services set although they write a log.
    """
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # not a file, or closed
        return False
