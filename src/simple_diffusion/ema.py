"""Exponential moving average (EMA) of the weights: samples are generated with the average, not the last weights."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .checks import check_callable, check_integer, check_number, check_type

Averaged = TypeVar("Averaged", bound=nn.Module)

Decay = Callable[[int], float]
"""The fraction of the average that is kept at update n = 1, 2, ...; it is 0 at n = 1."""


def power_exponent(length: float) -> float:
    """The exponent g of the averaging profile (g + 1) t^g on [0, 1] whose standard deviation is `length`.

    Raises ValueError for a length outside (0, 0.28), which no profile has.
    """
    # The largest root of length^2 = (g + 1) / ((g + 2)^2 (g + 3)).
    if not 0 < length < 0.28:
        raise ValueError(f"the EMA length must lie between 0 and 0.28, got {length}")
    return float(np.roots([1, 7, 16 - length**-2, 12 - length**-2]).real.max())


def power_decay(length: float = 0.05) -> Decay:
    """The power-function EMA (Karras et al. 2024, eq. 121-127), which averages over a fixed fraction of the run so far.

    length   EMA length: standard deviation of the averaging profile relative to the length of the run, in (0, 0.28)

    Raises ValueError for another length.
    """
    exponent = power_exponent(length)
    return lambda n: (1 - 1 / n) ** (exponent + 1)


Profile = tuple[float, int]
"""(length, n): the EMA length of an average, and the number of updates after which it was saved."""


def overlap(one: Profile, other: Profile) -> float:
    """The inner product of the profiles of two averages, over the updates (Karras et al. 2024, appendix C.3).

    one, other   lengths in (0, 0.28), each with a number of updates, 1 or more

    Raises ValueError for another length.
    """
    (a, t), (b, s) = ((power_exponent(length), n) for length, n in (one, other))
    first = min(t, s)
    return (a + 1) * (b + 1) / (a + b + 1) * (first / t) ** a * (first / s) ** b / max(t, s)


def mixture(kept: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """Post-hoc EMA: an EMA of another length, as a mixture of saved ones (Karras et al. 2024, algorithm 3).

    The mixture is the least-squares fit of the profiles, in float64. Unlike in the paper, the coefficients add up to 1,
    so that the mixture does not change weights that are constant during training.

    kept     (length, number of updates) of each saved average, all different
    wanted   the profile to approximate, of any length in (0, 0.28)

    Returns (the coefficient of each average, the distance between the profile of the mixture and `wanted`, relative to
    the norm of `wanted`). Raises ValueError for another length.
    """
    n = len(kept)
    system, right = np.ones((n + 1, n + 1)), np.ones(n + 1)  # the last row: the coefficients add up to 1
    system[:n, :n] = [[overlap(one, other) for other in kept] for one in kept]
    system[n, n] = 0
    right[:n] = [overlap(one, wanted) for one in kept]
    coefficients = np.linalg.solve(system, right)[:n]
    norm = overlap(wanted, wanted)
    rest = coefficients @ system[:n, :n] @ coefficients - 2 * coefficients @ right[:n] + norm
    return coefficients.tolist(), math.sqrt(max(rest, 0.0) / norm)


def constant_decay(decay: float = 0.999, warmup: int = 0) -> Decay:
    """A constant decay after a ramp that gives the first updates little weight: min(decay, (m - 1) / (m + 9)).

    decay    fraction of the average that is kept at an update, in [0, 1)
    warmup   number of updates that copy the weights; m = n - warmup counts the updates after them

    Raises ValueError for another decay or warmup.
    """
    check_number("decay", decay, 0, 1, "[)")
    check_integer("warmup", warmup, 0)

    def at(n: int) -> float:
        m = max(n - warmup, 1)
        return min(decay, (m - 1) / (m + 9))

    return at


class EMA(Generic[Averaged]):
    """A copy of a model whose parameters are a moving average; buffers are copied (Karras et al. 2024, "Analyzing and
    improving the training dynamics", section 3).

    model   any module; `.model` is the averaged copy, in eval mode and without gradients
    decay   number of the update -> fraction of the average that is kept; `power_decay()` by default

    Raises TypeError for another model or decay.
    """

    def __init__(self, model: Averaged, decay: Decay | None = None):
        check_type("model", model, nn.Module, "a model, an nn.Module")
        check_callable("decay", decay or power_decay, "a function such as sd.constant_decay(0.999)")
        self.decay = decay or power_decay()
        self.model: Averaged = deepcopy(model).eval().requires_grad_(False)

    def update(self, model: Averaged, n: int) -> None:
        """Add the weights of the model after update n = 1, 2, ... to the average.

        Raises ValueError for another n, or a model whose weights have other shapes.
        """
        check_integer("n", n, 1)
        slow: list[Tensor] = list(self.model.parameters())
        fast: list[Tensor] = list(model.parameters())
        if [weight.shape for weight in slow] != [weight.shape for weight in fast]:
            raise ValueError("`model` must have the weights of the model that is averaged")
        with torch.no_grad():
            torch._foreach_lerp_(slow, fast, 1 - self.decay(n))  # lerp is exact at both ends
        for kept, fresh in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(fresh)

    def snapshot(self) -> Averaged:
        """A copy of the averaged model."""
        return deepcopy(self.model)
