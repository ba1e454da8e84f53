"""An extension of griffe for the reference: tables of parameters in docstrings become lists."""

import re
from typing import Any

import griffe

NAMES = re.compile(r"\w+(, \w+)*")


def column_of(lines: list[str]) -> int:
    """The column in which the meanings of a table begin, 0 if the lines are not a table.

    Each line has one or several names and their meaning in a second column, or continues the second column.
    """
    starts = [match.end() for line in lines if (match := re.match(r"[\w, ]*\w {2,}(?=\S)", line))]
    column = min(starts, default=0)
    rows = [(line[:column], line[column:]) for line in lines]
    is_table = all(
        (not name.strip() or (name.endswith(" ") and NAMES.fullmatch(name.strip()))) and meaning
        for name, meaning in rows
    )
    return column if column and lines[0][0] != " " and is_table else 0


def tables_to_lists(docstring: str) -> str:
    """The docstring with its tables as Markdown lists."""
    paragraphs = docstring.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        lines = paragraph.split("\n")
        if column := column_of(lines):
            rows = [(line[:column].strip(), line[column:]) for line in lines]
            paragraphs[i] = "\n".join(f"- `{name}`: {text}" if name else f"  {text}" for name, text in rows)
    return "\n\n".join(paragraphs)


class Tables(griffe.Extension):
    """Convert the docstring of every object."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = tables_to_lists(obj.docstring.value)
