"""Exercises: right solutions pass, typical mistakes are named, and a bad solution does no harm."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults import ends, forked

from simple_diffusion.errors import SimpleDiffusionError, UsageError
from simple_diffusion.learn import judge
from simple_diffusion.learn.exercises import EXERCISES, describe
from simple_diffusion.learn.judge import check, fault_of

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {asked.name: number for number, asked in enumerate(EXERCISES, 1)}

RIGHT = "alpha * x0 + sigma * eps"
DDPM = (
    "a = alpha_t / alpha_s; beta = sigma_t**2 - a**2 * sigma_s**2; "
    "mean = (a * sigma_s**2 * x_t + alpha_s * beta * x0_hat) / sigma_t**2; var = beta * sigma_s**2 / sigma_t**2; "
)
TABLE = (  # DDPM as in the paper, with alpha_bar and the betas
    "bar_t, bar_s = alpha_t**2, alpha_s**2; beta = 1 - bar_t / bar_s; "
    "mean = bar_s**0.5 * beta / (1 - bar_t) * x0_hat + (1 - beta)**0.5 * (1 - bar_s) / (1 - bar_t) * x_t; "
)
DDIM = "eps_hat = (x_t - alpha_t * x0_hat) / sigma_t; "
ANGLE = "f = torch.cos((t + 0.008) / 1.008 * math.pi / 2)**2; f0 = math.cos(0.008 / 1.008 * math.pi / 2)**2; "
FIELD = "field, jump = 1, 1\n    for kernel, stride in layers:\n        "
ROOTS = "roots = torch.linspace(sigma_max**(1 / rho), sigma_min**(1 / rho), n); "
FID = "m = ((real.mean(0) - fake.mean(0))**2).sum(); S, T = torch.cov(real.T), torch.cov(fake.T); "
EIGEN = FID + "root = torch.linalg.eigvals(S @ T).sqrt().real.sum(); "

RIGHTS = [
    ("q_sample", RIGHT),
    ("q_sample", "torch.add(sigma * eps, x0, alpha=alpha)"),
    ("ddpm_step", DDPM + "return mean + var**0.5 * noise"),
    ("ddpm_step", DDPM + "return mean if sigma_s == 0 else mean + math.sqrt(var) * noise"),
    ("ddpm_step", TABLE + "return mean + ((1 - bar_s) / (1 - bar_t) * beta)**0.5 * noise"),
    ("receptive_field", FIELD + "field += (kernel - 1) * jump; jump *= stride\n    return field"),
    ("receptive_field", "n = 1\n    for k, s in reversed(layers): n = (n - 1) * s + k\n    return torch.tensor(n)"),
    ("cosine", ANGLE + "return (f / f0).sqrt(), (1 - f / f0).sqrt()"),
    ("guided", "x0_null + scale * (x0_cond - x0_null)"),
    ("guided", "w = scale - 1; return (1 + w) * x0_cond - w * x0_null"),
    ("ema_update", "decay * average + (1 - decay) * weight"),
    ("ema_update", "average.lerp(weight, 1 - decay)"),
    ("ddim_step", DDIM + "return alpha_s * x0_hat + sigma_s * eps_hat"),
    ("ddim_step", "r = sigma_s / sigma_t; return r * x_t + (alpha_s - r * alpha_t) * x0_hat"),
    ("x0_from_v", "alpha * x_t - sigma * v"),
    ("karras_levels", ROOTS + "return roots**rho"),
    ("karras_levels", ROOTS + "return (roots.double())**rho"),
    ("flow_x0", "x_t - t * velocity"),
    ("fid", EIGEN + "return m + S.trace() + T.trace() - 2 * root"),
    ("fid", EIGEN + "return float(m + (S + T).trace() - 2 * root)"),
    ("nearest", "((samples[:, None] - data)**2).sum(2).argmin(1)"),
    ("nearest", "torch.cdist(samples, data).argmin(1)"),
]

WRONGS = [
    ("q_sample", "sigma * x0 + alpha * eps", "alpha and sigma are swapped"),
    ("q_sample", "alpha * eps + sigma * x0", "alpha and sigma are swapped"),
    ("q_sample", "alpha * x0 + sigma**2 * eps", "sigma is squared"),
    ("q_sample", "alpha**0.5 * x0 + (1 - alpha)**0.5 * eps", "alpha_bar"),
    ("q_sample", "alpha * x0 + (1 - alpha) * eps", "1 - alpha"),
    ("q_sample", "x0 + sigma * eps", "not scaled by alpha"),
    ("ddpm_step", DDPM + "return mean + var * noise", "by the variance, not by the standard deviation"),
    ("ddpm_step", DDPM + "return mean + beta**0.5 * noise", "the last step adds noise"),
    ("ddpm_step", TABLE + "return mean + beta**0.5 * noise", "the last step adds noise"),
    ("ddpm_step", DDPM + "return mean + (beta**0.5 if sigma_s else 0) * noise", "the variance is beta"),
    ("ddpm_step", DDPM + "return mean", "the noise is missing"),
    ("ddpm_step", DDPM + "return mean + noise", "the noise is not scaled"),
    ("ddpm_step", DDPM + "return mean + sigma_s * noise", "scaled by sigma_s"),
    ("ddpm_step", DDPM + "return mean + var**0.5 * torch.randn_like(x_t)", "random numbers"),
    (
        "ddpm_step",
        DDPM.replace("x_t", "x0_hat", 1).replace("beta * x0_hat", "beta * x_t") + "return mean + var**0.5 * noise",
        "two coefficients",
    ),
    ("ddpm_step", DDPM.replace(" / alpha_s", "", 1) + "return mean + var**0.5 * noise", "alpha_ts"),
    ("ddpm_step", "alpha_s * x0_hat + sigma_s * noise", "x_t is not used"),
    ("ddpm_step", DDIM + "return alpha_s * x0_hat + sigma_s * eps_hat", "DDIM"),
    ("receptive_field", "1 + sum(k - 1 for k, s in layers)", "the strides are ignored"),
    ("receptive_field", FIELD + "jump *= stride; field += (kernel - 1) * jump\n    return field", "its own layer"),
    ("receptive_field", "n = 1\n    for k, s in layers: n = (n - 1) * s + k\n    return n", "last to first"),
    ("receptive_field", "sum(k for k, s in layers)", "the sum is over kernel"),
    ("receptive_field", "[1]", "returns a value of type list instead of a number"),
    ("receptive_field", "layers.reverse(); return 1", "changes layers in place"),
    ("cosine", ANGLE + "return (1 - f / f0).sqrt(), (f / f0).sqrt()", "swapped"),
    ("cosine", ANGLE + "return f / f0, 1 - f / f0", "the square roots of alpha and sigma are missing"),
    ("cosine", ANGLE + "return f / f0, (1 - f / f0).sqrt()", "the square root of alpha is missing"),
    ("cosine", ANGLE + "return f.sqrt(), (1 - f).sqrt()", "not divided by f(0)"),
    ("cosine", "a = torch.cos(t * math.pi / 2); return a, torch.sin(t * math.pi / 2)", "offset s"),
    ("cosine", ANGLE + "return (f / f0).sqrt()", "type Tensor instead of a tuple of 2 tensors"),
    ("cosine", ANGLE + "return [(f / f0).sqrt(), (1 - f / f0).sqrt()]", "type list instead of a tuple of 2 tensors"),
    ("cosine", ANGLE + "return (f / f0).sqrt().numpy(), (1 - f / f0).sqrt()", "type ndarray instead of a tensor"),
    ("guided", "(1 + scale) * x0_cond - scale * x0_null", "the w of the paper"),
    ("guided", "x0_cond + scale * (x0_cond - x0_null)", "the w of the paper"),
    ("guided", "x0_cond + scale * (x0_null - x0_cond)", "swapped"),
    ("guided", "scale * (x0_cond - x0_null)", "x0_null is missing"),
    ("guided", "x0_null + scale * x0_cond", "not x0_cond - x0_null"),
    ("guided", "x0_null - scale * (x0_cond - x0_null)", "wrong sign"),
    ("ema_update", "(1 - decay) * average + decay * weight", "decay and 1 - decay are swapped"),
    ("ema_update", "decay * average + weight", "not scaled by 1 - decay"),
    ("ema_update", "average - (1 - decay) * (weight - average)", "the update has the wrong sign"),
    ("ema_update", "new = decay * average + (1 - decay) * weight; return average", "the old average"),
    ("ema_update", "average.lerp_(weight, 1 - decay)", "changes average in place"),
    ("ema_update", "average.lerp_(weight, 1 - decay); return", "changes average in place"),
    ("ema_update", "new = decay * average + (1 - decay) * weight; return", "returns nothing instead of a tensor"),
    (
        "ddim_step",
        "eps_hat = (x_t - alpha_s * x0_hat) / sigma_s if sigma_s else x_t; return alpha_s * x0_hat + sigma_s * eps_hat",
        "with the levels of s",
    ),
    (
        "ddim_step",
        "eps_hat = (x_t - alpha_s * x0_hat) / sigma_t; return alpha_s * x0_hat + sigma_s * eps_hat",
        "alpha_s, not alpha_t",
    ),
    ("ddim_step", "return alpha_s * x0_hat + sigma_s * (x_t - alpha_t * x0_hat)", "not divided by sigma_t"),
    ("ddim_step", DDIM + "return sigma_s * x0_hat + alpha_s * eps_hat", "swapped"),
    ("ddim_step", DDIM + "return alpha_s * x0_hat + sigma_s * torch.randn_like(x_t)", "random numbers"),
    ("ddim_step", "torch.manual_seed(0); return alpha_s * x0_hat + sigma_s * torch.randn_like(x_t)", "random numbers"),
    ("ddim_step", DDPM + "return mean", "DDPM"),
    ("ddim_step", "return alpha_s * x0_hat", "eps_hat is missing"),
    ("x0_from_v", "alpha * x_t + sigma * v", "v has the wrong sign"),
    ("x0_from_v", "sigma * x_t - alpha * v", "swapped"),
    ("x0_from_v", "sigma * x_t + alpha * v", "eps_hat"),
    ("x0_from_v", "(x_t - sigma * v) / alpha", "as if it were eps"),
    ("x0_from_v", "-(alpha * x_t - sigma * v)", "the result is -1 times the right one"),
    ("karras_levels", ROOTS + "return (roots**rho).flip(0)", "in ascending order"),
    ("karras_levels", "torch.linspace(sigma_max**rho, sigma_min**rho, n)**(1 / rho)", "rho and 1 / rho are swapped"),
    ("karras_levels", "torch.linspace(sigma_max, sigma_min, n)", "rho is not used"),
    ("karras_levels", ROOTS + "return roots", "not raised to the power rho"),
    ("karras_levels", "torch.logspace(math.log10(sigma_max), math.log10(sigma_min), n)", "logarithms"),
    ("karras_levels", ROOTS + "return torch.cat([roots**rho, torch.zeros(1)])", "the level 0"),
    ("karras_levels", ROOTS + "return (roots**rho).tolist()", "type list instead of a tensor"),
    ("karras_levels", ROOTS + "return (roots**rho).long()", "torch.int64 instead of"),
    ("flow_x0", "x_t + t * velocity", "the velocity has the wrong sign"),
    ("flow_x0", "x_t - (1 - t) * velocity", "1 - t is used"),
    ("flow_x0", "x_t + (1 - t) * velocity", "eps_hat"),
    ("flow_x0", "x_t - velocity", "t is not used"),
    ("fid", EIGEN + "return (S + T).trace() - 2 * root", "the means are missing"),
    ("fid", EIGEN + "return m.sqrt() + (S + T).trace() - 2 * root", "not squared"),
    ("fid", EIGEN + "return m + (S + T).trace()", "the term with (S S')^(1/2) is missing"),
    ("fid", EIGEN + "return m + (S + T).trace() - root", "factor 2"),
    ("fid", FID + "return m + (S + T - 2 * torch.sqrt(S @ T)).trace()", "elementwise"),
    ("fid", FID + "return m + (S + T - 2 * S @ T).trace()", "the square root of S S' is missing"),
    ("fid", FID + "return m + ((real.std(0) - fake.std(0))**2).sum()", "diagonals"),
    ("fid", EIGEN.replace("S @ T", "S + T") + "return m + (S + T).trace() - 2 * root", "S + S'"),
    ("fid", EIGEN.replace(".T)", ".T, correction=0)") + "return m + (S + T).trace() - 2 * root", "divided by N"),
    ("fid", EIGEN + "return (m + (S + T).trace() - 2 * root).clamp(min=0).sqrt()", "square root of the distance"),
    ("fid", EIGEN + "return m + S.trace() + T.trace() - 2 * torch.linalg.eigvals(S @ T).sqrt().sum()", "real part"),
    ("nearest", "torch.cdist(samples, data).argmax(1)", "farthest"),
    ("nearest", "torch.cdist(samples, data).topk(2, largest=False).indices[:, 1]", "second nearest"),
    ("nearest", "torch.cdist(samples, data).min(1).values", "the distance, not the index"),
    ("nearest", "data[torch.cdist(samples, data).argmin(1)]", "the image, not its index"),
    ("nearest", "torch.cdist(samples, data).argmin(0)", "nearest sample of each image"),
    ("nearest", "(samples[:, None] - data).abs().sum(2).argmin(1)", "not squared"),
    ("nearest", "torch.cdist(samples, data).argmin(1).float()", "torch.float32 instead of torch.int64"),
    # faults of any function
    ("q_sample", f"2 * ({RIGHT})", "2 times the right one"),
    ("q_sample", f"({RIGHT}).double()", "torch.float64 instead of torch.float32"),
    ("q_sample", f"({RIGHT}).long()", "torch.int64 instead of torch.float32"),
    ("q_sample", f"({RIGHT})[0]", "shape [2, 5, 4] instead of [3, 2, 5, 4]"),
    ("q_sample", f"({RIGHT}) / (0 * x0)", "NaN or infinity"),
    ("q_sample", f"({RIGHT}).numpy()", "type ndarray instead of a tensor"),
    ("q_sample", "x0.mul_(alpha).add_(sigma * eps)", "changes x0 in place"),
    (
        "q_sample",
        f"({RIGHT}) if sigma < 0.99 else x0",
        "wrong at t = 1.0, but right in other cases: the result contains",
    ),
    ("q_sample", "x = 1 / 0; return x", "fails at t = 0.1: ZeroDivisionError: division by zero (line 6)"),
    ("q_sample", "f = lambda x: x / 0\n    return f(1)", "division by zero (line 6)"),
    ("q_sample", "torch.sqrt(alpha) * x0", "fails at t = 0.1: TypeError"),
    ("q_sample", "sys.exit(0)", "SystemExit: 0 (line 6)"),
    ("q_sample", "input()", "EOFError"),
    ("q_sample", "q_sample(x0, eps, alpha, sigma)", "RecursionError"),
]


def solution(folder: Path, name: str, body: str) -> Path:
    """A file with the function: an expression, or statements that return it, from line 6 on."""
    if "return" not in body:
        body = f"return {body}"
    file = folder / "my_solution.py"
    arguments = ", ".join(EXERCISES[NUMBERS[name] - 1].arguments)
    file.write_text(f"import math\nimport sys\nimport torch\n\ndef {name}({arguments}):\n    {body}\n")
    return file


@pytest.fixture(autouse=True)
def _path_and_input(monkeypatch):
    """Solutions run in this process without standard input, and may change sys.path."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # bytecode of the last second would hide a change
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115
    yield
    sys.stdin.close()


