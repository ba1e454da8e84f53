"""Explain a schedule, target, sampler or metric: its formula, its paper, its symbols and its code."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ema, guidance, losses, samplers, schedules, targets
from ..evaluation import metrics

PAPERS = {
    "DDPM": "Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv 2006.11239",
    "Improved DDPM": "Nichol & Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models, arXiv 2102.09672",
    "DDIM": "Song, Meng & Ermon 2021, Denoising Diffusion Implicit Models, arXiv 2010.02502",
    "Score SDE": "Song et al. 2021, Score-Based Generative Modeling through Stochastic Differential Equations, "
    "arXiv 2011.13456",
    "EDM": "Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364",
    "Progressive distillation": "Salimans & Ho 2022, Progressive Distillation for Fast Sampling of Diffusion Models, "
    "arXiv 2202.00512",
    "Flow matching": "Lipman et al. 2023, Flow Matching for Generative Modeling, arXiv 2210.02747",
    "Rectified flow": "Liu, Gong & Liu 2023, Flow Straight and Fast: Learning to Generate and Transfer Data with "
    "Rectified Flow, arXiv 2209.03003",
    "DPM-Solver++": "Lu et al. 2022, DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, "
    "arXiv 2211.01095",
    "Min-SNR": "Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy, arXiv 2303.09556",
    "CFG": "Ho & Salimans 2022, Classifier-Free Diffusion Guidance, arXiv 2207.12598",
    "Autoguidance": "Karras et al. 2024, Guiding a Diffusion Model with a Bad Version of Itself, arXiv 2406.02507",
    "EDM2": "Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv 2312.02696",
    "FID": "Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, "
    "arXiv 1706.08500",
    "KID": "Bińkowski et al. 2018, Demystifying MMD GANs, arXiv 1801.01401",
    "IS": "Salimans et al. 2016, Improved Techniques for Training GANs, arXiv 1606.03498",
    "Precision and recall": "Kynkäänniemi et al. 2019, Improved Precision and Recall Metric for Assessing Generative "
    "Models, arXiv 1904.06991",
    "Density and coverage": "Naeem et al. 2020, Reliable Fidelity and Diversity Metrics for Generative Models, "
    "arXiv 2002.09797",
}

SYMBOLS = {  # in a formula -> (in the code, its meaning)
    "x₀": ("x0", "the clean image"),
    "x_t": ("x_t", "the image at noise level t"),
    "x_s": ("x_s", "the image at the next, lower level s"),
    "x": ("x", "the noisy image while it is denoised"),
    "z₀": ("z0", "the clean image with mean 0 and standard deviation 1"),
    "ε": ("eps", "standard normal noise"),
    "ε'": ("noise", "standard normal noise for this step"),
    "t": ("t", "time: 0 clean, 1 noise"),
    "α": ("alpha", "scale of the image in x_t = α x₀ + σ ε"),
    "σ": ("sigma", "scale of the noise in x_t = α x₀ + σ ε"),
    "α_t": ("alpha_t", "scale of the image at t"),
    "σ_t": ("sigma_t", "scale of the noise at t"),
    "α_s": ("alpha_s", "scale of the image at s"),
    "σ_s": ("sigma_s", "scale of the noise at s"),
    "α_ts": ("alpha_ts", "α_t / α_s, scale of the image from s to t"),
    "β": ("beta", "variance of the noise that is added, at t or from s to t"),
    "B": ("integral", "integral of β from 0 to t"),
    "x̂₀": ("x0_hat", "E[x₀ | x_t], the x0 prediction"),
    "ε̂": ("eps_hat", "the noise that x̂₀ implies, (x_t - α_t x̂₀) / σ_t"),
    "ε̂_s": ("eps_s", "ε̂ at the next level"),
    "x̂₀(none)": ("x0_null", "x̂₀ without a label"),
    "x̂₀(guide)": ("guide", "x̂₀ of a weaker model"),
    "η": ("eta", "stochasticity: 0 for the ODE, 1 for ddpm"),
    "λ": ("lam", "log(α/σ)"),
    "h": ("h", "the step in λ"),
    "w": ("scale", "guidance scale; 1 is no guidance"),
    "out*": ("out", "target, the output that the network is trained for"),
    "ρ": ("rho", "exponent; a larger one gives more low noise levels"),
    "θ̄": ("slow", "EMA weights"),
    "θ": ("fast", "the weights after update n"),
    "γ": ("exponent", "exponent of the EMA, which follows from its length"),
    "n": ("n", "number of the update, or number of samples"),
    "m": ("m", "number of the update after the warm-up"),
    "μ": ("mean", "mean of the features"),
    "S": ("cov", "covariance of the features"),
    "k": ("k", "rank of the neighbor that gives the radius of a ball"),
    "snr": ("snr", "signal-to-noise ratio, (α/σ)²"),
}


@dataclass(frozen=True)
class Entry:
    """A class or function that can be explained.

    kind     such as "schedule"
    thing    the class or function
    formula  what it computes, in one or more lines
    uses     the symbols of the formula, keys of SYMBOLS, between spaces
    sources  (key of PAPERS, place in the paper)
    calls    functions that it calls and that are essential to it
    """

    kind: str
    thing: Callable[..., Any]
    formula: str
    uses: str
    sources: tuple[tuple[str, str], ...]
    calls: tuple[Callable[..., Any], ...] = ()

    @property
    def shown(self) -> tuple[Callable[..., Any], ...]:
        """The functions and classes whose code is shown: the thing, its base class BetaCurve, and `calls`."""
        is_curve = isinstance(self.thing, type) and issubclass(self.thing, schedules.BetaCurve)
        return (self.thing, schedules.BetaCurve) if is_curve else (self.thing, *self.calls)


ENTRIES: dict[str, tuple[Entry, ...]] = {
    "linear": (
        Entry(
            "schedule",
            schedules.Linear,
            "β = β_min + (β_max - β_min) t, B = ∫ β dt\nα² = exp(-B), σ² = 1 - exp(-B)",
            "α σ β B t",
            (
                ("DDPM", "section 4"),
                ("Score SDE", "eq. 11 and 33"),
            ),
        ),
    ),
    "quadratic": (
        Entry(
            "schedule",
            schedules.Quadratic,
            "√β = √β_min + (√β_max - √β_min) t, B = ∫ β dt\nα² = exp(-B), σ² = 1 - exp(-B)",
            "α σ β B t",
            (("DDIM", "its code"),),
        ),
    ),
    "sigmoid": (
        Entry(
            "schedule",
            schedules.Sigmoid,
            "β = β_min + (β_max - β_min) sigmoid(12 t - 6), B = ∫ β dt\nα² = exp(-B), σ² = 1 - exp(-B)",
            "α σ β B t",
            (("DDIM", "its code"),),
        ),
    ),
    "cosine": (
        Entry(
            "schedule",
            schedules.Cosine,
            "α = cos((t + 0.008) / 1.008 · π/2) / cos(0.008 / 1.008 · π/2), σ² = 1 - α²",
            "α σ t",
            (("Improved DDPM", "eq. 17"),),
        ),
    ),
    "karras": (
        Entry(
            "schedule",
            schedules.Karras,
            "α = 1, σ = (σ_min^(1/ρ) + t (σ_max^(1/ρ) - σ_min^(1/ρ)))^ρ",
            "α σ ρ t",
            (("EDM", "eq. 5"),),
        ),
    ),
    "flow": (
        Entry(
            "schedule",
            schedules.Flow,
            "α = 1 - t, σ = t",
            "α σ t",
            (
                ("Flow matching", "eq. 22-23, with t reversed"),
                ("Rectified flow", "eq. 1"),
            ),
        ),
        Entry("target", targets.flow, "out* = ε - z₀", "ε z₀ out*", (("Rectified flow", "eq. 1"),)),
    ),
    "noise": (Entry("target", targets.noise, "out* = ε", "ε out*", (("DDPM", "eq. 14"),)),),
    "x0": (Entry("target", targets.x0, "out* = z₀", "z₀ out*", (("Progressive distillation", "section 4"),)),),
    "v": (
        Entry(
            "target",
            targets.v,
            "out* = (α ε - σ z₀) / √(α² + σ²)",
            "out* α σ ε z₀",
            (("Progressive distillation", "section 4"), ("EDM", "table 1, c_skip, c_out and c_in, up to the sign")),
        ),
    ),
    "loss": (
        Entry(
            "loss",
            losses.denoising_loss,
            "E |net(x_t, t) - out*|², with x_t = α x₀ + σ ε",
            "x₀ ε α σ t",
            (("DDPM", "algorithm 1, eq. 14"),),
        ),
    ),
    "min-snr": (Entry("weight", losses.MinSNR, "min(snr, 5)", "snr", (("Min-SNR", "section 3.4"),)),),
    "ddpm": (
        Entry(
            "sampler",
            samplers.ddpm,
            "α_ts = α_t / α_s, β = σ_t² - α_ts² σ_s²\nx_s = (α_ts σ_s² x_t + α_s β x̂₀) / σ_t² + √(β σ_s² / σ_t²) ε'",
            "x x̂₀ α_t σ_t α_s σ_s α_ts β ε'",
            (("DDPM", "algorithm 2, eq. 6-7"),),
        ),
    ),
    "ddim": (
        Entry(
            "sampler",
            samplers.ddim,
            "ε̂ = (x_t - α_t x̂₀) / σ_t\nx_s = α_s x̂₀ + √(σ_s² - new²) ε̂ + new ε', new = 0 for η = 0",
            "x x̂₀ ε̂ α_t σ_t α_s σ_s η ε'",
            (("DDIM", "eq. 12 and 16"),),
            (samplers.renoised,),
        ),
    ),
    "heun": (
        Entry(
            "sampler",
            samplers.heun,
            "d(x/α) / d(σ/α) = ε̂\nx_s/α_s = x_t/α_t + (σ_s/α_s - σ_t/α_t) (ε̂ + ε̂_s) / 2",
            "x x_s x̂₀ ε̂ ε̂_s α_t σ_t α_s σ_s",
            (("EDM", "algorithm 1"),),
        ),
    ),
    "dpmpp": (
        Entry(
            "sampler",
            samplers.dpmpp,
            "ε̂ = (x_t - α_t D) / σ_t\nx_s = α_s D + √(σ_s² - new²) ε̂ + new ε', new = 0 for η = 0\n"
            "D = x̂₀ + (x̂₀ - x̂₀ of the previous step) h / (2 · the previous step in λ), h = λ_s - λ_t",
            "x x̂₀ ε̂ α_t σ_t α_s σ_s λ h η ε'",
            (("DPM-Solver++", "algorithm 2"),),
            (samplers.renoised,),
        ),
    ),
    "guidance": (
        Entry(
            "guidance",
            guidance.Guided,
            "x̂₀ = x̂₀(none) + w (x̂₀(label) - x̂₀(none))",
            "x̂₀(none) w",
            (("CFG", "eq. 6, where w - 1 is called w"),),
        ),
    ),
    "autoguidance": (
        Entry(
            "guidance",
            guidance.AutoGuided,
            "x̂₀ = x̂₀(guide) + w (x̂₀ - x̂₀(guide))",
            "x̂₀(guide) x̂₀ w",
            (("Autoguidance", "eq. 3"),),
        ),
    ),
    "ema": (
        Entry("EMA", ema.EMA, "θ̄ ← decay(n) θ̄ + (1 - decay(n)) θ", "θ̄ θ n", (("EDM2", "section 3"),)),
        Entry("EMA decay", ema.power_decay, "decay(n) = (1 - 1/n)^(γ + 1)", "γ n", (("EDM2", "eq. 121-127"),)),
    ),
    "fid": (
        Entry(
            "metric",
            metrics.frechet_distance,
            "|μ_a - μ_b|² + tr(S_a + S_b - 2 (S_a S_b)^½)",
            "μ S",
            (("FID", "eq. 6"),),
        ),
    ),
    "kid": (
        Entry(
            "metric",
            metrics.kernel_distance,
            "E k(x, x') + E k(y, y') - 2 E k(x, y), k(x, y) = (x·y / D + 1)³",
            "n m",
            (("KID", "section 4"),),
        ),
    ),
    "is": (Entry("metric", metrics.inception_score, "exp E_x KL(p(y|x) ‖ p(y))", "", (("IS", "section 4"),)),),
    "precision": (
        Entry(
            "metric",
            metrics.precision_recall,
            "precision = share of samples inside the ball of a real image; recall = the reverse\n"
            "the ball of an image reaches to the k-th nearest image of its own set",
            "k",
            (("Precision and recall", "eq. 1-2"), ("Density and coverage", "section 3")),
        ),
    ),
}
ENTRIES |= {"ddpm-beta": ENTRIES["ddpm"], "dpmpp-sde": ENTRIES["dpmpp"]}
ENTRIES |= dict.fromkeys(("recall", "density", "coverage"), ENTRIES["precision"])
"""name -> entries; a schedule and a target may have the same name."""


def file_of(thing: Callable[..., Any]) -> str:
    """The file of a class or function, relative to the folder of the package."""
    return str(Path(inspect.getsourcefile(thing) or "").relative_to(Path(__file__).parents[2]))


def code_of(thing: Callable[..., Any]) -> tuple[str, int, str]:
    """(file, its first line, the code without its docstring) of a class or function."""
    lines, first = inspect.getsourcelines(thing)
    docstring = ast.parse("".join(lines)).body[0].body[0]  # pyrefly: ignore[missing-attribute]
    del lines[docstring.lineno - 1 : docstring.end_lineno]
    code = "".join(lines).replace(":\n\n", ":\n", 1)  # the empty line below the docstring
    return file_of(thing), first, code.rstrip()


def explain(name: str) -> str:
    """The text of `simple-diffusion explain NAME`. Raises KeyError for an unknown name."""
    parts = []
    for entry in ENTRIES[name]:
        rows = [(symbol, *SYMBOLS[symbol]) for symbol in entry.uses.split()]
        widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
        parts += [f"{name} ({entry.kind})", inspect.getdoc(entry.thing) or "", textwrap.indent(entry.formula, "    ")]
        parts += ["\n".join(f"{PAPERS[paper]}: {where}" for paper, where in entry.sources)]
        if rows:
            parts += ["\n".join(f"    {s:<{widths[0]}}  {v:<{widths[1]}}  {meaning}" for s, v, meaning in rows)]
        for file, line, code in map(code_of, entry.shown):
            parts += [f"{file}, line {line}:", textwrap.indent(code, "    ")]
    return "\n\n".join(parts)
