"""Judge a learner's solution of an exercise in words.

A solution is the learner's own Python file, and the purpose of `simple-diffusion check` is to run it. It runs in a
child process with a time limit, in `main` below. The function is called on the cases of the exercise. If its results
are wrong, they are compared with those of typical mistakes.
"""

import numbers
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from copy import deepcopy
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..errors import SimpleDiffusionError, UsageError
from .exercises import Exercise, exercise

SECONDS = 10
"""Time limit of a solution."""


def agree(result: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Whether two results have the same shapes and, within the tolerance, the same numbers. NaN equals NaN."""
    try:
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance, equal_nan=True, check_dtype=False)
    except (AssertionError, TypeError):
        return False
    return True


def fault_of(task: Exercise, function: Callable[..., Any], file: Path) -> str | None:
    """What is wrong with a function, as a sentence without its subject; None if it is right.

    file   the file of the function, for the line numbers of errors
    """
    wrong: dict[str, tuple[Any, Any]] = {}  # case -> result and expected result
    dtype_fault, random = None, False
    for case, args in task.cases.items():
        given, expected = deepcopy(args), task.solution(*args)
        try:
            state = torch.get_rng_state()
            result = function(*given)
            random = random or not torch.equal(state, torch.get_rng_state())
        except (Exception, SystemExit) as error:
            return f"fails {case}: {describe_error(error, file)}"
        changed = [name for name, new, old in zip(task.arguments, given, args, strict=True) if not agree(new, old)]
        if changed:
            return f"changes {' and '.join(changed)} in place: return a new value instead"
        if kind_fault := wrong_kind(result, expected):
            return kind_fault
        if isinstance(expected, numbers.Real):
            result = float(result)
        if not agree(result, expected, task.tolerance):
            wrong[case] = result, expected
        dtype_fault = dtype_fault or wrong_dtype(result, expected, args)
    if not wrong:
        return dtype_fault
    if random:
        return "is wrong: it generates random numbers, but the arguments are all that it needs"
    return named_mistake(task, wrong) or dtype_fault or first_difference(task, wrong)


def named_mistake(task: Exercise, wrong: dict[str, tuple[Any, Any]]) -> str | None:
    """The typical mistake that gives these wrong results, if there is one."""
    for description, mistake in task.mistakes.items():
        if all(agree(result, mistake(*task.cases[case]), task.tolerance) for case, (result, _) in wrong.items()):
            return f"is wrong: {description}"
    return None


def first_difference(task: Exercise, wrong: dict[str, tuple[Any, Any]]) -> str:
    """The first wrong case, and how its result differs from the expected one."""
    case, (result, expected) = next(iter(wrong.items()))
    others = ", but right in other cases" if len(wrong) < len(task.cases) else ""
    return f"is wrong {case}{others}: {difference(result, expected)}"


def parts(result: Any) -> tuple:
    """The returned value or values as a tuple."""
    return result if isinstance(result, tuple) else (result,)


def wrong_kind(result: Any, expected: Any) -> str | None:
    """A sentence if the result is not a tensor, number or tuple, as the expected result is; None otherwise."""
    if isinstance(expected, tuple):
        if isinstance(result, tuple) and len(result) == len(expected):
            return next(filter(None, map(wrong_kind, result, expected)), None)
        kind = f"a tuple of {len(expected)} tensors"
    elif isinstance(result, Tensor) and result.is_complex():
        return "returns complex numbers: return their real part"
    elif isinstance(expected, Tensor):
        if isinstance(result, Tensor):
            return None
        kind = "a tensor"
    else:
        if isinstance(result, numbers.Real) or (isinstance(result, Tensor) and result.ndim == 0):
            return None
        kind = "a number"
    returned = "nothing" if result is None else f"a value of type {type(result).__name__}"
    return f"returns {returned} instead of {kind}"


def wrong_dtype(result: Any, expected: Any, args: tuple) -> str | None:
    """A sentence if a tensor has the wrong dtype. Without tensors among the arguments any float dtype is right."""
    any_float = not any(isinstance(arg, Tensor) for arg in args)
    for got, want in zip(parts(result), parts(expected), strict=True):
        if isinstance(want, Tensor) and got.dtype != want.dtype and not (any_float and got.is_floating_point()):
            return f"returns {got.dtype} instead of {want.dtype}"
    return None


def difference(result: Any, expected: Any) -> str:
    """How a wrong result differs from the expected one."""
    for got, want in zip(parts(result), parts(expected), strict=True):
        if isinstance(want, Tensor) and got.shape != want.shape:
            return f"the result has shape {list(got.shape)} instead of {list(want.shape)}"
    got, want = (torch.cat([torch.as_tensor(x).double().flatten() for x in parts(y)]) for y in (result, expected))
    if not got.isfinite().all():
        return "the result contains NaN or infinity"
    factor = (got @ want) / (want @ want)
    if len(want) > 1 and agree(got, factor * want, 1e-4):
        return f"the result is {factor:.3g} times the right one"
    worst = (got - want).abs().argmax()
    return f"the result contains {got[worst]:.4g} instead of {want[worst]:.4g}"


def describe_error(error: BaseException, file: Path) -> str:
    """An error in one line, with the line of the file where it occurred."""
    message = " ".join(traceback.format_exception_only(error)[-1].split())[:200]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{message} (line {error.lineno})"
    return message + last_line(traceback.walk_tb(error.__traceback__), file)


def last_line(frames: Iterable[tuple[FrameType, int]], file: Path) -> str:
    """The innermost line of the file among the frames, as ` (line 8)`; empty if there is none."""
    lines = [line for frame, line in frames if frame.f_code.co_filename == str(file)]
    return f" (line {lines[-1]})" if lines else ""


def check(number: int, file: Path) -> str:
    """Run the learner's file and judge its function. Returns a sentence about a right function.

    file   its absolute path

    Raises UsageError if the file cannot run or does not define the function, SimpleDiffusionError if the function is
    wrong.
    """
    task = exercise(number)
    loader = SourceFileLoader("my_solution", str(file))
    module = module_from_spec(ModuleSpec(loader.name, loader, origin=str(file)))
    sys.modules[loader.name] = module  # dataclasses look up their module here
    sys.path.append(str(file.parent))  # for modules in the same folder
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{file.name} cannot run: {describe_error(error, file)}") from None
    function = getattr(module, task.name, None)
    if not callable(function):
        raise UsageError(f"{file.name} does not define the function {task.name}({', '.join(task.arguments)})")
    if fault := fault_of(task, function, file):
        raise SimpleDiffusionError(f"{task.name} {fault}")
    return f"{task.name} is right: it agrees with the library in every case"


def main() -> None:
    """The child process: the arguments are the number and the file, the verdict goes to stdout.

    What the solution prints goes to stderr.
    """
    number, file = int(sys.argv[1]), Path(sys.argv[2]).resolve()
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    solving = threading.get_ident()

    def end(message: str, code: int) -> None:
        sys.stdout.flush()
        with stdout:
            stdout.write(message)
        os._exit(code)  # also if threads of the solution still run

    def time_out() -> None:
        frames = reversed([*traceback.walk_stack(sys._current_frames()[solving])])
        line = last_line(frames, file)
        end(f"{file.name} did not finish within {SECONDS} seconds{line}: does one of its loops never end?", 1)

    limit = threading.Timer(SECONDS, time_out)
    limit.daemon = True
    limit.start()
    try:
        message, code = check(number, file), 0
    except SimpleDiffusionError as error:
        message, code = str(error), error.exit_code
    limit.cancel()
    end(message, code)


if __name__ == "__main__":
    main()
