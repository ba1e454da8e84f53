"""Training targets: what the network is asked for, as two numbers (a, b) with out* = a z0 + b eps.

z0 = x0 / data_std is the image at unit scale; alpha and sigma are the levels of z0 and eps in x_t.
"""

from collections.abc import Callable

from torch import Tensor

Target = Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]


def noise(alpha: Tensor, sigma: Tensor) -> tuple[float, float]:
    """out* = eps (Ho et al. 2020, eq. 14): (0, 1), whatever the levels alpha and sigma and their shape."""
    return 0.0, 1.0


def x0(alpha: Tensor, sigma: Tensor) -> tuple[float, float]:
    """out* = z0, the clean image (Salimans & Ho 2022, section 4): (1, 0), at levels alpha and sigma of any shape."""
    return 1.0, 0.0


def flow(alpha: Tensor, sigma: Tensor) -> tuple[float, float]:
    """out* = eps - z0, the velocity of the straight line from data to noise (Liu et al. 2023, eq. 1).

    (-1, 1), at levels alpha and sigma of any shape.
    """
    return -1.0, 1.0


def v(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """out* = (alpha eps - sigma z0) / sqrt(alpha^2 + sigma^2) (Salimans & Ho 2022, section 4, at any scale).

    a and b have the shape of alpha and sigma. Network input and output then have unit variance at every level, and with
    the data's `data_std` the denoiser is EDM's preconditioning (Karras et al. 2022, table 1), up to the sign of the
    output.
    """
    norm = (alpha**2 + sigma**2).sqrt()
    return -sigma / norm, alpha / norm


TARGETS: dict[str, Target] = {"noise": noise, "x0": x0, "v": v, "flow": flow}
