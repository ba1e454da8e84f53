"""The denoiser: a network, the schedule it was trained on and the target it was trained for, as E[x0 | x_t]."""

from typing import Protocol

import torch
from torch import Tensor, nn

from .schedules import Schedule
from .targets import Target


class PosteriorMean(Protocol):
    """What samplers need: the posterior mean of the clean image, and the schedule it belongs to.

    Called with x_t `[B, ...]`, t `[B]` or a single time in (0, 1], and cond int64 `[B]` or None; the same shape as x_t.
    """

    @property
    def schedule(self) -> Schedule:
        """Levels of signal and noise at each time."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor: ...


class Denoiser(nn.Module):
    """E[x0 | x_t] from any network, schedule and target (Ho et al. 2020, eq. 15; Karras et al. 2022, eq. 7).

    net         net(x, noise_level, cond) -> x's shape; x `[B, ...]` has unit variance,
                noise_level = log(sigma/alpha)/4 `[B]` (Karras et al. 2022, c_noise), cond `[B]` int64 or None
    schedule    levels of signal and noise; samplers read it from here, so that both ends use the same one
    target      what the network's output means
    data_std    standard deviation of the data, whose pixels lie in [-1, 1]
    dtype       what the network computes in; the mathematics around it stays in x_t's dtype
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        target: Target,
        data_std: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.net, self.schedule, self.target, self.data_std, self.dtype = net, schedule, target, data_std, dtype

    def coefficients(self, t: Tensor, x: Tensor):
        """(alpha, sigma, a, b), each to multiply x `[B, ...]`: x_t = alpha z0 + sigma eps, out* = a z0 + b eps."""
        alpha, sigma = self.schedule.levels(t, x)
        alpha = alpha * self.data_std
        return alpha, sigma, *self.target(alpha, sigma)

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's raw output at x_t `[B, ...]`, t `[B]` or a single time; same shape as x_t."""
        alpha, sigma, _, _ = self.coefficients(t, x_t)
        unit = x_t * (alpha**2 + sigma**2).rsqrt()
        noise_level = (sigma / alpha).log().flatten() / 4
        with torch.autocast(x_t.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self.net(unit, noise_level, cond)
        return out.to(x_t.dtype)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """E[x0 | x_t], same shape as x_t `[B, ...]`; t `[B]` or a single time in (0, 1]."""
        alpha, sigma, a, b = self.coefficients(t, x_t)
        # Two linear equations, x_t = alpha z0 + sigma eps and out = a z0 + b eps, solved for z0.
        z0_hat = (b * x_t - sigma * self.predict(x_t, t, cond)) / (b * alpha - a * sigma)
        return self.data_std * z0_hat


class Clipped:
    """A posterior mean kept inside the range of images, [-1, 1] (the code of Ho et al. 2020 clips so at every step).

    Called as `PosteriorMean` is: x_t `[B, ...]` in, the same shape out.
    """

    def __init__(self, denoiser: PosteriorMean):
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.denoiser(x_t, t, cond).clamp(-1, 1)
