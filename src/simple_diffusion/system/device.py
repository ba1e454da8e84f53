"""What this machine has, and which device and arithmetic follow from it."""

import torch

from ..errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is a GPU where there is one, and its convolutions are made deterministic.

    Raises UsageError if it is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in present if present[device])
    if not present[name]:
        raise UsageError(f"this machine has no {name} device: use --device auto")
    if name == "cuda":  # pragma: no cover (GPU)
        torch.backends.cudnn.deterministic = True  # a run twice is the same to the bit, and resumes so
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16": as asked, or what is faster on this device.

    The rule, measured by `benchmarks/throughput.py`: bf16 where the hardware multiplies bf16 numbers (AMX, AVX512_BF16,
    tensor cores), fp32 elsewhere, where casts cost more than they save.
    """
    if name != "auto":
        return name
    if device.type == "cuda":  # pragma: no cover (GPU)
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and native else "fp32"
