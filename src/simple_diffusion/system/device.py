"""The choice of the device and of the arithmetic."""

import torch

from ..errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""name -> type of the numbers that the network computes with."""


def pick_device(name: str = "auto") -> torch.device:
    """The device of this name; "auto" is a GPU if there is one. On CUDA, convolutions become deterministic.

    Raises UsageError for another name, or if the machine has no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in present if present[device])
    if name not in present:
        raise UsageError(f"the device must be auto, {', '.join(present)}, got {str(name)!r}")
    if not present[name]:
        raise UsageError(f"this machine has no {name} device: use --device auto")
    if name == "cuda":  # pragma: no cover (GPU)
        torch.backends.cudnn.deterministic = True  # two equal runs were then bit-identical
    return torch.device(name)


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device without float64, which is MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def pick_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16": the given name, or for "auto" the faster one on this device.

    `benchmarks/throughput.py` measured the rule: bf16 is faster where the hardware multiplies bf16 numbers (AMX,
    AVX512_BF16, tensor cores). Elsewhere the casts take more time than they save.
    """
    if name != "auto":
        return name
    if device.type == "cuda":  # pragma: no cover (GPU)
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and native else "fp32"
