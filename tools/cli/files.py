"""The CSV files of a clerk, read so that nothing of them is lost without a word."""

import csv
from collections.abc import Iterator
from pathlib import Path

import typer


def rows_of(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells, without blanks around them, of each line that has any.

    Raises typer.BadParameter where the file is no CSV in UTF-8.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            lines = csv.reader(text)
            for row in lines:
                if row:
                    yield lines.line_num, [cell.strip() for cell in row]
    except (OSError, UnicodeDecodeError, csv.Error) as unreadable:
        message = f"{file} cannot be read: {unreadable}; save it as CSV, in UTF-8"
        raise typer.BadParameter(message) from None
