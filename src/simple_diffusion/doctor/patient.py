"""What is examined: a model, its data and its training run."""

import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..data.images import Images, to_unit
from ..data.info import DataInfo
from ..data.labels import labels_for
from ..denoiser import Denoiser
from ..denoising_error import LEVELS, model_error, wiener_error
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

PROBE = 128  # real images that the network denoises in one diagnosis, and as many unseen ones
DRAWN = 64  # images drawn in one: a batch of the sampler
MEASURED = 4000  # most images behind a statistic of the data
MIDDLE = (LEVELS > 0.15) & (LEVELS < 3)
"""The noise levels at which images take shape: below only grain is removed, above the answer is the average image."""
MOST = 1000.0  # the largest excess: beyond it, more says no more
RUNAWAY = 5.0
"""Growth of the weights in the first thousand steps from which on the network's answers are symptoms: healthy runs keep
below 2, a learning rate a hundred times too high makes 13 and more."""


@dataclass(frozen=True)
class Finding:
    """What a diagnosis measured.

    excess    the measure over its bound: above 1 it is a mistake, in [0, 1000]
    evidence  the measure in a sentence
    mend      what to do where it is one
    """

    excess: float
    evidence: str
    mend: str

    def __post_init__(self) -> None:
        excess = self.excess if math.isfinite(self.excess) else MOST
        object.__setattr__(self, "excess", min(max(excess, 0.0), MOST))


@dataclass(frozen=True, eq=False)
class Patient:
    """A model and all that can be found of its making.

    path        a run folder or a model's file
    model       None where its weights are not all finite; `bad` names those, in the network's order
    images      the data, or None where they could not be had
    test        unseen images, or None
    checkpoint  the newest of the run, or None
    log         (step, loss) a row; empty without a log
    seed        of the noise that is drawn from
    """

    path: Path
    spec: ModelSpec
    model: Model | None
    bad: tuple[str, ...] = ()
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
        """(images that were trained on, unseen ones)."""
        assert self.images is not None
        if self.config.held_out:
            return keep_out(self.images, self.config.held_out, self.config.seed)
        return self.images, self.test

    @property
    def denoiser(self) -> Denoiser:
        assert self.model is not None
        return self.model.denoiser

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @cached_property
    def raw(self) -> Denoiser:
        """The weights themselves, not their average, from the checkpoint."""
        return self._of_checkpoint("model.")

    @cached_property
    def average(self) -> Denoiser:
        """Their average at the same step."""
        return self._of_checkpoint("average.")

    def _of_checkpoint(self, part: str) -> Denoiser:
        assert self.checkpoint is not None
        denoiser = self.spec.denoiser()
        weights = {n.removeprefix(part): t for n, t in self.checkpoint.tensors.items() if n.startswith(part)}
        try:
            denoiser.load_state_dict(weights)
        except RuntimeError:  # the model's file was exchanged
            raise Unknown("the checkpoint beside it is of another network") from None
        return denoiser.to(self.device).eval().requires_grad_(False)

    def probe(self, images: Images) -> tuple[Tensor, Tensor | None]:
        """PROBE of the images in [-1, 1] with their labels, on the device."""
        some = images[permutation(len(images), 0, "doctor")[:PROBE]]
        labels = None if some.labels is None or not self.info.classes else some.labels.to(self.device)
        return to_unit(some.pixels).to(self.device), labels

    @cached_property
    def error(self) -> Tensor:
        """Denoising error on images of the training set, at each of LEVELS."""
        return model_error(self.denoiser, *self.probe(self.split[0]))

    @cached_property
    def blur(self) -> Tensor:
        """What the best blur leaves of them, at each of LEVELS."""
        train = self.split[0]
        return wiener_error(to_unit(train.pixels[permutation(len(train), 0, "doctor")[:MEASURED]]))

    @cached_property
    def against_blur(self) -> float:
        """The network's error over that of the best blur, at the middle levels; of the weights themselves, if known."""
        if self.checkpoint is None:
            return ratio(self.error, self.blur)
        return ratio(model_error(self.raw, *self.probe(self.split[0])), self.blur)

    @cached_property
    def labels(self) -> Tensor | None:
        """Of DRAWN samples, in the frequencies of the data where they are known."""
        return labels_for(self.info, self.images, DRAWN, 0)

    def drawn(self, **changed) -> Tensor:
        """DRAWN samples in [-1, 1], with some settings changed: always of the same noise."""
        assert self.model is not None
        model = replace(self.model, spec=self.spec.changed(**changed))
        return to_unit(generate(model, DRAWN, self.labels, self.seed))

    @cached_property
    def samples(self) -> Tensor:
        """DRAWN samples as `sample` draws them."""
        return self.drawn()

    @cached_property
    def start(self) -> Denoiser:
        """The weights before the first step, which follow from the seed, on the CPU."""
        denoiser, _ = learner(self.spec, torch.device("cpu"))
        return denoiser

    @cached_property
    def growth(self) -> float:
        """How many times as large as before the first step a layer is: the median of those that did not begin at 0."""
        before, now = (
            torch.stack([weight.detach().cpu().double().norm() for weight in network.parameters()])
            for network in (self.start, self.denoiser)
        )
        return (now / before)[before > 0].median().item()

    @cached_property
    def runaway(self) -> float:
        """`growth` over its bound, which rises with the root of the steps: weights walk about as if at random."""
        assert self.model is not None
        return self.growth / (RUNAWAY * math.sqrt(max(self.model.step / 1000, 1.0)))

    def lacks(self, need: str) -> str | None:
        """Why there is nothing to look at for a diagnosis that needs this, or None."""
        bad = "its weights are not finite" if self.model is None else None
        return {
            "weights": bad,
            "network": bad or ("its weights ran away" if self.runaway > 1 else None),
            "data": "the data could not be had" if self.images is None else None,
            "unseen images": None if self.images is not None and self.split[1] is not None else "no images are unseen",
            "checkpoint": None if self.checkpoint is not None else "there is no checkpoint of its training",
            "labels": None if self.info.classes > 1 else "it knows no labels",
        }[need]


