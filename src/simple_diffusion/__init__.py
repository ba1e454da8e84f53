"""Simple Diffusion: denoising diffusion that is simple, clear and lightweight.

Every public name is imported on first use, so that `simple-diffusion --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .augmentation import augmented as augmented
    from .augmentation import mirror as mirror
    from .augmentation import symmetries as symmetries
    from .checkpoint import load as load
    from .classification import accuracy as accuracy
    from .classification import train_classifier as train_classifier
    from .data.batches import batches as batches
    from .data.images import Images as Images
    from .data.images import to_uint8 as to_uint8
    from .data.images import to_unit as to_unit
    from .data.sources import load_images as load_images
    from .denoiser import Clipped as Clipped
    from .denoiser import Denoiser as Denoiser
    from .ema import EMA as EMA
    from .ema import constant_decay as constant_decay
    from .ema import power_decay as power_decay
    from .evaluation import fid as fid
    from .extractors import Extractor as Extractor
    from .extractors import extractor_for as extractor_for
    from .figures import grid as grid
    from .fitting import fit as fit
    from .guidance import AutoGuided as AutoGuided
    from .guidance import Guided as Guided
    from .guidance import drop_labels as drop_labels
    from .losses import LogNormal as LogNormal
    from .losses import MinSNR as MinSNR
    from .losses import denoising_loss as denoising_loss
    from .losses import huber as huber
    from .losses import on_steps as on_steps
    from .losses import uniform as uniform
    from .networks.annotated import AnnotatedUNet as AnnotatedUNet
    from .networks.classifier import Classifier as Classifier
    from .networks.double_conv import DoubleConvUNet as DoubleConvUNet
    from .networks.unet import UNet as UNet
    from .optimizers import adamw as adamw
    from .optimizers import muon as muon
    from .samplers import ddim as ddim
    from .samplers import ddpm as ddpm
    from .samplers import dpmpp as dpmpp
    from .samplers import heun as heun
    from .samplers import karras_grid as karras_grid
    from .samplers import sample as sample
    from .samplers import samples as samples
    from .samplers import states as states
    from .samplers import uniform_grid as uniform_grid
    from .schedules import Cosine as Cosine
    from .schedules import Discrete as Discrete
    from .schedules import Flow as Flow
    from .schedules import Karras as Karras
    from .schedules import Linear as Linear
    from .schedules import Quadratic as Quadratic
    from .schedules import Sigmoid as Sigmoid
    from .schedules import cosine_betas as cosine_betas
    from .schedules import linear_betas as linear_betas
    from .schedules import quadratic_betas as quadratic_betas
    from .schedules import sigmoid_betas as sigmoid_betas
    from .targets import clean as clean
    from .targets import flow as flow
    from .targets import noise as noise
    from .targets import velocity as velocity
    from .training import train as train
    from .training import warmup_constant as warmup_constant
    from .training import warmup_linear as warmup_linear

__version__ = "0.1.0"

_PUBLIC = {
    "augmentation": ["augmented", "mirror", "symmetries"],
    "checkpoint": ["load"],
    "classification": ["accuracy", "train_classifier"],
    "data.batches": ["batches"],
    "data.images": ["Images", "to_uint8", "to_unit"],
    "data.sources": ["load_images"],
    "denoiser": ["Clipped", "Denoiser"],
    "ema": ["EMA", "constant_decay", "power_decay"],
    "evaluation": ["fid"],
    "extractors": ["Extractor", "extractor_for"],
    "figures": ["grid"],
    "fitting": ["fit"],
    "guidance": ["AutoGuided", "Guided", "drop_labels"],
    "losses": ["LogNormal", "MinSNR", "denoising_loss", "huber", "on_steps", "uniform"],
    "networks.annotated": ["AnnotatedUNet"],
    "networks.classifier": ["Classifier"],
    "networks.double_conv": ["DoubleConvUNet"],
    "networks.unet": ["UNet"],
    "optimizers": ["adamw", "muon"],
    "samplers": ["ddim", "ddpm", "dpmpp", "heun", "karras_grid", "sample", "samples", "states", "uniform_grid"],
    "schedules": [
        "Cosine",
        "Discrete",
        "Flow",
        "Karras",
        "Linear",
        "Quadratic",
        "Sigmoid",
        "cosine_betas",
        "linear_betas",
        "quadratic_betas",
        "sigmoid_betas",
    ],
    "targets": ["clean", "flow", "noise", "velocity"],
    "training": ["train", "warmup_constant", "warmup_linear"],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
