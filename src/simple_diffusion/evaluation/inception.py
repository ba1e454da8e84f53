"""The Inception network of published FIDs, from torch-fidelity.

torch-fidelity reproduces the features of the original TensorFlow network, resizing included
(Obukhov et al. 2020).
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..system.device import pick_device
from .classifier import in_batches
from .extractors import Features

NAME = "inception-v3-fidelity"
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
BATCH = 32


def inception(weights: Path | None = None, device: str = "auto") -> Features:
    """uint8 `[N, C, H, W]`, C = 1 or 3 -> features float32 `[N, 2048]` and unbiased logits float32 `[N, 1008]`.

    weights  a file downloaded by hand; None for the one in torch's cache, downloaded (91 MiB) if it is not there
    device   that the network runs on: a CPU takes hours where a GPU takes minutes

    Raises UsageError without torch-fidelity, DataError where the weights cannot be downloaded or are not
    the published ones.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyrefly: ignore[missing-import]
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise UsageError(
            f"Inception needs torch-fidelity ({error}): pip install 'simple-diffusion[fidelity]'"
        ) from error
    # torch-fidelity unpickles the file, which can run code: it only gets the published bytes.
    path = str(verify(weights) if weights else fetch())
    net = FeatureExtractorInceptionV3(NAME, ["2048", "logits_unbiased"], feature_extractor_weights_path=path)
    where = pick_device(device)
    net = net.to(where)

    def features_and_logits(images: Tensor) -> tuple[Tensor, Tensor]:
        return in_batches(lambda part: net(part.to(where)), to_rgb(images), BATCH)

    return features_and_logits


def to_rgb(images: Tensor) -> Tensor:
    """uint8 `[N, 1 or 3, H, W]` -> `[N, 3, H, W]`, gray as three equal channels. Raises DataError for other images."""
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel() or images.shape[1] not in (1, 3):
        raise DataError(
            f"{NAME} takes uint8 images [N, 1 or 3, H, W], not {images.dtype} of shape {tuple(images.shape)}"
        )
    return images.expand(-1, 3, -1, -1)


def fetch() -> Path:
    """The weights in torch's cache, downloaded if they are missing. Raises DataError."""
    path = Path(torch.hub.get_dir(), "checkpoints", WEIGHTS)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256)
        except (OSError, RuntimeError) as error:  # RuntimeError: of another hash
            raise DataError(
                f"the weights of Inception cannot be downloaded ({' '.join(str(error).split())}): download {URL} "
                f"yourself, and put it at {path} or name it with --inception-weights"
            ) from error
    return verify(path)


def verify(path: Path) -> Path:
    """The path, if its SHA-256 is that of the published weights. Raises DataError."""
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name a file of Inception's weights") from error
    if found != SHA256:
        raise DataError(
            f"{path} does not hold the published weights of Inception (other SHA-256): download {URL} again"
        )
    return path
