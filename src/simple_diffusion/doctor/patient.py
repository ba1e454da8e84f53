"""What is examined: a model, its data and its training run."""

import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.images import Images, to_unit
from ..data.info import DataInfo
from ..data.labels import labels_for
from ..denoiser import Denoiser
from ..denoising_error import LEVELS, chosen_from, model_error, wiener_error
from ..errors import CheckpointError, DataError, SimpleDiffusionError
from ..model.build import ModelSpec
from ..model.config import Config
from ..model.generate import generate
from ..model.migrate import migrated
from ..model.model_file import Model, model_file, read
from ..randomness import permutation
from ..run.checkpoint import Checkpoint, latest
from ..run.log import FILE, row_of
from ..run.steps import learner
from ..system.files import from_json, read_tensors
from ..validation import keep_out

PROBE = 128  # training images, and as many held-out images, on which the denoising error is measured
SAMPLES = 64  # samples of a diagnosis: one batch of the sampler
MEASURED = 4000  # at most so many images for a statistic of the data
MIDDLE = (LEVELS > 0.15) & (LEVELS < 3)
"""The noise levels at which images take shape. Below, only grain is removed; above, the best answer is the mean."""
MAX_EXCESS = 1000.0
MAX_GROWTH = 5.0
"""Growth of the weights in the first thousand steps above which the outputs of the network are only a symptom.

Healthy runs stay below 2; a learning rate a hundred times too high reaches 13 and more.
"""


class Skip(SimpleDiffusionError):
    """Why a diagnosis measures nothing, as a clause."""


@dataclass(frozen=True)
class Finding:
    """The result of one diagnosis.

    excess    the measurement over its bound, in [0, 1000]: above 1 something is wrong
    evidence  the measurement and its bound in a sentence
    fix       what to do if something is wrong
    """

    excess: float
    evidence: str
    fix: str

    def __post_init__(self) -> None:
        excess = self.excess if math.isfinite(self.excess) else MAX_EXCESS
        object.__setattr__(self, "excess", min(max(excess, 0.0), MAX_EXCESS))


@dataclass(frozen=True, eq=False)
class Patient:
    """A model, its data and its training run, as far as they are available.

    path        a run folder or a model file
    model       None if some of its weights are not finite
    non_finite  the names of these weights, in the order of the network
    images      the data, or None
    test        held-out images, or None
    checkpoint  the newest one of the run, or None
    log         (step, loss) for each row; empty without a log
    seed        of the samples
    """

    path: Path
    spec: ModelSpec
    model: Model | None
    non_finite: tuple[str, ...] = ()
    images: Images | None = None
    test: Images | None = None
    checkpoint: Checkpoint | None = None
    log: list[tuple[int, float]] = field(default_factory=list)
    seed: int = 0

    @property
    def config(self) -> Config:
        return self.spec.config

    @property
    def info(self) -> DataInfo:
        return self.spec.info

    @cached_property
    def split(self) -> tuple[Images, Images | None]:
        """(training images, held-out images or None)."""
        assert self.images is not None
        if self.config.held_out:
            return keep_out(self.images, self.config.held_out, self.config.seed)
        return self.images, self.test

    @cached_property
    def measured_pixels(self) -> Tensor:
        """At most MEASURED training images, fewer if they are large, uint8 `[N, C, H, W]`."""
        train, _ = self.split
        return train.pixels[chosen_from(train, MEASURED)]

    @property
    def denoiser(self) -> Denoiser:
        assert self.model is not None
        return self.model.denoiser

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @cached_property
    def raw(self) -> Denoiser:
        """The denoiser with the raw weights of the checkpoint."""
        return self._from_checkpoint("model.")

    @cached_property
    def average(self) -> Denoiser:
        """The denoiser with the EMA weights of the checkpoint."""
        return self._from_checkpoint("average.")

    def _from_checkpoint(self, prefix: str) -> Denoiser:
        assert self.checkpoint is not None
        denoiser = self.spec.denoiser()
        weights = {n.removeprefix(prefix): t for n, t in self.checkpoint.tensors.items() if n.startswith(prefix)}
        try:
            denoiser.load_state_dict(weights)
        except RuntimeError:  # the model file was replaced
            raise Skip("the checkpoint belongs to another network") from None
        return denoiser.to(self.device).eval().requires_grad_(False)

    def probe(self, images: Images) -> tuple[Tensor, Tensor | None]:
        """PROBE of the images in [-1, 1] and their labels, on the device of the model."""
        some = images[permutation(len(images), 0, "doctor")[:PROBE]]
        labels = None if some.labels is None or not self.info.classes else some.labels.to(self.device)
        return to_unit(some.pixels).to(self.device), labels

    @cached_property
    def error(self) -> Tensor:
        """Denoising error on training images, at each of LEVELS."""
        return model_error(self.denoiser, *self.probe(self.split[0]))

    @cached_property
    def wiener(self) -> Tensor:
        """Denoising error of the linear (Wiener) denoiser on images that it was not fitted to, at each of LEVELS."""
        return wiener_error(to_unit(self.measured_pixels))

    @cached_property
    def relative_error(self) -> float:
        """`error` over `wiener` at medium noise levels; with the raw weights if there is a checkpoint."""
        if self.checkpoint is None:
            return ratio(self.error, self.wiener)
        return ratio(model_error(self.raw, *self.probe(self.split[0])), self.wiener)

    @cached_property
    def labels(self) -> Tensor | None:
        """Labels of SAMPLES samples, in the class frequencies of the data if it is available."""
        return labels_for(self.info, self.images, SAMPLES, 0)

    def sample(self, **changed) -> Tensor:
        """SAMPLES samples in [-1, 1], with some settings changed; the initial noise is always the same."""
        assert self.model is not None
        model = replace(self.model, spec=self.spec.changed(**changed))
        return to_unit(generate(model, SAMPLES, self.labels, self.seed))

    @cached_property
    def samples(self) -> Tensor:
        """SAMPLES samples with the settings of the model."""
        return self.sample()

    @cached_property
    def initial(self) -> Denoiser:
        """The denoiser with the initial weights, which follow from the seed, on the CPU."""
        denoiser, _ = learner(self.spec, torch.device("cpu"))
        return denoiser

    @cached_property
    def growth(self) -> float:
        """Norm of a weight over its initial norm: the median over the weights that were not initialized to 0."""
        before, now = (
            torch.stack([weight.detach().cpu().double().norm() for weight in network.parameters()])
            for network in (self.initial, self.denoiser)
        )
        return (now / before)[before > 0].median().item()

    @property
    def max_growth(self) -> float:
        """The bound of `growth`. It rises with the square root of the steps, as a random walk does."""
        assert self.model is not None
        return MAX_GROWTH * math.sqrt(max(self.model.step / 1000, 1.0))

    def missing(self, need: str) -> str | None:
        """Why a diagnosis that needs this has to be skipped, or None."""
        no_model = "the weights are not finite" if self.model is None else None
        return {
            "weights": no_model,
            "network": no_model or ("the weights have diverged" if self.growth > self.max_growth else None),
            "data": "the data is not available" if self.images is None else None,
            "held-out images": "there are no held-out images" if self.images is None or not self.split[1] else None,
            "checkpoint": "there is no checkpoint" if self.checkpoint is None else None,
            "labels": "the model has no classes" if self.info.classes < 2 else None,
        }[need]


