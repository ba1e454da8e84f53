"""The configuration of a training run: one flat, checked record."""

import math
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

import torch

from ..augmentation import AUGMENTATIONS
from ..errors import UsageError
from ..losses import CRITERIA
from ..networks.registry import NETWORKS
from ..optimizers import OPTIMIZERS
from ..samplers import GRIDS, SAMPLERS
from ..schedules import BETAS, SCHEDULES, Discrete, Schedule
from ..system.device import PRECISIONS, pick_precision
from ..targets import TARGETS
from ..training import LEARNING_RATES
from .migrate import RENAMED, RENAMED_TARGETS

DENSITIES = ("lognormal", "uniform", "steps")
WEIGHTS = ("none", "min-snr")

MAX_WEIGHTS = 2 * 10**9
"""Largest number of weights of a network. With the optimizer and the averaged weights it takes 40 GB."""


def setting(default: Any, meaning: str, *, low: float = -math.inf, high: float = math.inf, among: Any = ()) -> Any:
    """A field of the configuration: its default, its meaning, and its range or the values to choose from."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "among": tuple(among)})


@dataclass(frozen=True)
class Config:
    """Every setting of a training run. `simple-diffusion train --set help` prints this table.

    Raises UsageError for a value that is not allowed, and for settings that contradict each other.
    """

    data: str = setting("digits", "data set: a name, a folder of images, or an .npz or .npy file")
    size: int = setting(0, "height and width to resize images to; 0 keeps their size", low=0, high=1024)
    skip_bad: str = setting("no", "skip images that cannot be read, instead of stopping", among=("yes", "no"))
    seed: int = setting(0, "seed of the weights, the order of the data, and all noise", low=0, high=2**63 - 1)

    augment: str = setting("none", "data augmentation", among=AUGMENTATIONS)
    augment_conditioning: str = setting(
        "yes", "condition the network on the augmentation, so that samples are not augmented", among=("yes", "no")
    )
    held_out: float = setting(
        0.0, "share of the images that are held out for validation; 0 measures no held-out loss", low=0, high=0.5
    )
    patience: float = setting(
        0.0,
        "stop if the held-out loss has not fallen for this share of the run; 0 never stops early",
        low=0,
        high=1,
    )

    seconds: float = setting(180.0, "length of the run in seconds; 0 if `steps` is given", low=0, high=1e8)
    steps: int = setting(0, "length of the run in updates; 0 if `seconds` is given", low=0, high=10**9)
    batch: int = setting(32, "batch size: images per update", low=1, high=65536)
    accumulate: int = setting(1, "gradient accumulation steps per update, to save memory", low=1, high=65536)
    max_skipped: int = setting(
        0,
        "number of steps in a row that are skipped if their loss or gradient is not finite; one more stops the run",
        low=0,
        high=1000,
    )
    save_seconds: float = setting(300.0, "seconds between checkpoints; 0 saves after every step", low=0, high=1e8)
    optimizer: str = setting("muon", "optimizer", among=OPTIMIZERS)
    lr: float = setting(3e-3, "peak learning rate", low=1e-8, high=10)
    lr_schedule: str = setting(
        "linear", "learning-rate schedule after the warm-up: linear decay to 0, or constant", among=LEARNING_RATES
    )
    warmup: float = setting(0.03, "share of the run over which the learning rate rises", low=1e-6, high=0.99)
    beta2: float = setting(0.99, "AdamW's decay rate of the squared gradients", low=0, high=0.99999)
    clip: float = setting(1.0, "largest norm of the gradient; larger gradients are scaled down", low=1e-6, high=1e6)
    ema_length: float = setting(
        0.05, "EMA length of the averaged weights, relative to the length of the run", low=0.001, high=0.27
    )
    ema_decay: float = setting(
        0.0, "constant decay of the averaged weights; 0 uses `ema_length` instead", low=0, high=0.999999
    )
    ema_warmup: int = setting(0, "updates before averaging with `ema_decay` begins", low=0, high=10**9)

    network: str = setting("unet", "network architecture", among=NETWORKS)
    widths: tuple[int, ...] = setting((48, 96), "channels at each level of the U-Net", low=8, high=4096)
    blocks: tuple[int, ...] = setting(
        (1, 2),
        "residual blocks at each level of unet; double-conv uses only the last number, for its bottleneck",
        low=1,
        high=64,
    )
    patch: int = setting(2, "patch size of the pixel-unshuffle at the input of unet", low=1, high=16)
    dropout: float = setting(0.0, "dropout rate in the residual blocks", low=0, high=0.9)

    schedule: str = setting("karras", "noise schedule", among=dict.fromkeys((*SCHEDULES, *BETAS)))
    timesteps: int = setting(
        0, "timesteps of the schedule's table of betas (DDPM); 0 for continuous time", low=0, high=10**5
    )
    center: str = setting(
        "yes", "subtract the mean of the data, so that the input of the network has mean 0", among=("yes", "no")
    )
    target: str = setting("v", "what the network predicts", among=TARGETS)
    criterion: str = setting("l2", "error in the loss", among=CRITERIA)
    density: str = setting("lognormal", "density of noise levels in training", among=DENSITIES)
    level_mean: float = setting(
        -0.5, "lognormal density: mean of ln(sigma / standard deviation of the data)", low=-10, high=10
    )
    level_std: float = setting(1.2, "lognormal density: standard deviation of the same logarithm", low=0.01, high=10)
    weight: str = setting("none", "weight of each noise level in the loss", among=WEIGHTS)
    drop_labels: float = setting(
        0.1, "probability of dropping a label in training, for classifier-free guidance", low=0, high=1
    )

    sampler: str = setting("dpmpp", "sampler", among=SAMPLERS)
    grid: str = setting("karras", "time grid of the sampler", among=GRIDS)
    sampler_steps: int = setting(10, "steps of the sampler", low=1, high=10000)
    guidance: float = setting(
        1.5,
        "scale of classifier-free guidance: 0 samples without labels, 1 without guidance, above 1 with guidance",
        low=0,
        high=100,
    )
    autoguidance: float = setting(
        1.0, "scale of guidance by an early snapshot of the weights; 1 samples without it", low=0, high=100
    )
    snapshot: float = setting(
        0.0, "share of the run after which the snapshot for autoguidance is taken; 0 takes none", low=0, high=1
    )
    guidance_low: float = setting(0.1, "smallest sigma/alpha at which guidance acts", low=0, high=1e4)
    guidance_high: float = setting(5.0, "largest sigma/alpha at which guidance acts", low=0, high=1e4)

    precision: str = setting(
        "auto", "floating-point type of the network; auto chooses it for the device", among=("auto", *PRECISIONS)
    )
    memory_format: str = setting(
        "channels_last", "memory format of images and weights", among=("channels_last", "contiguous")
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            _check(f.name, getattr(self, f.name), f.default, f.metadata)
        if not self.data:
            raise UsageError("data must be the name of a data set or a path, got ''")
        try:
            self.data.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"the path {self.data} is not UTF-8, which config.toml must be: rename it, or set PYTHONUTF8=1 if this "
                "system does not use UTF-8"
            ) from None
        self._check_network()
        self._check_length()
        self._check_noise()
        self._check_guidance()

    def _check_network(self) -> None:
        """Raise UsageError unless widths and blocks are those of a network that fits into memory."""
        if len(self.widths) != len(self.blocks):
            raise UsageError(
                f"widths and blocks must have one number for each level, got {self.widths} and {self.blocks}"
            )
        network = NETWORKS[self.network]
        weights = network.least_weights(self.widths, self.blocks)
        if weights > MAX_WEIGHTS:
            raise UsageError(
                f"widths {self.widths} and blocks {self.blocks} give {weights / 1e9:,.0f} billion weights, "
                f"and the limit is {MAX_WEIGHTS / 1e9:g} billion: use smaller numbers"
            )
        try:
            network.check(self.widths)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def _check_length(self) -> None:
        """Raise UsageError unless the end of the run and the averaging of its weights are determined."""
        if bool(self.seconds) == bool(self.steps):
            raise UsageError("the length of a run is either seconds or steps: set one of them, and the other to 0")
        if self.patience and not self.held_out:
            raise UsageError("patience needs a held-out loss: set held_out=0.1")
        if self.ema_warmup and not self.ema_decay:
            raise UsageError("ema_warmup needs a constant decay: set ema_decay=0.995")

    def _check_noise(self) -> None:
        """Raise UsageError unless the noise schedule exists, and has the timesteps that the density needs."""
        if self.density == "steps" and not self.timesteps:
            raise UsageError("density=steps needs a table of betas: set timesteps=1000")
        schedule_of(self)

    def _check_guidance(self) -> None:
        """Raise UsageError unless the interval of guidance is not empty, and autoguidance has its snapshot."""
        if self.guidance_low > self.guidance_high:
            raise UsageError(
                f"guidance_low must not exceed guidance_high, got guidance_low {self.guidance_low:g} and "
                f"guidance_high {self.guidance_high:g}"
            )
        if self.autoguidance != 1 and not self.snapshot:
            raise UsageError("autoguidance needs an early snapshot of the weights: train with snapshot=0.1")


def _check(name: str, value: Any, default: Any, rule: Any) -> None:
    """Raise UsageError unless the value has the default's type and follows the rule of the setting."""
    if not _valid(value, default, rule):
        raise UsageError(f"{name} must be {_allowed(default, rule)}, got {value!r}")


