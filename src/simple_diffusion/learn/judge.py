"""A solution of an exercise, judged in words.

A solution is a Python file of the user's own, and running it is the point: `simple-diffusion check` does so in a child
process with a limit of time, `main` below. The function is called on the exercise's cases. Where its answers are wrong
they are compared with those of the typical mistakes.
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
"""What a solution may take."""


def agree(answer: Any, truth: Any, tolerance: float = 0.0) -> bool:
    """Are they the same, in shapes and, within the tolerance, in numbers? NaN is NaN."""
    try:
        torch.testing.assert_close(answer, truth, rtol=tolerance, atol=tolerance, equal_nan=True, check_dtype=False)
    except (AssertionError, TypeError):
        return False
    return True


def fault(asked: Exercise, function: Callable[..., Any], file: Path) -> str | None:
    """What is wrong with a function, as a sentence without its subject; None if nothing is.

    file   where the function stands, for the line of an error
    """
    wrong: dict[str, tuple[Any, Any]] = {}  # case -> answer and truth
    other_type, draws = None, False
    for case, args in asked.cases.items():
        given, truth = deepcopy(args), asked.truth(*args)
        try:
            state = torch.get_rng_state()
            answer = function(*given)
            draws = draws or not torch.equal(state, torch.get_rng_state())
        except (Exception, SystemExit) as error:
            return f"fails {case}: {raised(error, file)}"
        changed = [name for name, new, old in zip(asked.arguments, given, args, strict=True) if not agree(new, old)]
        if changed:
            return f"changes {' and '.join(changed)} in place: let it make something new and return that"
        if other_kind := misformed(answer, truth):
            return other_kind
        if isinstance(truth, numbers.Real):
            answer = float(answer)
        if not agree(answer, truth, asked.tolerance):
            wrong[case] = answer, truth
        other_type = other_type or retyped(answer, truth, args)
    if not wrong:
        return other_type
    if draws:
        return "is wrong: it draws random numbers, and all that it needs is given to it"
    for words, mistake in asked.mistakes.items():
        if all(agree(answer, mistake(*asked.cases[case]), asked.tolerance) for case, (answer, _) in wrong.items()):
            return f"is wrong: {words}"
    if other_type:
        return other_type
    case, (answer, truth) = next(iter(wrong.items()))
    elsewhere = ", and right elsewhere" if len(wrong) < len(asked.cases) else ""
    return f"is wrong {case}{elsewhere}: {difference(answer, truth)}"


def parts(answer: Any) -> tuple:
    """What a function returns, one thing or several, as a tuple."""
    return answer if isinstance(answer, tuple) else (answer,)


def misformed(answer: Any, truth: Any) -> str | None:
    """Says so if the answer is no tensor, number or tuple, as the truth is."""
    if isinstance(truth, tuple):
        if isinstance(answer, tuple) and len(answer) == len(truth):
            return next(filter(None, map(misformed, answer, truth)), None)
        kind = f"a tuple of {len(truth)} tensors"
    elif isinstance(answer, Tensor) and answer.is_complex():
        return "returns complex numbers: take their real part"
    elif isinstance(truth, Tensor):
        if isinstance(answer, Tensor):
            return None
        kind = "a tensor"
    else:
        if isinstance(answer, numbers.Real) or (isinstance(answer, Tensor) and answer.ndim == 0):
            return None
        kind = "a number"
    return f"returns {'nothing' if answer is None else f'a value of type {type(answer).__name__}'} in place of {kind}"


def retyped(answer: Any, truth: Any, args: tuple) -> str | None:
    """Says so if a tensor of the answer has another dtype than it should; any float will do if no tensor was given."""
    free = not any(isinstance(arg, Tensor) for arg in args)
    for got, want in zip(parts(answer), parts(truth), strict=True):
        if isinstance(want, Tensor) and got.dtype != want.dtype and not (free and got.is_floating_point()):
            return f"returns {got.dtype} in place of {want.dtype}"
    return None


def difference(answer: Any, truth: Any) -> str:
    """How a wrong answer differs from the truth."""
    for got, want in zip(parts(answer), parts(truth), strict=True):
        if isinstance(want, Tensor) and got.shape != want.shape:
            return f"it returns the shape {list(got.shape)} in place of {list(want.shape)}"
    got, want = (torch.cat([torch.as_tensor(part).double().flatten() for part in parts(x)]) for x in (answer, truth))
    if not got.isfinite().all():
        return "it returns NaN or infinity"
    times = (got @ want) / (want @ want)
    if len(want) > 1 and agree(got, times * want, 1e-4):
        return f"it returns {times:.3g} times the right answer"
    worst = (got - want).abs().argmax()
    return f"it returns {got[worst]:.4g} in place of {want[worst]:.4g}"


def raised(error: BaseException, file: Path) -> str:
    """An error in one line, with the line of the file that it comes from."""
    words = " ".join(traceback.format_exception_only(error)[-1].split())[:200]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{words} (line {error.lineno})"
    return words + line_of(traceback.walk_tb(error.__traceback__), file)


def line_of(frames: Iterable[tuple[FrameType, int]], file: Path) -> str:
    """The last line of the file among the frames, the innermost one last; nothing if none is of it."""
    lines = [line for frame, line in frames if frame.f_code.co_filename == str(file)]
    return f" (line {lines[-1]})" if lines else ""


def checked(number: int, file: Path) -> str:
    """Run the user's own file and judge its function: what is said of a right one.

    file   its absolute path

    Raises UsageError for a file that does not run or lacks the function, SimpleDiffusionError for a wrong function.
    """
    asked = exercise(number)
    loader = SourceFileLoader("my_solution", str(file))
    module = module_from_spec(ModuleSpec(loader.name, loader, origin=str(file)))
    sys.modules[loader.name] = module  # where dataclasses look
    sys.path.append(str(file.parent))  # for modules beside it
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{file.name} does not run: {raised(error, file)}") from None
    function = getattr(module, asked.name, None)
    if not callable(function):
        raise UsageError(f"{file.name} lacks the function {asked.name}({', '.join(asked.arguments)})")
    if said := fault(asked, function, file):
        raise SimpleDiffusionError(f"{asked.name} {said}")
    return f"{asked.name} is right: it agrees with the library in every case"


def main() -> None:
    """The child process, told the number and the file: the verdict goes to stdout, what a solution prints to stderr."""
    number, file = int(sys.argv[1]), Path(sys.argv[2]).resolve()
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    solving = threading.get_ident()

    def end(words: str, code: int) -> None:
        sys.stdout.flush()
        with stdout:
            stdout.write(words)
        os._exit(code)  # whatever else still runs

    def too_long() -> None:
        frames = reversed([*traceback.walk_stack(sys._current_frames()[solving])])
        end(f"{file.name} is not through after {SECONDS} seconds{line_of(frames, file)}: does a loop never end?", 1)

    limit = threading.Timer(SECONDS, too_long)
    limit.daemon = True
    limit.start()
    try:
        words, code = checked(number, file), 0
    except SimpleDiffusionError as error:
        words, code = str(error), error.exit_code
    limit.cancel()
    end(words, code)


if __name__ == "__main__":
    main()
