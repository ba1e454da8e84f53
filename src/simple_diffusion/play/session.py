"""Drawing on request: what `play` shows of a model, frame by frame, and the lines of code that do the same."""

import base64
import math
import shlex
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import class_number, to_unit
from ..errors import UsageError
from ..inpainting import Inpainted, repaint
from ..model.model_file import Model, read
from ..model.posthoc_ema import posthoc_model
from ..samplers import FINE, SAMPLERS, levels_along
from ..sampling import distance, slerp, start_noise, trajectory
from ..viz.trajectory import Recorder, steps_shown, to_pixels

MOST_IMAGES, MOST_PIXELS = 64, 2**20
"""Of a drawing."""

MOST_STEPS = 1000
FRAMES = 50
"""Steps that are shown, where there are more."""


@dataclass(frozen=True)
class SampleRequest:
    """What the page asks for. Raises UsageError for numbers that can't be, whatever the model.

    n, labels     images, and the classes that they take in turn
    to_seed       draws the way from the seed's first image to this seed's
    image, mask   draws where a bit of the mask is set, inside this image: the bytes of pixels `[C, H, W]` and of bits
                  `[H W]`, as base64; the sampler is `repaint`, whatever is asked
    measure       whether the distance to a fine solution is wanted
    """

    seed: int
    n: int
    labels: tuple[int, ...]
    guidance: float
    sampler: str
    steps: int
    to_seed: int | None = None
    image: str | None = None
    mask: str | None = None
    measure: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("n", 1, MOST_IMAGES), ("steps", 1, MOST_STEPS), ("guidance", 0, 100)):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} is from {low} to {high:,}, not {getattr(self, name)}")
        for seed in (self.seed, self.to_seed or 0):
            if not 0 <= seed < 2**53:  # what JavaScript counts exactly
                raise UsageError(f"a seed is from 0 to {2**53 - 1}, not {seed}")
        if self.sampler not in SAMPLERS:
            raise UsageError(f"there is no sampler {self.sampler!r}: use one of {', '.join(SAMPLERS)}")
        if self.to_seed is not None and not SAMPLERS[self.sampler].solves_ode:
            deterministic = ", ".join(name for name, info in SAMPLERS.items() if info.solves_ode)
            raise UsageError(f"{self.sampler} adds noise of its own on the way: use one of {deterministic}")
        if self.to_seed is not None and self.image is not None:
            raise UsageError("a way between two seeds can't be inside an image: ask for one of them")
        if (self.image is None) != (self.mask is None):
            raise UsageError("an image and the mask of what is drawn in it belong together: give both")


def unpacked(text: str, count: int, what: str) -> np.ndarray:
    """So many bytes out of base64. Raises UsageError."""
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        content = b""
    if len(content) != count:
        raise UsageError(f"{what} takes {count:,} bytes in base64")
    return np.frombuffer(content, np.uint8).copy()


def packed(pixels: Tensor) -> str:
    """uint8 as base64."""
    return base64.b64encode(pixels.contiguous().cpu().numpy().tobytes()).decode()