# --- judging in this process


@pytest.mark.parametrize("name", NUMBERS)
def test_right_solutions_and_the_library_pass(tmp_path, name):
    for body in (body for right, body in RIGHTS if right == name):
        assert "is right" in check(NUMBERS[name], solution(tmp_path, name, body)), body
    file = tmp_path / "library.py"
    file.write_text(f"from simple_diffusion.learn.exercises import {name}\n")
    assert f"{name} is right" in check(NUMBERS[name], file)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_fault_is_named(tmp_path, name):
    for body, words in ((body, words) for wrong, body, words in WRONGS if wrong == name):
        with pytest.raises(SimpleDiffusionError) as error:
            check(NUMBERS[name], solution(tmp_path, name, body))
        assert error.value.exit_code == 1
        assert str(error.value).startswith(f"{name} ")
        assert words in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", EXERCISES, ids=lambda task: task.name)
def test_every_mistake_differs_from_the_solution_and_from_the_other_mistakes(task):
    for words, mistake in task.mistakes.items():
        assert fault_of(task, mistake, Path()) == f"is wrong: {words}"


def test_a_file_that_cannot_be_used_is_refused(tmp_path):
    file = tmp_path / "my_solution.py"
    for text, words in {
        "x = 1\ndef q_sample(:\n": ("my_solution.py cannot run", "SyntaxError", "line 2"),
        "\n\nimport no_such_module\n": ("ModuleNotFoundError", "no_such_module", "line 3"),
        "x = 1\nraise SystemExit\n": ("SystemExit", "line 2"),
        "def qsample(x0, eps, alpha, sigma):\n    return x0\n": ("does not define", "q_sample(x0, eps, alpha, sigma)"),
        "q_sample = 3\n": ("does not define",),
        "\0": ("cannot run",),
    }.items():
        file.write_text(text)
        with pytest.raises(UsageError) as error:
            check(1, file)
        for word in words:
            assert word in str(error.value)
        assert "\n" not in str(error.value)


