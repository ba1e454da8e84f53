"""What is wrong with a trained model: each diagnosis one function that measures, ranked by how far past its bound.

A diagnosis divides its measure by a bound that healthy runs keep (docs/doctor.md has the runs): above 1 it accuses. A
finding that says why stands before one that only says what is seen, and of each kind the one that is furthest past its
bound stands first.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import Model, model_file, read
from .config import Card, Config, build, build_sampler, build_times, schedule_of, views_of
from .copies import NEIGHBOUR, find_copies
from .data.images import Images, to_unit
from .denoiser import Denoiser
from .drawing import draw
from .errors import CheckpointError, DataError, SimpleDiffusionError
from .evaluation import labels_like
from .files import from_json, read_tensors
from .guidance import Guided
from .levels import LEVELS, blur_error, model_error, noised
from .log import FILE, row_of
from .randomness import permutation
from .run import learner
from .samplers import GRIDS, SAMPLERS, SOLVERS, karras_grid, sample
from .state import Checkpoint, latest
from .validation import keep_out

PROBE = 128  # real images that the network denoises in one diagnosis, and as many unseen ones
DRAWN = 64  # images drawn in one: a batch of the sampler
FINE = 40  # steps of dpmpp that stand for the exact solution
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
    config: Config
    card: Card
    model: Model | None
    bad: tuple[str, ...] = ()
    images: Images | None = None
    test: Images | None = None
    checkpoint: Checkpoint | None = None
    log: list[tuple[int, float]] = field(default_factory=list)
    seed: int = 0

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
        denoiser = build(self.config, self.card)
        weights = {n.removeprefix(part): t for n, t in self.checkpoint.tensors.items() if n.startswith(part)}
        try:
            denoiser.load_state_dict(weights)
        except RuntimeError:  # the model's file was exchanged
            raise Unknown("the checkpoint beside it is of another network") from None
        return denoiser.to(self.device).eval().requires_grad_(False)

    def probe(self, images: Images) -> tuple[Tensor, Tensor | None]:
        """PROBE of the images in [-1, 1] with their labels, on the device."""
        some = images[permutation(len(images), 0, "doctor")[:PROBE]]
        labels = None if some.labels is None or not self.card.classes else some.labels.to(self.device)
        return to_unit(some.pixels).to(self.device), labels

    @cached_property
    def error(self) -> Tensor:
        """Denoising error on images of the training set, at each of LEVELS."""
        return model_error(self.denoiser, *self.probe(self.split[0]))

    @cached_property
    def blur(self) -> Tensor:
        """What the best blur leaves of them, at each of LEVELS."""
        train = self.split[0]
        return blur_error(to_unit(train.pixels[permutation(len(train), 0, "doctor")[:MEASURED]]))

    @cached_property
    def against_blur(self) -> float:
        """The network's error over that of the best blur, at the middle levels; of the weights themselves, if known."""
        if self.checkpoint is None:
            return ratio(self.error, self.blur)
        return ratio(model_error(self.raw, *self.probe(self.split[0])), self.blur)

    @cached_property
    def labels(self) -> Tensor | None:
        """Of DRAWN samples, in the frequencies of the data where they are known."""
        if not self.card.classes:
            return None
        if self.images is not None and self.images.labels is not None:
            return labels_like(self.images, DRAWN, 0)
        return torch.arange(DRAWN) % self.card.classes

    def drawn(self, **changed) -> Tensor:
        """DRAWN samples in [-1, 1], with some settings changed: always of the same noise."""
        assert self.model is not None
        model = replace(self.model, config=replace(self.config, **changed))
        return to_unit(draw(model, DRAWN, self.labels, self.seed))

    @cached_property
    def samples(self) -> Tensor:
        """DRAWN samples as `sample` draws them."""
        return self.drawn()

    @cached_property
    def start(self) -> Denoiser:
        """The weights before the first step, which follow from the seed, on the CPU."""
        denoiser, _ = learner(self.config, self.card, torch.device("cpu"))
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
            "labels": None if self.card.classes > 1 else "it knows no labels",
        }[need]


def ratio(one: Tensor, other: Tensor) -> float:
    """The geometric mean, over the middle levels, of one error over another, each `[13]`; from 1/100 to 100."""
    return (one[MIDDLE] / other[MIDDLE].clamp(min=1e-12)).clamp(0.01, 100).log().mean().exp().item()


