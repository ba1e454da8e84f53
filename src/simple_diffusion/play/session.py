"""Sampling for the page of `play`: the denoising trajectory, step by step."""

import math
import time
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import to_unit
from ..errors import UsageError
from ..inpainting import Inpainted, repaint
from ..model.model_file import Model, read
from ..model.posthoc_ema import posthoc_model
from ..samplers import FINE, SAMPLERS, levels_along
from ..sampling import distance, slerp, start_noise, trajectory
from ..viz.trajectory import Recorder, steps_shown, to_pixels
from .reproduce import Source, command, python_code
from .request import MAX_IMAGES, MAX_PIXELS, SampleRequest, decode, encode

FRAMES = 50
"""Most steps of a trajectory that are sent to the page."""


class Session:
    """A model from which the page samples.

    name               a run folder or a model file
    ema                EMA length for post-hoc EMA; None for the model's own weights
    device, precision  as for `read`

    Raises what `read` and `posthoc_model` raise.
    """

    def __init__(self, name: str, ema: float | None = None, device: str = "auto", precision: str = "auto"):
        model = read(name, device, precision)
        self.model: Model = model if ema is None else posthoc_model(name, model, ema)
        self.shape = model.info.shape
        self.source = Source(name, ema, device, precision, self.shape, model.info.class_names)
        self.max_images = max(1, min(MAX_IMAGES, MAX_PIXELS // math.prod(self.shape[1:])))
        self.reference: tuple[SampleRequest, Tensor] | None = None  # the last reference solution

    def facts(self) -> dict[str, Any]:
        """The facts about the model that the page shows, and the defaults and limits of its controls."""
        info, config = self.model.info, self.model.config
        return {
            "name": self.source.name,
            "data": info.name,
            "shape": self.shape,
            "classes": info.class_names,
            "parameters": sum(p.numel() for p in self.model.denoiser.parameters()),
            "trained": {"steps": self.model.step, "seconds": self.model.seconds},
            "samplers": [*SAMPLERS],
            "sampler": config.sampler,
            "steps": config.sampler_steps,
            "guidance": config.guidance,
            "reference": {"sampler": FINE[0], "steps": FINE[1]},
            "max_images": self.max_images,
        }

    def check(self, request: SampleRequest) -> None:
        """Raise UsageError for a request that this model can't fulfil."""
        classes, labels = self.model.info.classes, request.labels
        if request.n > self.max_images:
            raise UsageError(f"`n` must be from 1 to {self.max_images} for images of this size, got {request.n}")
        if not classes and labels:
            raise UsageError("`labels` must be empty: the model has no classes")
        if classes and not 1 <= len(labels) <= request.n:
            raise UsageError(f"`labels` must be a list of 1 to {request.n} classes, got {len(labels)}")
        if not all(0 <= label <= classes for label in labels):  # label `classes` is the null label
            raise UsageError(f"each of `labels` must be from 0 to {classes}, got {labels}")
        self.image_and_mask(request)

    def image_and_mask(self, request: SampleRequest) -> tuple[Tensor, Tensor] | None:
        """(image `[C, H, W]` in [-1, 1], mask bool `[H, W]`) of a request that inpaints, else None."""
        if not request.inpaints:
            return None
        _, height, width = self.shape
        pixels = torch.from_numpy(decode(request.image, math.prod(self.shape), "image"))
        bits = np.unpackbits(decode(request.mask, -(-height * width // 8), "mask"), count=height * width)
        return to_unit(pixels.view(self.shape)), torch.from_numpy(bits).bool().view(height, width)

    def arguments(self, request: SampleRequest) -> dict[str, Any]:
        """The arguments of `trajectory`. `python_code` writes the same as text."""
        n, labels = request.n, request.labels
        settings = {"guidance": float(request.guidance), "sampler": request.sampler, "sampler_steps": request.steps}
        denoiser, times, sampler = self.model.changed(**settings).sampler()
        if known := self.image_and_mask(request):
            denoiser, sampler = Inpainted(denoiser, *known), repaint
        start = None
        if request.to_seed is not None:
            one, other = (start_noise(seed, [0], self.shape)[0] for seed in (request.seed, request.to_seed))
            start = slerp(one, other, torch.linspace(0, 1, n).tolist())
        cond = torch.tensor([labels[i % len(labels)] for i in range(n)]) if labels else None
        arguments = {"denoiser": denoiser, "shape": (n, *self.shape), "times": times, "cond": cond, "sampler": sampler}
        return arguments | {"seed": request.seed, "batch": n, "start": start}

    def sample(self, request: SampleRequest) -> Generator[dict[str, Any], None, None]:
        """The messages for the page: a description, the frames of the trajectory, and a summary."""
        yield {"n": request.n, "steps": request.steps, "labels": request.labels} | {
            "command": command(self.source, request),
            "code": python_code(self.source, request),
        }
        arguments = self.arguments(request)
        recorder, times = Recorder(arguments["denoiser"]), arguments["times"]
        alphas, sigmas = levels_along(recorder.schedule, times)
        shown = {0, *steps_shown([(i + 1) / FRAMES for i in range(FRAMES)], request.steps)}
        start, waiting, x = time.perf_counter(), 0.0, torch.empty(0)
        for step, x in enumerate(trajectory(**arguments | {"denoiser": recorder})):
            if step in shown:
                x, x0_hat = x.cpu(), (recorder.x0_hat if step else torch.zeros_like(x)).cpu()  # waits for a GPU
                paused = time.perf_counter()
                yield {
                    "step": step,
                    "level": sigmas[step] / alphas[step],
                    "x_t": encode(to_pixels(x, alphas[step], sigmas[step])),
                    "x0_hat": encode(to_pixels(x0_hat)),
                }
                waiting += time.perf_counter() - paused  # for the page
        seconds, error = time.perf_counter() - start - waiting, None
        if request.measure and SAMPLERS[request.sampler].solves_ode and not request.inpaints:
            error = distance(x.cpu(), (yield from self.solve(request)))
        yield {"seconds": round(seconds, 4), "distance": error}

    def solve(self, request: SampleRequest) -> Generator[dict[str, Any], None, Tensor]:
        """The reference solution from the same noise, on the CPU, with a message per step. The last one is kept."""
        sampler, steps = FINE
        request = replace(request, sampler=sampler, steps=steps)
        if self.reference is None or self.reference[0] != request:
            last = torch.empty(0)
            for x in trajectory(**self.arguments(request)):
                last = x
                yield {"measuring": True}
            self.reference = request, last.cpu()
        return self.reference[1]