def test_a_solution_may_import_a_module_in_its_folder(tmp_path):
    (tmp_path / "my_helper.py").write_text("def mix(a, x, s, e):\n    return a * x + s * e\n")
    file = solution(tmp_path, "q_sample", "import my_helper; return my_helper.mix(alpha, x0, sigma, eps)")
    assert "is right" in check(1, file)


# --- the child process


def verdict(file: Path, seconds: float = 10) -> tuple[int, str]:
    """The exit code and the output of the child process for exercise 1, forked from this process."""
    out = file.with_name("stdout")

    def main() -> None:
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        judge.SECONDS, sys.argv = seconds, ["judge", "1", str(file)]
        judge.main()

    return forked(main), out.read_text()


def test_the_child_process_ends_with_a_verdict(tmp_path):
    assert verdict(solution(tmp_path, "q_sample", RIGHT)) == (
        0,
        "q_sample is right: it agrees with the library in every case",
    )
    swapped = solution(tmp_path, "q_sample", "sigma * x0 + alpha * eps")
    assert verdict(swapped) == (1, "q_sample is wrong: alpha and sigma are swapped")
    swapped.write_text("def q_sample(:\n")
    assert verdict(swapped) == (2, "my_solution.py cannot run: SyntaxError: invalid syntax (line 1)")


