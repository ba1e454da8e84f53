"""Exponential moving average of the weights: what is sampled from is the average, not the last step."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Averaged = TypeVar("Averaged", bound=nn.Module)

Decay = Callable[[int], float]
"""How much of the average is kept at update n = 1, 2, ...; 0 at n = 1, where there is nothing to keep."""


def power_exponent(width: float) -> float:
    """The exponent g of the averaging profile (g + 1) t^g on [0, 1] whose standard deviation is `width`.

    Raises ValueError for a width outside (0, 0.28), which no such profile has.
    """
    # width^2 = (g + 1) / ((g + 2)^2 (g + 3)) solved for g: the largest root.
    if not 0 < width < 0.28:
        raise ValueError(f"the width of a power-function average lies in (0, 0.28), not at {width}")
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


def power_decay(width: float = 0.05) -> Decay:
    """The power-function average (Karras et al. 2024, eq. 121-127): its memory is a fixed share of the run so far.

    width   standard deviation of the averaging profile relative to the length of the run, in (0, 0.28)

    Raises ValueError for another width.
    """
    exponent = power_exponent(width)
    return lambda n: (1 - 1 / n) ** (exponent + 1)


Profile = tuple[float, int]
"""(width, n): of a power-function average, and the number of updates after which it was kept."""


def overlap(one: Profile, other: Profile) -> float:
    """The integral of the product of two averages' profiles over the updates (Karras et al. 2024, appendix C.3).

    one, other   averages of widths in (0, 0.28), kept after n updates, 1 or more

    Raises ValueError for another width.
    """
    (a, t), (b, s) = ((power_exponent(width), n) for width, n in (one, other))
    first = min(t, s)
    return (a + 1) * (b + 1) / (a + b + 1) * (first / t) ** a * (first / s) ** b / max(t, s)


def mixture(kept: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """How averages that were kept along a run are mixed to one that was not (Karras et al. 2024, algorithm 3).

    Least squares between the profiles in float64. Unlike there the shares add up to 1, so that weights that stood still
    come out as they are.

    kept     different ones
    wanted   of any width in (0, 0.28)

    Returns (the share of each in the mixture, the distance from the mixture's profile to the wanted one relative to its
    norm: 0 where it is one of those kept). Raises ValueError for another width.
    """
    n = len(kept)
    system, right = np.ones((n + 1, n + 1)), np.ones(n + 1)  # the last row says that the shares add up to 1
    system[:n, :n] = [[overlap(one, other) for other in kept] for one in kept]
    system[n, n] = 0
    right[:n] = [overlap(one, wanted) for one in kept]
    shares = np.linalg.solve(system, right)[:n]
    norm = overlap(wanted, wanted)
    rest = shares @ system[:n, :n] @ shares - 2 * shares @ right[:n] + norm
    return shares.tolist(), math.sqrt(max(rest, 0.0) / norm)


def constant_decay(decay: float = 0.999, warmup: int = 0) -> Decay:
    """A fixed decay, reached from below so that the first steps are forgotten: min(decay, (m - 1) / (m + 9)).

    decay    share of the average that an update keeps, in [0, 1)
    warmup   updates that are copied as they are; m = n - warmup counts from the last one
    """

    def at(n: int) -> float:
        m = max(n - warmup, 1)
        return min(decay, (m - 1) / (m + 9))

    return at


class EMA(Generic[Averaged]):
    """A copy of `model` whose parameters trail its own (Karras et al. 2024, "Analyzing and improving the training
    dynamics", section 3); buffers are copied as they are.

    model   any module; `.model` is the averaged copy, in eval mode and without gradients
    decay   number of the update -> share of the average that is kept; `power_decay()` by default
    """

    def __init__(self, model: Averaged, decay: Decay | None = None):
        self.decay = decay or power_decay()
        self.model: Averaged = deepcopy(model).eval().requires_grad_(False)

    def update(self, model: Averaged, n: int) -> None:
        """Take in the model's weights after update n = 1, 2, ..."""
        slow: list[Tensor] = list(self.model.parameters())
        fast: list[Tensor] = list(model.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(slow, fast, 1 - self.decay(n))  # lerp is exact at both ends
        for kept, fresh in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(fresh)

    def snapshot(self) -> Averaged:
        """A copy of the average as it is now."""
        return deepcopy(self.model)
