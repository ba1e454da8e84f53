"""Reference extractors: classifiers that compute the features and logits of images, from which metrics are computed.

Values of a metric are comparable only for the same extractor, so each extractor has a name. Some are shipped in
`weights/`, made by `simple-diffusion classifier`. Others are trained at first use; their names contain the fingerprint
of the training data and a hash of the weights, which differ from machine to machine.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..data.images import Images
from ..errors import CheckpointError, DataError, ResourceError
from ..networks.classifier import Classifier
from ..system.files import cache_folder, damaged, from_json, load_weights, read_tensors, write_tensors
from ..system.terminal import command_line, note
from .classifier import accuracy, infer, train_classifier

VERSION = 1  # of the training code; increase it with any change of the resulting weights
SHIPPED = Path(__file__).parent / "weights"

Features = Callable[[Tensor], tuple[Tensor, Tensor]]
"""uint8 images `[N, C, H, W]` -> features float32 `[N, F]` and logits float32 `[N, K]`.

K is the number of classes, or 0 if the extractor was trained without classes.
"""


@dataclass(frozen=True)
class ExtractorInfo:
    """The record of an extractor, stored in its file with the weights.

    name                 name of the extractor's file; `Extractor.name` is printed with every score
    data, fingerprint    of the training set
    classes              number of classes of the logits, 0 if the extractor was trained on symmetries
    validation_accuracy  on the held-out part of the training set
    test_accuracy        on the test set, None if there was none
    command              command that trains the same extractor
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

    It runs on the CPU in float32 and in batches of a fixed size, so that results do not depend on N and are comparable
    between machines.

    record   name, training data and accuracy
    net      the trained classifier
    shipped  whether it comes with the package, so that its name stands for its weights

    Raises DataError for images of another dtype, shape or number of channels.
    """

    record: ExtractorInfo
    net: Classifier
    shipped: bool = False

    @cached_property
    def name(self) -> str:
        """Name of the extractor, printed with every score. It ends in a hash of the weights unless they are shipped."""
        return self.record.name if self.shipped else f"{self.record.name}-{hash_of(self.net)[:8]}"

    @property
    def classes(self) -> int:
        """Number of classes of the logits, 0 if the extractor was trained without classes."""
        return self.record.classes

    @property
    def channels(self) -> int:
        """Number of channels of the images: 1 or 3."""
        return self.record.architecture["channels"]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raises DataError unless `images` are uint8 `[N, C, H, W]`, N > 0, with the channels of the training data."""
        if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
            raise DataError(
                f"{self.name} takes uint8 images [N, C, H, W], not {images.dtype} of shape {tuple(images.shape)}"
            )
        if images.shape[1] != self.channels:
            raise DataError(f"{self.name} takes images of {self.channels} channels, not of {images.shape[1]}")
        features, logits = infer(self.net, images)
        return features, logits[:, : self.classes]  # none if it was trained on symmetries


def extractor_for(
    images: Images, *, seed: int = 0, device: str = "auto", cache: Path | None = None, quiet: bool = False
) -> Extractor:
    """The reference extractor of a training set: shipped, cached, or trained now and cached.

    images  the training set, uint8 `[N, C, H, W]`
    seed    for the training; shipped extractors have seed 0
    device  device for the training
    cache   folder of cached extractors, by default in the user's cache
    quiet   print no messages to stderr

    If it trains, it raises DataError for fewer than 20 images, DivergedError for a loss that is not finite, UsageError
    for a device that is not available.
    """

    def say(text: str) -> None:
        if not quiet:
            note(text)

    if seed == 0 and (found := shipped(images)):
        return found
    name = name_of(images, seed)
    path = (cache or cache_folder() / "extractors") / f"{name}.safetensors"
    if os.path.exists(path):  # false also where the cache must not be read
        try:
            found = read_extractor(path)
            if found.record.fingerprint == images.fingerprint:
                return found
            say(f"{path} was trained on other data and is replaced.")
        except CheckpointError as error:
            say(f"{error}; it is replaced.")
    say(f"Training the extractor {name} on {len(images):,} images: a few minutes on two cores, once. Saved as {path}.")
    made = make_extractor(images, name, seed=seed, device=device)
    try:
        save_extractor(path, made)
    except ResourceError:
        say(f"{path} can't be written; the extractor is used now but not saved.")
    return made


def hash_of(net: Classifier) -> str:
    """SHA-256 of the weights with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, weights in net.state_dict().items():
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)} ".encode())
        digest.update(weights.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def shipped(images: Images) -> Extractor | None:
    """The shipped extractor for this data, which matches by name or by fingerprint; None if there is none."""
    for path in sorted(SHIPPED.glob("*.safetensors")):
        found = read_extractor(path)
        if images.name == found.record.data or images.fingerprint == found.record.fingerprint:
            return found
    return None


def name_of(images: Images, seed: int) -> str:
    """`<data>-cnn-1-<fingerprint>`, or `<data>-symmetry-1-...` for data with fewer than two classes."""
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
    """Train an extractor on a training set. `test` is used once, after training, to measure the accuracy.

    Raises DataError as `train_classifier` does.
    """
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
        command=command_line(words + (["--epochs", str(epochs)] if epochs else [])),
        torch=torch.__version__,
    )
    return Extractor(record, net.requires_grad_(False))


def save_extractor(path: Path, extractor: Extractor) -> None:
    """Write weights and record to one file, atomically. Raises ResourceError."""
    write_tensors(path, extractor.net.state_dict(), {"extractor": asdict(extractor.record)})


def read_extractor(path: Path) -> Extractor:
    """Read the extractor in a file. Raises CheckpointError with the path if there is none or it is damaged."""
    tensors, about = read_tensors(path)
    try:
        record = from_json(ExtractorInfo, about["extractor"])
        if record.classes not in (0, record.architecture["classes"]):
            raise ValueError(f"its logits are not those of {record.classes} classes")
        if Path(record.name).name != record.name or not record.name.strip("."):  # file names begin with it
            raise ValueError(f"{record.name!r} is not a valid name")
        with torch.device("meta"):  # compare shapes before memory is allocated
            net = Classifier(**record.architecture)
        load_weights(net, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from error
    net = net.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
    return Extractor(record, net.eval().requires_grad_(False), shipped=path.parent == SHIPPED)
