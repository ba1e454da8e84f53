"""Named configurations: the settings that differ from the defaults."""

from typing import Any

DDPM: dict[str, Any] = {
    "optimizer": "adamw",
    "schedule": "linear",
    "target": "noise",
    "density": "steps",
    "center": "no",
    "grid": "uniform",
    "lr_schedule": "constant",
    "beta2": 0.999,
    "seconds": 0.0,
}
"""Settings of DDPM that both predecessors share (Ho et al. 2020)."""

STOCHASTIC: dict[str, Any] = {"sampler": "dpmpp-sde"}
"""A stochastic sampler, which gives better images after a training of only one or two minutes."""

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("0.3 M parameters, for less than a minute on two cores", {"widths": (32, 64), "lr": 4e-3} | STOCHASTIC),
    "small": ("0.7 M parameters, for a minute on two cores", STOCHASTIC),
    "base": ("1.2 M parameters, for minutes to hours on two cores", {"widths": (64, 128)}),
    "large": (
        "9 M parameters, for hours on many cores, or minutes on a GPU",
        {"widths": (128, 256), "blocks": (2, 4), "lr": 1e-3, "batch": 128},
    ),
    "few-images": (
        "for a few hundred images: horizontal flips, dropout, higher noise levels, early stopping on the held-out "
        "loss, and autoguidance",
        {
            "augment": "mirror",
            "dropout": 0.2,
            "level_mean": 0.0,
            "widths": (64, 128),
            "held_out": 0.1,
            "patience": 0.3,
            "snapshot": 0.1,
            "autoguidance": 1.4,
            "guidance_low": 0.0,
            "guidance_high": 1e4,
            "sampler_steps": 18,
            "batch": 64,
        },
    ),
    "annotated-goldfish": (
        "the annotated U-Net on one class of photographs, with DDPM in 500 steps; 8,000 epochs of 500 images",
        DDPM
        | {
            "data": "hub:Maysee/tiny-imagenet[n01443537]",
            "size": 64,
            "network": "annotated",
            "widths": (64, 128, 256, 512),
            "blocks": (2, 2, 2, 2),
            "augment": "symmetries",
            "augment_conditioning": "no",
            "criterion": "l1",
            "timesteps": 500,
            "sampler_steps": 500,
            "sampler": "ddpm",
            "batch": 64,
            "lr": 1e-4,
            "steps": 64000,
        },
    ),
    "double-conv-fashion": (
        "the double-conv U-Net on Fashion-MNIST, with labels and guidance, with DDPM in 1000 steps; 25 epochs",
        DDPM
        | {
            "data": "fashion-mnist",
            "size": 32,
            "network": "double-conv",
            "widths": (64, 128, 256),
            "blocks": (1, 1, 3),
            "schedule": "sigmoid",
            "timesteps": 1000,
            "sampler_steps": 1000,
            "sampler": "ddpm-beta",
            "guidance": 3.0,
            "guidance_low": 0.0,
            "guidance_high": 1e4,
            "ema_decay": 0.995,
            "ema_warmup": 2000,
            "batch": 128,
            "lr": 3e-4,
            "steps": 11725,
        },
    ),
}
"""name -> (purpose, settings that differ from the defaults)."""