def ratio(one: Tensor, other: Tensor) -> float:
    """The geometric mean, over the middle levels, of one error over another, each `[13]`; from 1/100 to 100."""
    return (one[MIDDLE] / other[MIDDLE].clamp(min=1e-12)).clamp(0.01, 100).log().mean().exp().item()


def load_patient(path: Path, device: str = "auto", precision: str = "auto") -> Patient:
    """What a run folder or a lone model file holds. Raises CheckpointError if it is neither."""
    bad: tuple[str, ...] = ()
    try:
        model = read(path, device, precision)
        spec = model.spec
    except CheckpointError:
        model = None
        file = model_file(path)
        if not file.is_file():
            raise
        tensors, record = read_tensors(file)
        bad = tuple(name for name, tensor in tensors.items() if not tensor.isfinite().all())
        if not bad:
            raise  # something else is wrong with it
        try:
            record = migrated(record)
            config, info = from_json(Config, record["config"]), from_json(DataInfo, record["info"])
            spec = ModelSpec(replace(config, precision="fp32"), info)
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{file} is damaged: it does not say what it is") from None
        with torch.device("meta"):
            order = {name: place for place, name in enumerate(spec.denoiser().state_dict())}
        bad = tuple(sorted(bad, key=lambda name: order.get(name, len(order))))
    checkpoint, log = None, []
    if path.is_dir():
        with suppress(CheckpointError):
            checkpoint = latest(path)
        with suppress(OSError):
            rows = map(row_of, (path / FILE).read_text(errors="replace").splitlines())
            log = [(step, loss) for step, loss, _ in filter(None, rows)]
    return Patient(path, spec, model, bad, checkpoint=checkpoint, log=log)


def attach(patient: Patient, images: Images | None, test: Images | None) -> Patient:
    """The patient with its data, and unseen images of the same kind. Raises DataError where the shapes differ."""
    if images is not None and images.shape != patient.info.shape:
        given, wanted = (" x ".join(map(str, shape)) for shape in (images.shape, patient.info.shape))
        raise DataError(f"the images are {given} (channels, height, width) and the model's {wanted}: name its data")
    images, test = (None if one is None else patient.info.in_own_classes(one) for one in (images, test))
    return replace(patient, images=images, test=test)


class Unknown(SimpleDiffusionError):
    """What keeps a diagnosis from saying anything, in a clause."""