def ratio(error: Tensor, reference: Tensor) -> float:
    """The geometric mean, over the medium noise levels, of one error over another, each `[13]`; in [0.01, 100]."""
    return (error[MIDDLE] / reference[MIDDLE].clamp(min=1e-12)).clamp(0.01, 100).log().mean().exp().item()


def load_patient(path: Path, device: str = "auto", precision: str = "auto") -> Patient:
    """Read a run folder or a single model file. Raises CheckpointError if it is neither."""
    non_finite: tuple[str, ...] = ()
    try:
        model = read(path, device, precision)
        spec = model.spec
    except CheckpointError:
        model, file = None, model_file(path)
        if not file.is_file():
            raise
        tensors, record = read_tensors(file)
        non_finite = tuple(name for name, tensor in tensors.items() if not tensor.isfinite().all())
        if not non_finite:
            raise  # something else is wrong with the file
        spec = _spec_in(record, file)
        with torch.device("meta"):
            order = {name: place for place, name in enumerate(spec.denoiser().state_dict())}
        non_finite = tuple(sorted(non_finite, key=lambda name: order.get(name, len(order))))
    checkpoint, log = None, []
    if path.is_dir():
        with suppress(CheckpointError):
            checkpoint = latest(path)
        with suppress(OSError):
            rows = map(row_of, (path / FILE).read_text(encoding="utf-8", errors="replace").splitlines())
            log = [(step, loss) for step, loss, _ in filter(None, rows)]
    return Patient(path, spec, model, non_finite, checkpoint=checkpoint, log=log)


def _spec_in(record: dict[str, Any], file: Path) -> ModelSpec:
    """The configuration and the data in the record of a model file. Raises CheckpointError."""
    try:
        record = migrated(record)
        config, info = from_json(Config, record["config"]), from_json(DataInfo, record["info"])
        return ModelSpec(replace(config, precision="fp32"), info)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file} is damaged: its configuration cannot be read") from None


def attach(patient: Patient, images: Images | None, test: Images | None) -> Patient:
    """The patient with its data, and held-out images of the same kind. Raises DataError if the shapes differ."""
    if images is not None and images.shape != patient.info.shape:
        given, wanted = (" x ".join(map(str, shape)) for shape in (images.shape, patient.info.shape))
        raise DataError(
            f"the images have shape {given} (channels, height, width) and the model has {wanted}: "
            "name the training data with --data"
        )
    if images is not None and test is not None:
        test = test.new_to(images)
    images, test = (None if one is None else patient.info.in_own_classes(one) for one in (images, test))
    return replace(patient, images=images, test=test)
