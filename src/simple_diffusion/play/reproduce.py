"""The command, and the Python code, that generate the same images as the page."""

from dataclasses import dataclass

from ..data.images import class_number
from ..system.terminal import command_line
from .request import SampleRequest


@dataclass(frozen=True)
class Source:
    """Where the model of a source comes from.

    name               a run folder or a model file
    ema                EMA length for post-hoc EMA, or None
    device, precision  as given by the user, "auto" by default
    shape              (C, H, W) of an image
    class_names        empty for a model without classes
    """

    name: str
    ema: float | None
    device: str
    precision: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]


def command(source: Source, request: SampleRequest) -> str | None:
    """The command for the same images up to rounding; None for what only Python can do: interpolate and inpaint."""
    if request.interpolates or request.inpaints:
        return None
    words = ["simple-diffusion", "sample", source.name, "--n", str(request.n)]
    if request.labels:
        words += ["--label", ",".join(label_argument(label, source.class_names) for label in request.labels)]
        words += ["--guidance", f"{request.guidance:g}"]
    words += ["--sampler", request.sampler, "--steps", str(request.steps), "--seed", str(request.seed)]
    words += [] if source.ema is None else ["--ema", f"{source.ema:g}"]
    for option, value in (("--device", source.device), ("--precision", source.precision)):
        words += [] if value == "auto" else [option, value]
    return command_line([*words, "--out", "grid.png"])


def label_argument(label: int, names: tuple[str, ...]) -> str:
    """A label for `sample --label`: its number, or its name if the number is the name of another class."""
    if label == len(names):
        return "none"
    return str(label) if class_number(str(label), names) == label else names[label]


def python_code(source: Source, request: SampleRequest) -> str:
    """Python code for the same images, bit-exact. It leaves them in `pixels`, uint8 `[N, C, H, W]`."""
    lines = [*import_lines(source, request), "", *model_lines(source, request)]
    denoiser_arguments = f"denoiser, {(request.n, *source.shape)}, times"
    options = {"sampler": "sampler", "seed": str(request.seed), "batch": str(request.n)}
    if request.inpaints:
        lines += inpainting_lines(source, request)
        options["sampler"] = "repaint"
    if request.interpolates:
        lines += interpolation_lines(source, request)
        options["start"] = "start"
    if request.labels:
        labels = f"{list(request.labels)}[i % {len(request.labels)}]"
        lines.append(f"labels = torch.tensor([{labels} for i in range({request.n})])")
        options = {"cond": "labels"} | options
    keywords = ", ".join(f"{name}={value}" for name, value in options.items())
    return "\n".join(
        [
            *lines,
            f"*_, x0 = trajectory({denoiser_arguments}, {keywords})  # the last state is the image",
            "pixels = to_uint8(x0)",
        ]
    )


def import_lines(source: Source, request: SampleRequest) -> list[str]:
    """The imports, sorted as ruff sorts them."""
    inpaints, interpolates = request.inpaints, request.interpolates
    modules = {
        "data.images": ["to_uint8", *["to_unit"] * inpaints],
        "inpainting": ["Inpainted", "repaint"] * inpaints,
        "model.model_file": ["read"],
        "model.posthoc_ema": [] if source.ema is None else ["posthoc_model"],
        "sampling": [*["slerp", "start_noise"] * interpolates, "trajectory"],
    }
    lines = ["import base64", "", "import numpy as np"] if inpaints else []
    lines += ["import torch"] if inpaints or interpolates or request.labels else []
    lines += [f"from simple_diffusion.{module} import {', '.join(names)}" for module, names in modules.items() if names]
    return lines


def model_lines(source: Source, request: SampleRequest) -> list[str]:
    """Load the model, and build denoiser, times and sampler."""
    arguments = [source.name, source.device, source.precision]
    arguments = arguments[:1] if arguments[1:] == ["auto", "auto"] else arguments
    model = f"read({', '.join(map(repr, arguments))})"
    if source.ema is not None:
        model = f"posthoc_model({source.name!r}, {model}, {source.ema:g})"
    settings = f"guidance={float(request.guidance)!r}, sampler={request.sampler!r}, sampler_steps={request.steps}"
    return [f"model = {model}", f"denoiser, times, sampler = model.changed({settings}).sampler()"]


def inpainting_lines(source: Source, request: SampleRequest) -> list[str]:
    """Condition the denoiser on the known pixels."""
    height, width = source.shape[1:]
    return [
        f"image = np.frombuffer(base64.b64decode({request.image!r}), np.uint8).copy()",
        f"bits = np.frombuffer(base64.b64decode({request.mask!r}), np.uint8)",
        f"mask = torch.from_numpy(np.unpackbits(bits, count={height * width})).bool().view({height}, {width})",
        f"denoiser = Inpainted(denoiser, to_unit(torch.from_numpy(image).view({source.shape})), mask)",
    ]


def interpolation_lines(source: Source, request: SampleRequest) -> list[str]:
    """Interpolate between the noises of two seeds."""
    seeds = f"({request.seed}, {request.to_seed})"
    return [
        f"one, other = (start_noise(seed, [0], {source.shape})[0] for seed in {seeds})",
        f"start = slerp(one, other, torch.linspace(0, 1, {request.n}).tolist())",
    ]
