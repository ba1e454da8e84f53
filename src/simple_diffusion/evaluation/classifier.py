"""Train the classifier on the training set. A part of it is held out for early stopping."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..augmentation import symmetries
from ..data.images import Images, to_uint8, to_unit
from ..errors import DataError, DivergedError
from ..networks.classifier import Classifier
from ..optimizers import adamw
from ..randomness import permutation, philox
from ..system.device import PRECISIONS, pick_device, pick_precision
from ..system.terminal import progress_bar
from ..training import warmup_linear
from ..validation import keep_out, split_rows

BATCH = 256  # images per batch of inference, and the largest batch of training
SEEN = 430_000 * 32**2  # pixels that a training run processes by default: a few minutes on two cores
PRETEXT = 40_000 * 32**2
"""The same for data without classes: one or two minutes. On 500 photographs of 32 x 32 pixels, the held-out accuracy is
25, 32, 32 and 32 % after 4, 11, 22 and 36 thousand images, so it stops improving early. The features improve further:
KID detects noise of standard deviation 20 at 1, 3, 4 and 6 times its standard error."""
PEAK = 4e-3  # learning rate
SHIFT = 2  # largest random shift of an image in pixels, in each direction
SYMMETRIES = 8  # of the square
VALIDATION = 0.1  # fraction of the images that is held out
PURPOSE = "classifier validation"


@dataclass(frozen=True)
class Report:
    """The result of a training run.

    epoch     the epoch after which the returned weights were saved
    epochs    number of epochs that were run
    loss      cross-entropy on the held-out part, in nats
    accuracy  share of the held-out part that is classified correctly
    seconds   wall-clock time
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    seconds: float


