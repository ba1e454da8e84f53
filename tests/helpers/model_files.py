"""Valid files of each kind that holds weights, taken apart for the tests that damage them."""

import hashlib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load
from safetensors.torch import save as packed

from simple_diffusion.data.info import DataInfo
from simple_diffusion.ema import EMA
from simple_diffusion.evaluation import extractors
from simple_diffusion.model import model_file as checkpoint
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.config import Config
from simple_diffusion.networks.classifier import Classifier
from simple_diffusion.optimizers import adamw
from simple_diffusion.run import checkpoint as state


class Parts(NamedTuple):
    """A safetensors file taken apart."""

    header: dict
    data: bytes

    @property
    def about(self) -> dict:
        """The record in the header."""
        return json.loads(self.header["__metadata__"]["simple-diffusion"])

    def file(self, header: str | bytes | dict | None = None, data: bytes | None = None) -> bytes:
        """The file with another header or other data, and a valid checksum."""
        header = self.header if header is None else header
        text = json.dumps(header) if isinstance(header, dict) else header
        raw = text.encode() if isinstance(text, str) else text
        return sealed(struct.pack("<Q", len(raw)) + raw + (self.data if data is None else data))

    def tensor(self, **changes: object) -> bytes:
        """The file with changed metadata of the first tensor."""
        name = self.names[0]
        return self.file({**self.header, name: {**self.header[name], **changes}})

    def record(self, text: str) -> bytes:
        """The file with another record."""
        return self.file({**self.header, "__metadata__": {"simple-diffusion": text}})

    @property
    def names(self) -> list[str]:
        return [name for name in self.header if name != "__metadata__"]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load(self.file())

    def with_tensors(self, tensors: dict[str, torch.Tensor]) -> bytes:
        return sealed(packed(tensors, self.header["__metadata__"]))


def sealed(content: bytes) -> bytes:
    """The content with a valid checksum if it has one, which an attacker can compute too."""
    zeroed = re.sub(rb'(sha256\\*": \\*")[0-9a-f]{64}', rb"\g<1>" + b"0" * 64, content, count=1)
    return zeroed.replace(b"0" * 64, hashlib.sha256(zeroed).hexdigest().encode(), 1) if zeroed != content else content


def apart(path: Path) -> Parts:
    whole = path.read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    return Parts(json.loads(whole[8:end]), whole[end:])


def good_files(folder: Path) -> dict[Callable, Path]:
    """A small valid file for each function that reads weights."""
    config = Config(widths=(8, 8), blocks=(1, 1), precision="fp32")
    info = DataInfo("photos", 9, 1, 8, 8, ("a", "b"), 0.1, 0.5, "0" * 64)
    denoiser = ModelSpec(config, info).denoiser()
    checkpoint.save(folder / "model.safetensors", checkpoint.Model(denoiser, ModelSpec(config, info), 5, 1.5))
    training = state.State(denoiser, adamw(denoiser), EMA(denoiser), None)
    saved = state.save_checkpoint(folder, ModelSpec(config, info), training)
    net = Classifier(1, 3, 8, layers=2, start=4)
    record = extractors.ExtractorInfo(
        "cnn", "photos", "0" * 64, 3, net.architecture, 0, 1, 0.5, None, "simple-diffusion", "2"
    )
    extractors.save_extractor(folder / "cnn.safetensors", extractors.Extractor(record, net))
    weights = {checkpoint.read: folder / "model.safetensors", extractors.read_extractor: folder / "cnn.safetensors"}
    return weights | {state.read_checkpoint: saved}
