"""The denoiser: a network with its schedule and its target, as the posterior mean E[x0 | x_t]."""

from typing import Protocol

import torch
from torch import Tensor, nn

from .checks import check_callable, check_number, check_type, shown
from .schedules import Schedule
from .targets import Target


class PosteriorMean(Protocol):
    """What samplers need: the posterior mean E[x0 | x_t] of the clean image, and its schedule.

    It is called with x_t `[B, ...]`, t `[B]` or a single time in (0, 1], and labels cond int64 `[B]` or None, and
    returns the shape of x_t.
    """

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor: ...


class Denoiser(nn.Module):
    """E[x0 | x_t] from any network, schedule and target (Ho et al. 2020, eq. 15; Karras et al. 2022, eq. 7).

    net         net(x, noise_level, cond) returns the shape of x; x `[B, ...]` has mean 0 and variance 1,
                noise_level = log(sigma/alpha)/4 `[B]` (Karras et al. 2022, c_noise), cond `[B]` int64 or None
    schedule    the noise schedule, for training and for samplers
    target      what the network predicts
    data_std    standard deviation of the data, whose pixels lie in [-1, 1]
    data_mean   mean of the data
    dtype       in which the network computes; everything else is computed in the dtype of x_t

    Raises TypeError or ValueError for an argument that is not allowed, and if the network returns another shape.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        target: Target,
        data_std: float = 1.0,
        data_mean: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        check_callable("net", net, "a network net(x, noise_level, cond)")
        check_type("schedule", schedule, Schedule, "a schedule such as sd.Karras()")
        check_callable("target", target, "a function such as sd.targets.v")
        check_number("data_std", data_std, 0)
        check_number("data_mean", data_mean)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"`dtype` must be a type of floats such as torch.bfloat16, got {shown(dtype)}")
        self.net, self.schedule, self.target, self.dtype = net, schedule, target, dtype
        self.data_std, self.data_mean = data_std, data_mean

    def coefficients(self, t: Tensor, x: Tensor):
        """(alpha, sigma, a, b), which broadcast to x `[B, ...]`: z_t = alpha z0 + sigma eps and out* = a z0 + b eps."""
        alpha, sigma = self.schedule.levels(t, x)
        alpha = alpha * self.data_std
        return alpha, sigma, *self.target(alpha, sigma)

    def normalize(self, x0: Tensor) -> Tensor:
        """z0 = (x0 - data_mean) / data_std, for x0 `[B, ...]`."""
        return (x0 - self.data_mean) / self.data_std

    def predict(self, z_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The output of the network at z_t = alpha z0 + sigma eps `[B, ...]`, t `[B]` or a single time; same shape."""
        alpha, sigma, _, _ = self.coefficients(t, z_t)
        unit = z_t * (alpha**2 + sigma**2).rsqrt()
        noise_level = (sigma / alpha).log().flatten() / 4
        if cond is not None and cond.shape != (len(z_t),):
            raise ValueError(f"`cond` must be a label for each of {len(z_t)} images, got {shown(cond)}")
        with torch.autocast(z_t.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self.net(unit, noise_level, cond)
        if not isinstance(out, Tensor) or out.shape != z_t.shape:
            raise ValueError(f"the network must return the shape of its input, {tuple(z_t.shape)}, got {shown(out)}")
        return out.to(z_t.dtype)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """E[x0 | x_t], same shape as x_t `[B, ...]`; t `[B]` or a single time in (0, 1]."""
        alpha, sigma, a, b = self.coefficients(t, x_t)
        z_t = x_t - alpha * (self.data_mean / self.data_std)
        # Solve the two linear equations z_t = alpha z0 + sigma eps and out = a z0 + b eps for z0.
        z0_hat = (b * z_t - sigma * self.predict(z_t, t, cond)) / (b * alpha - a * sigma)
        return self.data_mean + self.data_std * z0_hat


def check_denoiser(denoiser: object) -> None:
    """Raise TypeError unless the denoiser has a schedule, which a bare network has not."""
    if not isinstance(getattr(denoiser, "schedule", None), Schedule):
        raise TypeError(
            f"`denoiser` needs a schedule, as sd.Denoiser(net, schedule, target) has, got {shown(denoiser)}"
        )


def weights_of(denoiser: object) -> nn.Module | None:
    """The module inside the wrappers of a denoiser, such as `Clipped`; None for a function without weights."""
    while not isinstance(denoiser, nn.Module):
        if not hasattr(denoiser, "denoiser"):
            return None
        denoiser = denoiser.denoiser
    return denoiser


class Clipped:
    """A posterior mean that is clipped to the range of images, [-1, 1], as in the code of Ho et al. 2020.

    It is called like `PosteriorMean`, with x_t `[B, ...]`, and returns the same shape. Raises TypeError for a network.
    """

    def __init__(self, denoiser: PosteriorMean):
        check_denoiser(denoiser)
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.denoiser(x_t, t, cond).clamp(-1, 1)