def train_classifier(
    images: Images,
    *,
    seed: int = 0,
    epochs: int | None = None,
    patience: int | None = None,
    validation: float = VALIDATION,
    device: str = "auto",
    precision: str = "auto",
) -> tuple[Classifier, Report]:
    """Train a classifier. Returns it in eval mode on the CPU, with the weights of the lowest validation loss.

    For data with fewer than two classes, the task is to predict which of the 8 symmetries of the square was applied to
    an image. A large data set is then reduced to a random subset, so that each image occurs in all symmetries.

    seed        for the initial weights, the split, the order and the shifts
    epochs      passes over the data; None for a number that takes a few minutes on two cores
    patience    stop after this many epochs without a lower validation loss; None for a third of `epochs`
    validation  fraction of the images that is held out, in (0, 1)
    device      "auto", "cpu", "cuda" or "mps"
    precision   "auto", "fp32" or "bf16"

    Raises DataError for fewer than 20 images, DivergedError if the loss is not finite, UsageError for a device that is
    not available.
    """
    began = time.perf_counter()
    size, layers = (32, 4) if max(images.shape[1:]) <= 32 else (64, 5)
    seen = (PRETEXT if images.classes < 2 else SEEN) // size**2
    if images.classes < 2:
        some = images[permutation(len(images), seed, "pretext")[: seen // SYMMETRIES]]
        train, held_out = (pretext(part, size) for part in split(some, validation, seed))
    else:
        train, held_out = split(images, validation, seed)
    if epochs is None:
        epochs = min(max(round(seen / len(train)), 1), 200)
    if patience is None:
        patience = -(-epochs // 3)
    where = pick_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(images.shape[0], train.classes, size, layers)
    net = net.to(where).to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
    best, weights = Report(0, 0, math.inf, 0.0, 0.0), {}
    done = 0
    with progress_bar(total=epochs, desc=f"classifier of {images.stem}", unit=" epochs") as bar:
        for done in passes(net, train, epochs, seed, PRECISIONS[pick_precision(precision, where)]):
            loss, right = score(net, held_out)
            if not math.isfinite(loss):
                raise DivergedError(f"the classifier's loss after epoch {done} is not finite: try another --seed")
            if loss < best.loss:
                best = Report(done, done, loss, right, 0.0)
                weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
            bar.set_postfix_str(f"validation loss {loss:.3f}, accuracy {right:.2%}")
            bar.update()
            if done - best.epoch >= patience:
                break
    net.load_state_dict(weights)
    return net.cpu().eval(), replace(best, epochs=done, seconds=time.perf_counter() - began)


def split(images: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Split the images into (the rest, a random `share`). Raises DataError if either would be too small to use."""
    count = len(images.distinct)
    if count < 20 or not 1 <= round(share * count) <= count - 2:
        raise DataError(
            f"{images.name} has too few different images, {count}: a classifier needs 20, some of them for validation"
        )
    return keep_out(images, share, seed, PURPOSE)


def held_out_part(images: Images, seed: int) -> Tensor:
    """The numbers of the images that a training with this seed holds out, int64: a tenth of the different ones."""
    _, held = split_rows(images, VALIDATION, seed, PURPOSE)
    return held


def pretext(images: Images, size: int) -> Images:
    """A pretext task (Gidaris et al. 2018): each image, size x size, in all 8 symmetries of the square.

    The label i is the symmetry: i quarter turns if i < 4, otherwise a horizontal flip and i - 4 quarter turns. A
    network that predicts it must recognize the content of the images.
    """
    pixels = torch.cat([to_uint8(sized(part, size)) for part in images.pixels.split(BATCH)])
    turned = torch.cat([view(pixels) for view in symmetries(square=True)])
    labels = torch.arange(SYMMETRIES).repeat_interleave(len(pixels))
    return replace(images, pixels=turned, labels=labels, class_names=tuple(map(str, range(SYMMETRIES))))


def sized(pixels: Tensor, size: int) -> Tensor:
    """uint8 `[B, C, H, W]` -> float32 `[B, C, size, size]` in [-1, 1], bilinear with antialiasing, channels last."""
    x = to_unit(pixels).contiguous(memory_format=torch.channels_last)
    if x.shape[2:] == (size, size):
        return x
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True)


def shifted(x: Tensor, shifts: Tensor) -> Tensor:
    """x `[B, C, H, W]` with image b shifted by shifts[b] (`[B, 2]`) pixels down and right. Edge pixels are repeated."""
    height, width = x.shape[2:]
    rows = (torch.arange(height) - shifts[:, :1]).clamp(0, height - 1).to(x.device)  # [B, H]
    columns = (torch.arange(width) - shifts[:, 1:]).clamp(0, width - 1).to(x.device)
    b = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[b, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def passes(net: Classifier, images: Images, epochs: int, seed: int, dtype: torch.dtype) -> Iterator[int]:
    """Train, and yield the number of each finished epoch. The learning rate rises for a fifth of them, then falls."""
    optimizer, device, n = adamw(net), next(net.parameters()).device, len(images)
    size = net.architecture["size"]
    pixels, labels = images.pixels.to(device), labels_of(images).to(device)
    # Small data gets smaller batches, and therefore more updates. The batch sizes in an epoch differ by at most 1, so
    # that no batch is too small for BatchNorm.
    updates = -(-n // min(max(n // 16, 16), BATCH))
    for epoch in range(epochs):
        net.train()
        bits = np.random.Generator(philox(seed, "classifier shift", epoch))
        shifts = torch.from_numpy(bits.integers(-SHIFT, SHIFT + 1, (n, 2)))
        order = permutation(n, seed, "classifier order", epoch)
        for i, chosen in enumerate(order.tensor_split(updates)):
            index = chosen.to(device)
            x = shifted(sized(pixels[index], size), shifts[chosen])
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                _, logits = net(x)
            loss = F.cross_entropy(logits.float(), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = PEAK * warmup_linear((epoch * updates + i + 1) / (epochs * updates + 1), 0.2)
            optimizer.step()
        yield epoch + 1


@torch.no_grad()
def infer(net: Classifier, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 `[N, C, H, W]` -> features float32 `[N, F]` and logits float32 `[N, K]` on the CPU, in eval mode."""
    net.eval()
    device, size = next(net.parameters()).device, net.architecture["size"]
    return in_batches(lambda part: net(sized(part.to(device), size)), pixels, BATCH)


@torch.no_grad()
def in_batches(net: Callable[[Tensor], tuple[Tensor, Tensor]], pixels: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Apply `net` to all pixels. Returns features float32 `[N, F]` and logits float32 `[N, K]` on the CPU.

    All batches have the same size (the last one is padded), so the result for an image does not depend on N.
    """
    outputs = []
    for part in progress_bar(pixels.split(batch), desc="features", unit=" batches", leave=False, delay=5):
        missing = part.new_zeros(batch - len(part), *part.shape[1:])
        outputs.append([x[: len(part)].cpu() for x in net(torch.cat([part, missing]))])
    features, logits = zip(*outputs, strict=True)
    return torch.cat(features), torch.cat(logits)


def score(net: Classifier, images: Images) -> tuple[float, float]:
    """(cross-entropy in nats, accuracy) on labeled images."""
    labels = labels_of(images)
    _, logits = infer(net, images.pixels)
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def accuracy(net: Classifier, images: Images) -> float:
    """Accuracy of the classifier `net` on labeled images, such as a test set: a number in [0, 1].

    Raises DataError for images without labels.
    """
    return score(net, images)[1]


def labels_of(images: Images) -> Tensor:
    """The labels `[N]`. Raises DataError if the images have none."""
    if images.labels is None:
        raise DataError(f"{images.name} has no labels, and the accuracy of a classifier needs them")
    return images.labels
