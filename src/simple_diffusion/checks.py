"""Checks of arguments. An argument that is not allowed raises one sentence that names it and what is allowed."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor


def shown(value: object) -> str:
    """A value in an error message: a tensor by its type and shape, an object without a short text by its type."""
    if isinstance(value, Tensor) and value.ndim:
        return f"a tensor of {value.dtype} {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    if text.startswith("<") or len(text) > 60 or "\n" in text:
        return (
            f"the {type(value).__name__} {value.__name__}"
            if hasattr(value, "__name__")
            else f"a {type(value).__name__}"
        )
    return text


def check_type(name: str, value: object, kind: type, wanted: str) -> None:
    """Raise TypeError unless the value is of a type; `wanted` describes it."""
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be {wanted}, got {shown(value)}")


def check_callable(name: str, value: object, wanted: str) -> None:
    """Raise TypeError unless the value can be called; `wanted` describes the function."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"`{name}` must be {wanted}, got {shown(value)}")


def check_integer(name: str, value: Any, low: int) -> None:
    """Raise ValueError unless the value is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise ValueError(f"`{name}` must be an integer of at least {low}, got {shown(value)}")


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, ends: str = "()") -> None:
    """Raise ValueError unless the value is a number between `low` and `high`.

    ends   "[" and "]" for an end that is allowed itself, "(" and ")" for one that is not
    """
    is_number = (
        value.ndim == 0 if isinstance(value, Tensor) else isinstance(value, Real) and not isinstance(value, bool)
    )
    if is_number:
        number = float(value)
        if low < number < high or (number == low and ends[0] == "[") or (number == high and ends[1] == "]"):
            return
    allowed = f" in {ends[0]}{low:g}, {high:g}{ends[1]}" if (low, high) != (-math.inf, math.inf) else " that is finite"
    raise ValueError(f"`{name}` must be a number{allowed}, got {shown(value)}")


def check_floats(name: str, value: object, wanted: str = "a tensor of floats") -> None:
    """Raise TypeError unless the value is a tensor of floats; integers would be rounded or overflow later."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"`{name}` must be {wanted}, got {shown(value)}")


def broadcasts_to(shape: Sequence[int], larger: Sequence[int]) -> bool:
    """Whether a tensor of this shape broadcasts to a larger shape without changing it."""
    pairs = zip(reversed(shape), reversed(larger), strict=False)
    return len(shape) <= len(larger) and all(length in (1, wanted) for length, wanted in pairs)