def test_a_solution_that_never_returns_is_stopped(tmp_path):
    body = "import time\n    while True:\n        try: time.sleep(1)\n        except BaseException: pass\n    return"
    words = "my_solution.py did not finish within 0.5 seconds (line 8): does one of its loops never end?"
    assert verdict(solution(tmp_path, "q_sample", body), 0.5) == (1, words)


# --- the command


def test_the_command_shows_what_the_solution_prints(tmp_path, capfd):
    body = "\n    ".join(["for i in range(1_000): print('line', i)", "print('x' * 10**5)", f"return {RIGHT}"])
    file = solution(tmp_path, "q_sample", body)
    assert ends(["check", "1", str(file), "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"exercise": 1, "solution": str(file), "right": True}
    assert err.count("line 999\n") == 3  # once for each case
    assert err.splitlines()[-1] == "q_sample is right: it agrees with the library in every case."
    assert [path.name for path in tmp_path.iterdir()] == ["my_solution.py"]  # no __pycache__


@pytest.mark.parametrize(
    ("code", "stdout", "end", "words"),
    [
        (1, "q_sample is wrong: sigma is squared", 1, "q_sample is wrong: sigma is squared"),
        (2, "my_solution.py cannot run: ...", 2, "my_solution.py cannot run: ..."),
        (0, "", 1, "{file} ended its process before it was judged (exit code 0): return instead"),
        (-9, "", 1, "{file} ended its process before it was judged (exit code -9): return instead"),
        (None, "", 1, "{file} did not finish within 120 seconds: does one of its loops never end?"),
    ],
)
def test_the_command_reports_how_the_child_process_ended(tmp_path, capsys, monkeypatch, code, stdout, end, words):
    def run(argv, timeout, **options):
        if code is None:
            raise subprocess.TimeoutExpired(argv, timeout)
        return subprocess.CompletedProcess(argv, code, stdout)

    monkeypatch.setattr(subprocess, "run", run)
    file = solution(tmp_path, "q_sample", RIGHT)
    assert ends(["check", "1", str(file)]) == end
    assert capsys.readouterr().err == f"simple-diffusion: {words.format(file=file)}\n"


def test_without_a_file_the_command_shows_what_to_write(tmp_path, capsys):
    assert ends(["check"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == len(EXERCISES)
    for row, (name, number) in zip(rows, NUMBERS.items(), strict=True):
        assert row.split()[0] == str(number)
        assert name in row
        assert ends(["check", str(number)]) == 0
        out = capsys.readouterr().out
        assert out == describe(number) + "\n"
        stub = "\n".join(line[4:] for line in out.splitlines() if line.startswith("    ") and "check" not in line)
        file = tmp_path / "my_solution.py"
        file.write_text(stub)
        with pytest.raises(SimpleDiffusionError, match="returns nothing"):
            check(number, file)
    assert ends(["check", "99"]) == 2


# --- the page and the lessons


def test_the_page_has_what_the_command_prints():
    page = (ROOT / "docs" / "exercises.md").read_text()
    sections = page.split("\n## ")[1:]
    assert [section.strip() for section in sections] == [describe(number) for number in NUMBERS.values()]


@pytest.mark.parametrize("lesson", sorted((ROOT / "lessons").glob("[0-9]*.py")), ids=lambda path: path.name)
def test_a_lesson_asks_for_its_exercise(lesson):
    number = int(lesson.name[:2])
    words = " ".join(lesson.read_text().partition("**Exercise.**")[2].replace("\n# ", " ").split())
    assert f"`simple-diffusion check {number} my_solution.py`" in words
    name, arguments = EXERCISES[number - 1].name, EXERCISES[number - 1].arguments
    for call, given in re.findall(r"`(\w+)\(([^)]*)\)", words):
        assert (call, given.split(", ")) == (name, arguments)