class Session:
    """A model, and the drawings that are made from it, one after the other.

    name               of a run folder or a model file
    ema                width of the average, where another one is wanted than the model's own
    device, precision  as `read` takes them

    Raises what `read` and `averaged` do.
    """

    def __init__(self, name: str, ema: float | None = None, device: str = "auto", precision: str = "auto"):
        model = read(name, device, precision)
        self.name, self.ema = name, ema
        self.where = device, precision
        self.model: Model = model if ema is None else posthoc_model(name, model, ema)
        self.shape = model.info.shape
        self.most = max(1, min(MOST_IMAGES, MOST_PIXELS // math.prod(self.shape[1:])))
        self.fine: tuple[SampleRequest, Tensor] | None = None  # the last one that was computed

    def facts(self) -> dict[str, Any]:
        """What the page must know."""
        info, config = self.model.info, self.model.config
        return {
            "name": self.name,
            "data": info.name,
            "shape": self.shape,
            "classes": info.class_names,
            "parameters": sum(p.numel() for p in self.model.denoiser.parameters()),
            "trained": {"steps": self.model.step, "seconds": self.model.seconds},
            "samplers": [*SAMPLERS],
            "sampler": config.sampler,
            "steps": config.sampler_steps,
            "guidance": config.guidance,
            "most": self.most,
        }

    def check(self, ask: SampleRequest) -> None:
        """Raise UsageError for what this model can't draw."""
        classes = self.model.info.classes
        if ask.n > self.most:
            raise UsageError(f"n is from 1 to {self.most} for images of this size, not {ask.n}")
        if not (1 <= len(ask.labels) <= ask.n if classes else not ask.labels):
            raise UsageError(f"the labels are from 1 to {ask.n}" if classes else "the model knows no labels: give none")
        if not all(0 <= label <= classes for label in ask.labels):  # the number of classes itself is "none"
            raise UsageError(f"a label is from 0 to {classes}, not {ask.labels}")
        self.known(ask)

    def known(self, ask: SampleRequest) -> tuple[Tensor, Tensor] | None:
        """(the image `[C, H, W]` in [-1, 1], the mask of what is drawn, bool `[H, W]`) of a request that has one."""
        if ask.image is None or ask.mask is None:
            return None
        _, height, width = self.shape
        pixels = torch.from_numpy(unpacked(ask.image, math.prod(self.shape), "image"))
        bits = np.unpackbits(unpacked(ask.mask, -(-height * width // 8), "mask"), count=height * width)
        return to_unit(pixels.view(self.shape)), torch.from_numpy(bits).bool().view(height, width)

    def arguments(self, ask: SampleRequest) -> dict[str, Any]:
        """What `states` is given; `code` says it in words."""
        model, n = self.model, ask.n
        model = model.changed(guidance=float(ask.guidance), sampler=ask.sampler, sampler_steps=ask.steps)
        denoiser, times, sampler = model.sampler()
        if known := self.known(ask):
            denoiser, sampler = Inpainted(denoiser, *known), repaint
        start = None
        if ask.to_seed is not None:
            one, other = (start_noise(seed, [0], self.shape)[0] for seed in (ask.seed, ask.to_seed))
            start = slerp(one, other, torch.linspace(0, 1, n).tolist())
        cond = torch.tensor([ask.labels[i % len(ask.labels)] for i in range(n)]) if ask.labels else None
        arguments = {"denoiser": denoiser, "shape": (n, *self.shape), "times": times, "cond": cond, "sampler": sampler}
        return arguments | {"seed": ask.seed, "batch": n, "device": self.device, "start": start}

    @property
    def device(self) -> torch.device:
        return next(self.model.denoiser.parameters()).device

    def command(self, ask: SampleRequest) -> str | None:
        """The command that draws the same, up to the last bits; None where no command does."""
        if ask.to_seed is not None or ask.image is not None:
            return None
        words = ["simple-diffusion", "sample", self.name, "--n", str(ask.n)]
        if ask.labels:
            words += ["--label", ",".join(map(self.word_of, ask.labels))]
            words += ["--guidance", f"{ask.guidance:g}"]
        words += ["--sampler", ask.sampler, "--steps", str(ask.steps), "--seed", str(ask.seed)]
        words += [] if self.ema is None else ["--ema", f"{self.ema:g}"]
        for option, given in zip(("--device", "--precision"), self.where, strict=True):
            words += [] if given == "auto" else [option, given]
        return shlex.join([*words, "--out", "grid.png"])

    def word_of(self, label: int) -> str:
        """What `sample --label` takes for this label: its number, or its name where the number is another's name."""
        names = self.model.info.class_names
        if label == len(names):
            return "none"
        return str(label) if class_number(str(label), names) == label else names[label]

    def code(self, ask: SampleRequest) -> str:
        """The lines of Python that draw the same, to the bit; they end with `pixels`, uint8 `[N, C, H, W]`."""
        known, way = ask.image is not None, ask.to_seed is not None
        modules = {
            "model.posthoc_ema": ["posthoc_model"] * (self.ema is not None),
            "model.model_file": ["read"],
            "data.images": ["to_uint8"] + ["to_unit"] * known,
            "inpainting": ["Inpainted", "repaint"] * known,
            "sampling": ["slerp", "start_noise"] * way + ["trajectory"],
        }
        lines = ["import base64"] * known + [""]
        lines += ["import numpy as np"] * known + ["import torch", ""]
        lines += [f"from simple_diffusion.{name} import {', '.join(what)}" for name, what in modules.items() if what]
        given = (self.name,) if self.where == ("auto", "auto") else (self.name, *self.where)
        opened = f"read({', '.join(map(repr, given))})"
        lines += [
            "",
            f"model = {opened if self.ema is None else f'posthoc_model({self.name!r}, {opened}, {self.ema:g})'}",
        ]
        settings = f"guidance={float(ask.guidance)!r}, sampler={ask.sampler!r}, sampler_steps={ask.steps}"
        lines += [f"denoiser, times, sampler = model.changed({settings}).sampler()"]
        if known:
            height, width = self.shape[1:]
            lines += [
                f"image = np.frombuffer(base64.b64decode({ask.image!r}), np.uint8).copy()",
                f"bits = np.frombuffer(base64.b64decode({ask.mask!r}), np.uint8)",
                f"mask = torch.from_numpy(np.unpackbits(bits, count={height * width})).bool().view({height}, {width})",
                f"denoiser = Inpainted(denoiser, to_unit(torch.from_numpy(image).view({self.shape})), mask)",
            ]
        more = "" if self.device.type == "cpu" else f", device={str(self.device)!r}"
        if way:
            lines += [f"one, other = (start_noise(seed, [0], {self.shape})[0] for seed in ({ask.seed}, {ask.to_seed}))"]
            lines += [f"start = slerp(one, other, torch.linspace(0, 1, {ask.n}).tolist())"]
            more += ", start=start"
        if ask.labels:
            lines += [f"labels = torch.tensor([{list(ask.labels)}[i % {len(ask.labels)}] for i in range({ask.n})])"]
        given = f"denoiser, {(ask.n, *self.shape)}, times, {'labels' if ask.labels else 'None'}"
        how = f"sampler={'repaint' if known else 'sampler'}, seed={ask.seed}, batch={ask.n}{more}"
        lines += [
            f"*_, x0 = trajectory({given}, {how})  # every state from the noise on: the last one is the image",
            "pixels = to_uint8(x0)",
        ]
        return "\n".join(lines)

    def draw(self, ask: SampleRequest) -> Generator[dict[str, Any], None, None]:
        """What is sent of a drawing: what it is, its frames, and how it went."""
        words = {"command": self.command(ask), "code": self.code(ask)}
        yield {"n": ask.n, "steps": ask.steps, "labels": ask.labels} | words
        arguments = self.arguments(ask)
        recorder, times = Recorder(arguments["denoiser"]), arguments["times"]
        alphas, sigmas = levels_along(recorder.schedule, times)
        shown = {0, *steps_shown([(i + 1) / FRAMES for i in range(FRAMES)], ask.steps)}
        began, sending, x = time.perf_counter(), 0.0, torch.empty(0)
        for step, x in enumerate(trajectory(**arguments | {"denoiser": recorder})):
            if step in shown:
                x, guess = x.cpu(), (recorder.x0_hat if step else torch.zeros_like(x)).cpu()  # waits for a GPU
                paused = time.perf_counter()
                yield {
                    "step": step,
                    "level": sigmas[step] / alphas[step],
                    "noisy": packed(to_pixels(x, alphas[step], sigmas[step])),
                    "guess": packed(to_pixels(guess)),
                }
                sending += time.perf_counter() - paused
        seconds = time.perf_counter() - began - sending
        away = None
        if ask.measure and SAMPLERS[ask.sampler].solves_ode and ask.image is None:
            away = distance(x.cpu(), (yield from self.fine_of(ask)))
        yield {"seconds": round(seconds, 4), "distance": away}

    def fine_of(self, ask: SampleRequest) -> Generator[dict[str, Any], None, Tensor]:
        """The fine solution from the same noise, a line for each of its steps; the last one is kept."""
        sampler, steps = FINE
        fine = replace(ask, sampler=sampler, steps=steps)
        if self.fine is None or self.fine[0] != fine:
            last = torch.empty(0)
            for x in trajectory(**self.arguments(fine)):
                last = x
                yield {"measuring": True}
            self.fine = fine, last.cpu()
        return self.fine[1]
