"""Reference extractors: the classifier that turns images into the features and logits that metrics are computed from.

A metric's value belongs to its extractor, so each has a name: that of weights shipped in `weights/`, made once by
`simple-diffusion classifier`, or one that holds the fingerprint of the data it was trained on at first use.
"""

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.images import Images
from ..errors import CheckpointError, DataError, ResourceError
from ..networks.classifier import Classifier
from ..system.files import cache_folder, damaged, from_json, load_weights, read_tensors, write_tensors
from .classifier import accuracy, infer, train_classifier

VERSION = 1  # of the training; one that changes what it yields is another version
SHIPPED = Path(__file__).parent / "weights"

Features = Callable[[Tensor], tuple[Tensor, Tensor]]
"""uint8 images `[N, C, H, W]` -> features float32 `[N, F]`, logits float32 `[N, K]`: what metrics are computed from.

K is the number of classes that the logits stand for, 0 if they stand for none.
"""


@dataclass(frozen=True)
class ExtractorInfo:
    """What is known of an extractor: it stands in its file beside the weights.

    name                 that numbers are printed with
    data, fingerprint    of the training set
    classes              that the logits stand for, 0 where they would tell symmetries apart
    validation_accuracy  on the part of the training set that was held out
    test_accuracy        on the test set, None if there was none
    command              that makes the same
    """

    name: str
    data: str
    fingerprint: str
    classes: int
    architecture: dict[str, int]
    seed: int
    epochs: int
    validation_accuracy: float
    test_accuracy: float | None
    command: str
    torch: str


@dataclass(frozen=True, eq=False)
class Extractor:
    """uint8 `[N, C, H, W]`, any N, H and W -> features float32 `[N, F]` and logits float32 `[N, classes]`.

    Runs on the CPU in float32 and in batches of one size, so that numbers of different machines and counts compare.

    record   what is known of it, its name among that
    net      the trained classifier

    Raises DataError for images of another kind.
    """

    record: ExtractorInfo
    net: Classifier

    @property
    def name(self) -> str:
        """What numbers are printed with."""
        return self.record.name

    @property
    def classes(self) -> int:
        """Number of classes that the logits stand for, 0 if they stand for none."""
        return self.record.classes

    @property
    def channels(self) -> int:
        """Of the images that it takes: 1 or 3."""
        return self.record.architecture["channels"]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raises DataError for what is not uint8 `[N, C, H, W]` with N > 0 and the channels of the training data."""
        if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
            raise DataError(
                f"{self.name} takes uint8 images [N, C, H, W], not {images.dtype} of shape {tuple(images.shape)}"
            )
        if images.shape[1] != self.channels:
            raise DataError(f"{self.name} knows images of {self.channels} channels, not of {images.shape[1]}")
        features, logits = infer(self.net, images)
        return features, logits[:, : self.classes]  # none where they tell symmetries apart


def extractor_for(
    images: Images, *, seed: int = 0, device: str = "auto", cache: Path | None = None, quiet: bool = False
) -> Extractor:
    """The reference extractor of a training set: shipped, cached, or trained now and cached.

    images  the training set, uint8 `[N, C, H, W]`
    seed    of the training; another one than 0 is never shipped
    device  that a training runs on
    cache   folder of the extractors trained here, by default in the user's cache
    quiet   do not say on stderr what takes minutes

    Where it trains, raises DataError for fewer than 20 images, DivergedError for a loss that is not finite, UsageError
    for a device that is not there.
    """

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    if seed == 0 and (found := shipped(images)):
        return found
    name = name_of(images, seed)
    path = (cache or cache_folder() / "extractors") / f"{name}.safetensors"
    if path.exists():
        try:
            found = read_extractor(path)
            if found.record.fingerprint == images.fingerprint:
                return found
            say(f"{path} was trained on other data and is replaced.")
        except CheckpointError as error:
            say(f"{error}; it is replaced.")
    say(f"Training the extractor {name} on {len(images):,} images: minutes on two cores, once, then kept in {path}.")
    made = make_extractor(images, name, seed=seed, device=device)
    try:
        save_extractor(path, made)
    except ResourceError as error:
        say(f"{error}; the extractor is used this time and not kept.")
    return made


def shipped(images: Images) -> Extractor | None:
    """The extractor in the package for this data: the same by its loader's name or, from any file, by fingerprint."""
    for path in sorted(SHIPPED.glob("*.safetensors")):
        found = read_extractor(path)
        if images.name == found.record.data or images.fingerprint == found.record.fingerprint:
            return found
    return None


def name_of(images: Images, seed: int) -> str:
    """`<data>-cnn-1-<fingerprint>`, or `<data>-symmetry-1-...` where there are no classes to tell apart."""
    task = "cnn" if images.classes > 1 else "symmetry"
    return f"{images.stem}-{task}-{VERSION}-{images.fingerprint[:8]}" + (f"-seed{seed}" if seed else "")


def make_extractor(
    images: Images,
    name: str,
    *,
    test: Images | None = None,
    seed: int = 0,
    epochs: int | None = None,
    device: str = "auto",
) -> Extractor:
    """Train an extractor on a training set; `test` is looked at once, when all is done. Raises DataError."""
    net, report = train_classifier(images, seed=seed, epochs=epochs, device=device)
    words = ["simple-diffusion", "classifier", images.name, "--seed", str(seed)]
    record = ExtractorInfo(
        name=name,
        data=images.name,
        fingerprint=images.fingerprint,
        classes=images.classes if images.classes > 1 else 0,
        architecture=net.architecture,
        seed=seed,
        epochs=report.epochs,
        validation_accuracy=report.accuracy,
        test_accuracy=None if test is None else accuracy(net, test),
        command=shlex.join(words + (["--epochs", str(epochs)] if epochs else [])),
        torch=torch.__version__,
    )
    return Extractor(record, net.requires_grad_(False))


def save_extractor(path: Path, extractor: Extractor) -> None:
    """Write weights and record to one file, whole or not at all. Raises ResourceError."""
    write_tensors(path, extractor.net.state_dict(), {"extractor": asdict(extractor.record)})


def read_extractor(path: Path) -> Extractor:
    """The extractor in a file. Raises CheckpointError, naming the path, if there is none."""
    tensors, about = read_tensors(path)
    try:
        record = from_json(ExtractorInfo, about["extractor"])
        if record.classes not in (0, record.architecture["classes"]):
            raise ValueError(f"its logits do not stand for {record.classes} classes")
        if Path(record.name).name != record.name or not record.name.strip("."):  # names of files begin with it
            raise ValueError(f"{record.name!r} is no name")
        with torch.device("meta"):  # shapes are compared before a byte is spent on them
            net = Classifier(**record.architecture)
        load_weights(net, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from error
    net = net.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
    return Extractor(record, net.eval().requires_grad_(False))
