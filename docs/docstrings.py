"""How the reference shows our docstrings: their tables of parameters become lists. An extension of griffe's."""

import re
from typing import Any

import griffe

NAMES = re.compile(r"\w+(, \w+)*")


def column_of(lines: list[str]) -> int:
    """Where the meanings of a table begin, 0 if the lines are none.

    Each line is a name, or several, with its meaning in a column of its own, or goes on in that column.
    """
    starts = [match.end() for line in lines if (match := re.match(r"[\w, ]*\w {2,}(?=\S)", line))]
    column = min(starts, default=0)
    rows = [(line[:column], line[column:]) for line in lines]
    is_table = all(
        (not name.strip() or (name.endswith(" ") and NAMES.fullmatch(name.strip()))) and meaning
        for name, meaning in rows
    )
    return column if column and lines[0][0] != " " and is_table else 0


def listed(docstring: str) -> str:
    """The docstring with each of its tables as a list, in Markdown."""
    paragraphs = docstring.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        lines = paragraph.split("\n")
        if column := column_of(lines):
            rows = [(line[:column].strip(), line[column:]) for line in lines]
            paragraphs[i] = "\n".join(f"- `{name}`: {text}" if name else f"  {text}" for name, text in rows)
    return "\n\n".join(paragraphs)


class Tables(griffe.Extension):
    """Applied to every object that has a docstring."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = listed(obj.docstring.value)