def gathered(path: Path, device: str = "auto", precision: str = "auto") -> Patient:
    """What a run folder or a lone model file holds. Raises CheckpointError if it is neither."""
    bad: tuple[str, ...] = ()
    try:
        model = read(path, device, precision)
        config, card = model.config, model.card
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
            config, card = from_json(Config, record["config"]), from_json(Card, record["card"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{file} is damaged: it does not say what it is") from None
        config = replace(config, precision="fp32")
        with torch.device("meta"):
            order = {name: place for place, name in enumerate(build(config, card).state_dict())}
        bad = tuple(sorted(bad, key=lambda name: order.get(name, len(order))))
    checkpoint, log = None, []
    if path.is_dir():
        with suppress(CheckpointError):
            checkpoint = latest(path)
        with suppress(OSError):
            rows = map(row_of, (path / FILE).read_text(errors="replace").splitlines())
            log = [(step, loss) for step, loss, _ in filter(None, rows)]
    return Patient(path, config, card, model, bad, checkpoint=checkpoint, log=log)


def attach(patient: Patient, images: Images | None, test: Images | None) -> Patient:
    """The patient with its data, and unseen images of the same kind. Raises DataError where the shapes differ."""
    if images is not None and images.shape != patient.card.shape:
        given, wanted = (" x ".join(map(str, shape)) for shape in (images.shape, patient.card.shape))
        raise DataError(f"the images are {given} (channels, height, width) and the model's {wanted}: name its data")
    images, test = (None if one is None else patient.card.in_own_classes(one) for one in (images, test))
    return replace(patient, images=images, test=test)


# --- the data


def data_changed(patient: Patient) -> Finding | None:
    """Are the images still those that it was trained on?"""
    assert patient.images is not None
    same = patient.images.fingerprint == patient.card.fingerprint
    return Finding(
        0.0 if same else MOST,
        f"the images of {patient.images.name} are {'' if same else 'not '}those that the model was trained on",
        f"train anew on {patient.images.name}, or name the old images with --data",
    )


def pixel_range(patient: Patient) -> Finding:
    """Do the pixels fill the range from black to white? Half of it is the bound: photographs fill nearly all of it.

    A loader that scales twice, or not at all, leaves half the range or 1/255 of it.
    """
    low, high = patient.card.mean - 1.7 * patient.card.std, patient.card.mean + 1.7 * patient.card.std
    how = "by the mean and deviation on its card"
    if patient.images is not None:
        counts = torch.bincount(patient.images.pixels.flatten(), minlength=256).double()
        share = counts.cumsum(0) / counts.sum()
        low, high = ((share >= q).nonzero()[0].item() / 127.5 - 1 for q in (0.002, 0.998))
        how = "but for 0.4 %"
    span = max(high - low, 1e-3)
    return Finding(
        1.0 / span,
        f"pixels lie from {low:.2f} to {high:.2f} of [-1, 1], {how}: mean {patient.card.mean:.2f}, deviation "
        f"{patient.card.std:.3f}",
        "save the images as uint8 from 0 to 255, or floats that use all of [0, 1] or [-1, 1], and train anew; "
        f"look at them with: simple-diffusion data {patient.card.name}",
    )


# --- the settings


def terminal_snr(patient: Patient) -> Finding:
    """How much of an image is left where the sampler starts from pure noise (Lin et al. 2024, section 3.1)?

    The bound is 0.05 of the noise: Stable Diffusion's 0.068 shows in its brightness, and all our schedules keep 0.03.
    """
    schedule = schedule_of(patient.config)
    start = GRIDS[patient.config.grid](schedule, patient.config.sampler_steps)[:1]
    left = schedule.alpha(start).item() / schedule.sigma(start).item() * math.hypot(patient.card.mean, patient.card.std)
    return Finding(
        left / 0.05,
        f"the sampler starts from pure noise where the {patient.config.schedule} schedule leaves images at "
        f"{left:.3f} of the noise",
        "train with a schedule that ends in noise: --set schedule=karras --set timesteps=0 --set grid=karras, or for a "
        "table of betas --set schedule=linear",
    )


def trained_levels(patient: Patient) -> Finding:
    """Does training visit all the noise levels that the sampler walks through?

    Three bands that decide shape, parts and grain each get 10 % of the draws in every preset: the bound is 2 %.
    """
    schedule, times = schedule_of(patient.config), build_times(patient.config, patient.card)
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    level = schedule.ratio(times(u, schedule)) / patient.card.std
    bands = {"above 1.5": level > 1.5, "from 0.3 to 1.5": (level >= 0.3) & (level <= 1.5), "below 0.3": level < 0.3}
    name, share = min(((name, band.double().mean().item()) for name, band in bands.items()), key=lambda pair: pair[1])
    return Finding(
        0.02 / max(share, 1 / 2000),
        f"{share:.1%} of the training is at noise {name} times the data's deviation",
        "let training visit every level: --set level_mean=-0.5 --set level_std=1.2",
    )


# --- the weights


def non_finite(patient: Patient) -> Finding:
    """The first layer, in the order of the computation, whose weights or answers on real images are not finite."""
    if patient.bad:
        named = patient.bad[0].removeprefix("net.")
        more = f", and {len(patient.bad) - 1} more" if len(patient.bad) > 1 else ""
        return Finding(MOST, f"the weights {named} hold NaN or infinity{more}", NON_FINITE_MEND)
    kept = {} if patient.checkpoint is None else patient.checkpoint.tensors
    for name, tensor in kept.items():
        if not tensor.isfinite().all():
            return Finding(MOST, f"{name} of the last checkpoint holds NaN or infinity", NON_FINITE_MEND)
    if lost := patient.lacks("network"):
        raise Unknown(lost)
    found: list[str] = []

    def hook(name: str):
        def look(module: nn.Module, inputs, output) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return look

    layers = [pair for pair in patient.denoiser.net.named_modules() if pair[0]]
    handles = [module.register_forward_hook(hook(name)) for name, module in layers]
    try:
        images = patient.images
        x0 = torch.zeros(8, *patient.card.shape) if images is None else to_unit(images.pixels[:8])
        cond = torch.arange(len(x0)) % patient.card.classes if patient.card.classes else None
        for number, level in enumerate(LEVELS):
            t = patient.denoiser.schedule.time_of(level[None])
            alpha = patient.denoiser.schedule.alpha(t).item()
            x = alpha * noised(x0, level.item(), number)
            with torch.no_grad():
                patient.denoiser(x.to(patient.device), t.float(), None if cond is None else cond.to(patient.device))
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return Finding(MOST, f"the answers of {found[0]} are not finite on real images", NON_FINITE_MEND)
    return Finding(0.0, f"all weights and all answers of {len(layers)} layers are finite", NON_FINITE_MEND)


NON_FINITE_MEND = (
    "train anew with a lower learning rate (--set lr=1e-3) in --precision fp32, or go back to an older copy"
)


def ema_age(patient: Patient) -> Finding:
    """How much of the weights before the first step is still in the average?

    The average lies between there and where training is now: its place on that line, 0 at the newest weights. A
    memory of 5 % of the run leaves a few hundredths; the bound is a quarter, one part of the old in three of the new.
    """
    whole = part = 0.0
    kept = dict(patient.average.named_parameters())
    before = dict(patient.start.named_parameters())
    for name, now in patient.raw.named_parameters():
        way = before[name].to(now) - now
        whole += way.square().sum().item()
        part += (way * (kept[name] - now)).sum().item()
    share = part / max(whole, 1e-12)
    return Finding(
        3 * share / max(1 - share, 1e-9),
        f"{share:.0%} of the averaged weights are those from before the first step",
        "let the average forget: --set ema_decay=0 --set ema=0.05, or train for longer",
    )


def ema_bad(patient: Patient) -> Finding:
    """Is the average a worse denoiser than the weights themselves? It is better or equal in a healthy run."""
    probe = patient.probe(patient.split[0])
    worse = ratio(model_error(patient.average, *probe), model_error(patient.raw, *probe))
    return Finding(
        (worse - 1) / 0.25,
        f"the averaged weights err {worse:.2f} times as much as the weights themselves",
        "the training is sound and its average is not: --set ema=0.05 --set ema_decay=0, or look at the code of the "
        "average",
    )


# --- the training


def diverged(patient: Patient) -> Finding:
    """Did the weights run away, or the loss rise again after it had fallen?

    A learning rate that is too high throws all the weights far from where they began. The median layer's growth is
    measured: a single layer that is damaged says nothing of the learning rate.
    """
    rise, said = 1.0, ""
    losses = torch.tensor([loss for _, loss in patient.log], dtype=torch.float64)
    if len(losses) >= 10 and losses.isfinite().all():
        mean = losses.unfold(0, max(len(losses) // 10, 3), 1).mean(1)
        rise = (mean[-1] / mean.min()).item()
        said = f", and the loss ended at {mean[-1]:.3g} after {mean.min():.3g}"
    return Finding(
        max(patient.runaway, (rise - 1) / 0.5),
        f"the weights are {patient.growth:.2f} times as large as before the first step{said}",
        f"train anew with a lower learning rate: --set lr={patient.config.lr / 10:.2g}",
    )


def under_trained(patient: Patient) -> Finding:
    """Does the network denoise better than the best blur of the same images?

    A blur knows how smooth the images are and nothing else, so who does not beat it has not begun to see shapes.
    """
    seen = (
        "" if patient.checkpoint is None else f" after {patient.checkpoint.numbers.n * patient.config.batch:,} images"
    )
    return Finding(
        patient.against_blur / 0.9,
        f"at middle noise the network errs {patient.against_blur:.2f} times as much as the best blur{seen}",
        "train for longer: --for 10min, or more; --dry-run says how long it takes to be recognisable",
    )


def over_fitting(patient: Patient) -> Finding:
    """Does it denoise images that it has not seen worse than those it was trained on?"""
    unseen = patient.split[1]
    assert unseen is not None
    gap = ratio(model_error(patient.denoiser, *patient.probe(unseen)), patient.error)
    return Finding(
        (gap - 1) / 0.3,
        f"on unseen images the error is {gap:.2f} times that on training images",
        OVER_FITTING_MEND,
    )


def copies(patient: Patient) -> Finding:
    """Are samples nearer to one training image than all but 1 % of these are to each other?

    A fifth of the samples is the bound: twenty times what chance gives, and 64 samples can tell it.
    """
    train = patient.split[0]
    if len(train) < NEIGHBOUR + 2:
        raise Unknown(f"{len(train)} images are too few to tell near from far")
    pixels = train.pixels[permutation(len(train), 0, "doctor")[:MEASURED]]
    views = [to_unit(view(pixels)).flatten(1) for view in views_of(patient.config, patient.card)]
    found = find_copies(patient.samples.flatten(1), views, None)
    return Finding(
        found.share / 0.2,
        f"{found.near} of {DRAWN} samples lie nearer to one training image than 99 % of these lie to each other",
        OVER_FITTING_MEND,
    )


OVER_FITTING_MEND = "use more images, or --preset few-images, which mirrors, drops out and stops on a held-out loss"


# --- the drawing


def labels_ignored(patient: Patient) -> Finding:
    """Does the network err more when it is told a wrong label, or none? And does the sampler pass the label on?

    Measured at high noise, where the label says most; the bound is 0.5 % more.
    """
    if patient.config.guidance == 0:
        return Finding(MOST, "guidance is 0: the sampler ignores the label", "draw with --guidance 1.5")
    if ratio(patient.error, patient.blur) > 1:
        raise Unknown("it has not learned enough to tell")
    x0, cond = patient.probe(patient.split[0])
    if cond is None:
        raise Unknown("the data does not have the labels that it knows")
    classes = patient.card.classes

    def of(labels: Tensor) -> Tensor:
        return model_error(patient.denoiser, x0, labels)[LEVELS > 0.5].log().mean()

    gain = (torch.minimum(of((cond + 1) % classes), of(torch.full_like(cond, classes))) - of(cond)).exp().item() - 1
    worth = label_share(patient.split[0])
    why = (
        f"; the labels say {worth:.1%} of the pixels' variance, no more than chance, so check the labels of the data"
        if worth < 0.002
        else f"; the labels say {worth:.0%} of the pixels' variance"
    )
    return Finding(
        0.005 / max(gain, 5e-4),
        f"told a wrong label or none, the network errs {gain:.1%} more at high noise than with the right one{why}",
        "check that each label belongs to its image (simple-diffusion data DATA draws them by class) and train with "
        "--set drop_labels=0.1",
    )


def label_share(images: Images) -> float:
    """Share of the pixels' variance that lies between the classes, less what chance would give."""
    some = images[permutation(len(images), 0, "doctor")[:MEASURED]]
    assert some.labels is not None
    x, labels = to_unit(some.pixels).flatten(1), some.labels
    within = sum(
        (x[labels == label] - x[labels == label].mean(0)).square().sum().item() for label in labels.unique().tolist()
    )
    total = (x - x.mean(0)).square().sum().item()
    n, k = len(x), len(labels.unique())
    return 1 - within / max(total, 1e-12) * (n - 1) / max(n - k, 1)


def guidance_untrained(patient: Patient) -> Finding:
    """Was the answer without a label, from which guidance pushes away, ever trained? 10 % of the labels is usual."""
    share = patient.config.drop_labels
    guided = patient.config.guidance not in (0.0, 1.0)
    return Finding(
        0.02 / max(share, 1e-3) if guided else 0.0,
        f"{share:.0%} of the labels were dropped in training, and guidance is {patient.config.guidance:g}",
        "draw with --guidance 1, or train with --set drop_labels=0.1",
    )


def guidance_saturating(patient: Patient) -> Finding:
    """How far does guidance push the denoiser's answers out of the range of images, from where they are clipped?

    Measured on real images at the middle of the interval in which it guides. The bound is a root mean square of 0.1
    more than without guidance.
    """
    config, cond = patient.config, patient.labels
    if config.guidance <= 1 or cond is None:
        raise Unknown("it is drawn without guidance")
    plain, schedule = patient.denoiser, patient.denoiser.schedule
    level = math.sqrt(max(config.guidance_low, 0.1) * min(config.guidance_high, 20.0)) * 2
    t = schedule.time_of(torch.tensor([level], dtype=torch.float64)).to(patient.device)
    if patient.images is None:
        x0 = patient.drawn(guidance=1.0)
    else:
        index = permutation(len(patient.images), 0, "doctor")[:DRAWN]
        x0 = to_unit(patient.images.pixels[index])
        cond = patient.images.labels[index] if patient.images.labels is not None else cond[: len(index)]
    x0, cond = x0.to(patient.device), cond.to(patient.device)
    x = schedule.alpha(t).to(x0) * noised(x0, level, 0)
    with torch.no_grad():
        each = [Guided(plain, scale, patient.card.classes)(x, t.float(), cond) for scale in (1.0, config.guidance)]
    before, after = ((x.abs() - 1).clamp(min=0).square().mean().sqrt().item() for x in each)
    return Finding(
        (after - before) / 0.1,
        f"guidance {config.guidance:g} pushes the answers {after:.2f} out of [-1, 1], {before:.2f} without it",
        "draw with a smaller --guidance: 1.5 to 3 is usual",
    )


def too_few_steps(patient: Patient) -> Finding:
    """How far are the samples from those of many steps and the same noise?

    For the solvers of the ODE the distance is image by image, in units of that between two samples; the samplers that
    add noise draw other images each time, so of them the grain is compared: the mean square of neighbours' difference.
    """
    fine = exact(patient)
    config, samples = patient.config, patient.samples
    if config.sampler not in SOLVERS:
        here, there = grain(samples), grain(fine)
        off = max(here / there, there / here) - 1
        said, bound = (
            f"the grain of {config.sampler}'s images differs by {off:.0%} from that of {FINE} exact steps",
            0.3,
        )
    else:
        apart = (fine - fine.roll(1, 0)).square().mean().sqrt().clamp(min=1e-6)
        off = ((samples - fine).square().mean().sqrt() / apart).item()
        said = (
            f"{config.sampler}'s images are {off:.0%} as far from those of {FINE} exact steps as two images are apart"
        )
        bound = 0.35
    other = "" if config.sampler == "dpmpp" else ", or with --sampler dpmpp --steps 20"
    steps = {"ddpm": 250, "ddpm-beta": 500, "ddim": 50}.get(config.sampler, 20)
    return Finding(
        off / bound,
        f"in {config.sampler_steps} steps {said}",
        f"draw with --steps {max(steps, 2 * config.sampler_steps)}{other}",
    )


def exact(patient: Patient) -> Tensor:
    """DRAWN samples of the same noise in FINE steps of dpmpp on the Karras grid, in [-1, 1]."""
    assert patient.model is not None
    denoiser, _, _ = build_sampler(patient.config, patient.card, patient.denoiser, patient.model.guide)
    times = karras_grid(patient.denoiser.schedule, FINE)
    shape = (DRAWN, *patient.card.shape)
    given = {"sampler": SAMPLERS["dpmpp"], "seed": patient.seed, "device": patient.device}
    return sample(denoiser, shape, times, patient.labels, **given).clamp(-1, 1)


def grain(images: Tensor) -> float:
    """Mean square of the difference of neighbouring pixels of images `[N, C, H, W]`."""
    return sum(images.diff(dim=d).square().mean().item() for d in (2, 3) if images.shape[d] > 1) + 1e-6


def drifting(patient: Patient) -> Finding:
    """Are the samples darker, brighter or tinted? Each channel's mean against the data's.

    The bound is 0.1 beyond two standard errors: 13 of the 256 levels of grey.
    """
    train = patient.split[0]
    data = to_unit(train.pixels[permutation(len(train), 0, "doctor")[:MEASURED]]).mean((2, 3))  # [N, C]
    drawn = patient.samples.mean((2, 3))
    off = drawn.mean(0) - data.mean(0)
    error = data.std(0, correction=0) / math.sqrt(DRAWN)
    beyond = (off.abs() - 2 * error).clamp(min=0).max().item()
    names = ("grey",) if len(off) == 1 else ("red", "green", "blue")
    said = ", ".join(f"{name} {value:+.2f}" for name, value in zip(names, off.tolist(), strict=True))
    return Finding(
        beyond / 0.1,
        f"means of {DRAWN} samples less those of the data, in [-1, 1]: {said} (± {2 * error.max():.2f} by chance)",
        "see the causes above; without one, train for longer, or with --set target=velocity",
    )


class Unknown(SimpleDiffusionError):
    """What keeps a diagnosis from saying anything, in a clause."""


@dataclass(frozen=True)
class Diagnosis:
    """One question: what is asked, what the answer needs, and whether it says why (a cause) or what is seen."""

    asks: str
    look: Callable[[Patient], Finding | None]
    needs: tuple[str, ...] = ()
    cause: bool = True


DIAGNOSES: dict[str, Diagnosis] = {
    "first layer that is not finite": Diagnosis("are all numbers finite?", non_finite),
    "other data": Diagnosis("is the data what it was?", data_changed, ("data",)),
    "pixel range": Diagnosis("do the pixels fill [-1, 1]?", pixel_range),
    "terminal SNR": Diagnosis("does the schedule end in noise?", terminal_snr),
    "levels not trained": Diagnosis("does training visit every noise level?", trained_levels),
    "EMA age": Diagnosis("has the average forgotten the start?", ema_age, ("network", "checkpoint")),
    "raw good but EMA bad": Diagnosis(
        "is the average as good as the weights?", ema_bad, ("network", "checkpoint", "data")
    ),
    "learning rate too high": Diagnosis("are weights and loss where they should be?", diverged, ("weights",)),
    "trained too little": Diagnosis("is it learning?", under_trained, ("network", "data")),
    "over-fitting": Diagnosis("are unseen images as easy?", over_fitting, ("network", "unseen images")),
    "copies": Diagnosis("are the samples copies?", copies, ("network", "data")),
    "labels ignored": Diagnosis("do the labels matter?", labels_ignored, ("network", "data", "labels")),
    "guidance never trained": Diagnosis("was no label trained?", guidance_untrained, ("labels",)),
    "guidance saturating": Diagnosis("does guidance leave the range?", guidance_saturating, ("network", "labels")),
    "too few steps": Diagnosis("are the steps enough?", too_few_steps, ("network",)),
    "channel means drifting": Diagnosis(
        "are samples as bright as the data?", drifting, ("network", "data"), cause=False
    ),
}
"""The diagnoses by name."""


@dataclass(frozen=True)
class Report:
    """What the doctor says.

    findings   name -> what is wrong, the likeliest cause first; empty for a healthy run
    sound      name -> what was looked at and is well
    unknown    name -> why it could not be looked at
    """

    findings: dict[str, Finding]
    sound: dict[str, Finding]
    unknown: dict[str, str]


def examined(patient: Patient) -> Report:
    """Every diagnosis of DIAGNOSES, ranked."""
    measured: dict[str, Finding] = {}
    unknown: dict[str, str] = {}
    for name, diagnosis in DIAGNOSES.items():
        try:
            missing = next(filter(None, map(patient.lacks, diagnosis.needs)), None)
            finding = None if missing else diagnosis.look(patient)
        except SimpleDiffusionError as error:
            missing, finding = str(error), None
        if finding is None:
            unknown[name] = missing or ""
        else:
            measured[name] = finding
            if name == "first layer that is not finite" and finding.excess > 1 and patient.model is not None:
                patient = replace(patient, model=None)  # there is no answer to look at
    ranked = sorted(measured, key=lambda name: (not DIAGNOSES[name].cause, -measured[name].excess))
    return Report(
        {name: measured[name] for name in ranked if measured[name].excess > 1},
        {name: measured[name] for name in measured if measured[name].excess <= 1},
        unknown,
    )