def _valid(value: Any, default: Any, rule: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and 1 <= len(value) <= 8 and all(_valid(v, default[0], rule) for v in value)
    kind = int if isinstance(default, int) else (int, float) if isinstance(default, float) else str
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    if rule["among"]:
        return value in rule["among"]
    return isinstance(value, str) or rule["low"] <= value <= rule["high"]  # False for NaN


def _allowed(default: Any, rule: Any) -> str:
    """A description of the values that a setting may have."""
    if rule["among"]:
        return f"one of {', '.join(rule['among'])}"
    if isinstance(default, str):
        return "text"
    range = f"from {rule['low']:g} to {rule['high']:g}"
    if isinstance(default, tuple):
        return f"one to eight integers {range}, like 64,128"
    return f"an integer {range}" if isinstance(default, int) else f"a number {range}"


def fitted(config: Config, device: torch.device) -> Config:
    """The configuration with the precision chosen for the device, if it is "auto"."""
    return replace(config, precision=pick_precision(config.precision, device))


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`["lr=1e-3", "widths=48,96"]` -> {"lr": 1e-3, "widths": (48, 96)}.

    Raises UsageError for a key that does not exist and for a value of another type.
    """
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
            hint = f"did you mean {near[0]!r}?" if near else "`--set help` lists all settings"
            raise UsageError(f"there is no setting {key!r}: {hint}")
        default = defaults[key]
        try:
            values[key] = tuple(int(v) for v in text.split(",")) if isinstance(default, tuple) else type(default)(text)
        except ValueError:
            raise UsageError(f"{key} must be {_allowed(default, rules[key])}, got {text!r}") from None
    return values


def settings_help() -> str:
    """A table of all settings: name, default, range and meaning."""
    rows = []
    for f in fields(Config):
        rule = f.metadata
        is_text = isinstance(f.default, str) and not rule["among"]
        allowed = "" if is_text else " ".join(rule["among"]) or f"{rule['low']:g} .. {rule['high']:g}"
        default = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        rows.append(f"  {f.name:<20} {default!s:<13} {allowed}\n      {rule['meaning']}")
    return "\n".join(rows)


def memory_format(config: Config) -> torch.memory_format:
    """The memory format of four-dimensional tensors."""
    return torch.channels_last if config.memory_format == "channels_last" else torch.contiguous_format


def schedule_of(config: Config) -> Schedule:
    """The noise schedule, in continuous time or as a table of betas. Raises UsageError if there is no such table."""
    if not config.timesteps and config.schedule in SCHEDULES:
        return SCHEDULES[config.schedule]()
    if not config.timesteps:
        raise UsageError(f"schedule {config.schedule} is a table of betas: set timesteps=1000")
    if config.schedule not in BETAS:
        raise UsageError(
            f"schedule {config.schedule} has no table of betas: use one of {', '.join(BETAS)}, or timesteps=0"
        )
    try:
        with torch.device("cpu"):  # even if the network is built on "meta"
            return Discrete(BETAS[config.schedule](config.timesteps))
    except ValueError as error:
        raise UsageError(str(error)) from error
