"""The configuration of a run: one flat, checked record."""

import math
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

import torch

from ..augmentation import AUGMENTATIONS
from ..errors import UsageError
from ..losses import CRITERIA
from ..networks.annotated import dim_mults_of
from ..networks.double_conv import base_channels_of
from ..optimizers import OPTIMIZERS
from ..samplers import GRIDS, SAMPLERS
from ..schedules import BETAS, SCHEDULES, Discrete, Schedule
from ..system.device import PRECISIONS, pick_precision
from ..targets import TARGETS
from ..training import LEARNING_RATES
from .migrate import RENAMED, RENAMED_TARGETS

DENSITIES = ("lognormal", "uniform", "steps")
WEIGHTS = ("none", "min-snr")
NETWORKS = ("unet", "annotated", "double-conv")
WIDTHS_OF = {"annotated": dim_mults_of, "double-conv": base_channels_of}
"""How a network takes its widths, where it does not take all. Raises ValueError for other widths."""

MAX_WEIGHTS = 2 * 10**9
"""Of a network: with the optimiser and the averaged weights they take 40 GB."""


def setting(default: Any, meaning: str, *, low: float = -math.inf, high: float = math.inf, among: Any = ()) -> Any:
    """A field of the config: its default, its meaning, and the values it may take."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "among": tuple(among)})


@dataclass(frozen=True)
class Config:
    """Every choice of a run. `simple-diffusion train --set help` prints this table."""

    data: str = setting("digits", "data set: a name, a folder of images, or an .npz or .npy file")
    size: int = setting(0, "height and width that images are brought to; 0 leaves them as they are", low=0, high=1024)
    skip_bad: str = setting("no", "leave out images that can't be read, instead of stopping", among=("yes", "no"))
    seed: int = setting(0, "of the weights, the order of the data, and all noise", low=0, high=2**63 - 1)

    augment: str = setting("none", "views of each image that are trained on", among=AUGMENTATIONS)
    augment_conditioning: str = setting(
        "yes", "tell the network which view it sees, so that samples show the plain one", among=("yes", "no")
    )
    held_out: float = setting(
        0.0, "share of the images kept out, on which a held-out loss is measured", low=0, high=0.5
    )
    patience: float = setting(
        0.0, "share of the run without a lower held-out loss after which it stops; 0 never does", low=0, high=1
    )

    seconds: float = setting(180.0, "length of the run by the clock; 0 if steps counts", low=0, high=1e8)
    steps: int = setting(0, "length of the run in updates; 0 if seconds counts", low=0, high=10**9)
    batch: int = setting(32, "images an update", low=1, high=65536)
    accumulate: int = setting(
        1, "parts of a batch that are computed one after another, to save memory", low=1, high=65536
    )
    max_skipped: int = setting(0, "steps in a row that may not be finite, and are left out", low=0, high=1000)
    save_seconds: float = setting(300.0, "seconds between checkpoints; 0 after every step", low=0, high=1e8)
    optimizer: str = setting("muon", "the optimiser", among=OPTIMIZERS)
    lr: float = setting(3e-3, "peak learning rate", low=1e-8, high=10)
    lr_schedule: str = setting("linear", "after the warm-up: linear to 0, or constant", among=LEARNING_RATES)
    warmup: float = setting(0.03, "share of the run over which the learning rate rises", low=1e-6, high=0.99)
    beta2: float = setting(0.99, "AdamW's memory of squared gradients", low=0, high=0.99999)
    clip: float = setting(1.0, "largest norm of the gradient", low=1e-6, high=1e6)
    ema_length: float = setting(
        0.05, "memory of the averaged weights, relative to the length of the run", low=0.001, high=0.27
    )
    ema_decay: float = setting(0.0, "constant decay of the averaged weights; 0 uses ema_length", low=0, high=0.999999)
    ema_warmup: int = setting(0, "updates before the constant decay begins", low=0, high=10**9)

    network: str = setting("unet", "the network", among=NETWORKS)
    widths: tuple[int, ...] = setting((48, 96), "channels of each level of the U-Net", low=8, high=4096)
    blocks: tuple[int, ...] = setting(
        (1, 2),
        "residual blocks of each level of unet; the last number is also double-conv's bottleneck",
        low=1,
        high=64,
    )
    patch: int = setting(2, "pixels a side folded into channels at the door of unet", low=1, high=16)
    dropout: float = setting(0.0, "dropout inside the residual blocks", low=0, high=0.9)

    schedule: str = setting("karras", "noise schedule", among=dict.fromkeys((*SCHEDULES, *BETAS)))
    timesteps: int = setting(
        0, "steps of the schedule's table of betas (DDPM); 0 for continuous time", low=0, high=10**5
    )
    target: str = setting("v", "what the network predicts", among=TARGETS)
    criterion: str = setting("l2", "error measure of the loss", among=CRITERIA)
    density: str = setting("lognormal", "density of the noise levels in training", among=DENSITIES)
    level_mean: float = setting(-0.5, "lognormal: mean of ln(noise / deviation of the data)", low=-10, high=10)
    level_std: float = setting(1.2, "lognormal: standard deviation of the same", low=0.01, high=10)
    weight: str = setting("none", "weight of the noise levels in the loss", among=WEIGHTS)
    drop_labels: float = setting(0.1, "share of labels dropped, for guidance", low=0, high=1)

    sampler: str = setting("dpmpp", "sampler that `sample` uses", among=SAMPLERS)
    grid: str = setting("karras", "spacing of the sampler's steps", among=GRIDS)
    sampler_steps: int = setting(10, "steps of the sampler", low=1, high=10000)
    guidance: float = setting(
        1.5, "classifier-free guidance: 0 ignores the label, 1 is none, above 1 stronger", low=0, high=100
    )
    autoguidance: float = setting(
        1.0, "guidance by an early snapshot of the training: 1 is none, above 1 stronger", low=0, high=100
    )
    snapshot: float = setting(
        0.0, "share of the run after which the averaged weights are kept for autoguidance; 0 keeps none", low=0, high=1
    )
    guidance_low: float = setting(0.1, "least sigma/alpha at which guidance acts", low=0, high=1e4)
    guidance_high: float = setting(5.0, "largest sigma/alpha at which guidance acts", low=0, high=1e4)

    precision: str = setting("auto", "arithmetic of the network", among=("auto", *PRECISIONS))
    memory_format: str = setting("channels_last", "layout of images and weights", among=("channels_last", "contiguous"))

    def __post_init__(self) -> None:
        for f in fields(self):
            _check(f.name, getattr(self, f.name), f.default, f.metadata)
        if len(self.widths) != len(self.blocks):
            raise UsageError(f"widths and blocks need one number a level each, not {self.widths} and {self.blocks}")
        if not self.data:
            raise UsageError("data is the name of a data set or a path, not ''")
        if self.guidance_low > self.guidance_high:
            raise UsageError(f"guidance_low {self.guidance_low:g} lies above guidance_high {self.guidance_high:g}")
        if self.least_weights > MAX_WEIGHTS:
            raise UsageError(
                f"widths {self.widths} and blocks {self.blocks} make {self.least_weights / 1e9:,.0f} billion weights, "
                f"and {MAX_WEIGHTS / 1e9:g} billion are the most: use smaller ones"
            )
        try:
            WIDTHS_OF.get(self.network, tuple)(self.widths)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if bool(self.seconds) == bool(self.steps):
            raise UsageError("a run has one length: give seconds or steps, and 0 for the other")
        if self.patience and not self.held_out:
            raise UsageError("patience needs a held-out loss: set held_out=0.1")
        if self.autoguidance != 1 and not self.snapshot:
            raise UsageError("autoguidance needs a snapshot of the training: train with snapshot=0.1")
        if self.ema_warmup and not self.ema_decay:
            raise UsageError("ema_warmup belongs to a constant decay: set ema_decay=0.995")
        if self.density == "steps" and not self.timesteps:
            raise UsageError("density=steps needs a table of betas: set timesteps=1000")
        schedule_of(self)

    @property
    def least_weights(self) -> int:
        """Fewer weights than this the network can't have: those of its blocks, known before one is made."""
        if self.network == "double-conv":  # the bottleneck doubles its width with every second block
            return 9 * (self.widths[-1] * 2 ** (self.blocks[-1] // 2)) ** 2
        blocks = self.blocks if self.network == "unet" else (4,) * len(self.widths)
        return 18 * sum(width**2 * n for width, n in zip(self.widths, blocks, strict=True))


def _check(name: str, value: Any, default: Any, rule: Any) -> None:
    """Raise UsageError unless `value` has the default's type and is one that the rule allows."""
    if not _valid(value, default, rule):
        raise UsageError(f"{name} is {_allowed(default, rule)}, not {value!r}")


def _valid(value: Any, default: Any, rule: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and 1 <= len(value) <= 8 and all(_valid(v, default[0], rule) for v in value)
    kind = int if isinstance(default, int) else (int, float) if isinstance(default, float) else str
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    if rule["among"]:
        return value in rule["among"]
    return isinstance(value, str) or rule["low"] <= value <= rule["high"]  # NaN is not


def _allowed(default: Any, rule: Any) -> str:
    """The values that a setting may take, in words."""
    if rule["among"]:
        return f"one of {', '.join(rule['among'])}"
    if isinstance(default, str):
        return "a word"
    range = f"from {rule['low']:g} to {rule['high']:g}"
    if isinstance(default, tuple):
        return f"one to eight whole numbers {range}, like 64,128"
    return f"a whole number {range}" if isinstance(default, int) else f"a number {range}"


def fitted(config: Config, device: torch.device) -> Config:
    """The config with everything that was left to the machine decided."""
    return replace(config, precision=pick_precision(config.precision, device))


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`["lr=1e-3", "widths=48,96"]` -> values of the fields' types. Raises UsageError, naming the key."""
    defaults = {f.name: f.default for f in fields(Config)}
    rules = {f.name: f.metadata for f in fields(Config)}
    values: dict[str, Any] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key in RENAMED:
            raise UsageError(f"{key} is now called {RENAMED[key]}: use --set {RENAMED[key]}={text}")
        if key == "target" and text in RENAMED_TARGETS:
            raise UsageError(
                f"target {text} is now called {RENAMED_TARGETS[text]}: use --set target={RENAMED_TARGETS[text]}"
            )
        if key not in defaults:
            near = get_close_matches(key, defaults, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "--set help lists the keys"
            raise UsageError(f"no setting is called {key!r}: {hint}")
        default = defaults[key]
        try:
            values[key] = tuple(int(v) for v in text.split(",")) if isinstance(default, tuple) else type(default)(text)
        except ValueError:
            raise UsageError(f"{key} is {_allowed(default, rules[key])}, not {text!r}") from None
    return values


def settings_help() -> str:
    """The table of all settings: name, default, range, meaning."""
    rows = []
    for f in fields(Config):
        rule = f.metadata
        words = isinstance(f.default, str) and not rule["among"]
        allowed = "" if words else " ".join(rule["among"]) or f"{rule['low']:g} .. {rule['high']:g}"
        default = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        rows.append(f"  {f.name:<14} {default!s:<13} {allowed}\n      {rule['meaning']}")
    return "\n".join(rows)


def memory_format(config: Config) -> torch.memory_format:
    """The layout of four-dimensional tensors."""
    return torch.channels_last if config.memory_format == "channels_last" else torch.contiguous_format


def schedule_of(config: Config) -> Schedule:
    """The schedule, in continuous time or as a table of betas. Raises UsageError where there is no such table."""
    if not config.timesteps and config.schedule in SCHEDULES:
        return SCHEDULES[config.schedule]()
    if not config.timesteps:
        raise UsageError(f"{config.schedule} is a table of betas: set timesteps=1000")
    if config.schedule not in BETAS:
        raise UsageError(f"{config.schedule} has no table of betas: use one of {', '.join(BETAS)}, or timesteps=0")
    try:
        with torch.device("cpu"):  # numbers, also where the network is built on "meta"
            return Discrete(BETAS[config.schedule](config.timesteps))
    except ValueError as error:
        raise UsageError(str(error)) from error
