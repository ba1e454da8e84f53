"""Training targets: what the network predicts, out* = a z0 + b eps, as the two numbers (a, b).

z0 = (x0 - data_mean) / data_std is the image with mean 0 and standard deviation 1; alpha and sigma are the scales of z0
and eps in z_t = alpha z0 + sigma eps.
"""

from collections.abc import Callable

from torch import Tensor

Target = Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]


def noise(alpha: Tensor, sigma: Tensor) -> tuple[float, float]:
    """out* = eps, the noise (Ho et al. 2020, eq. 14): (0, 1), for alpha and sigma of any shape."""
    return 0.0, 1.0


def x0(alpha: Tensor, sigma: Tensor) -> tuple[float, float]:
    """out* = z0, the clean image (Salimans & Ho 2022, section 4): (1, 0), for alpha and sigma of any shape."""
    return 1.0, 0.0


def flow(alpha: Tensor, sigma: Tensor) -> tuple[float, float]:
    """out* = eps - z0, the velocity of the straight line from data to noise (Liu et al. 2023, eq. 1).

    (-1, 1), for alpha and sigma of any shape.
    """
    return -1.0, 1.0


def v(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """out* = (alpha eps - sigma z0) / sqrt(alpha^2 + sigma^2): v-prediction (Salimans & Ho 2022, section 4).

    a and b have the shape of alpha and sigma. With it, the input and the output of the network have unit variance at
    every noise level. Up to the sign of the output, it is the preconditioning of EDM (Karras et al. 2022, table 1).
    """
    norm = (alpha**2 + sigma**2).sqrt()
    return -sigma / norm, alpha / norm


TARGETS: dict[str, Target] = {"noise": noise, "x0": x0, "v": v, "flow": flow}
"""Targets by name."""
