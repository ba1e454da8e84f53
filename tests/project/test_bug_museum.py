"""The bug museum: each bug does what its page describes; script, page and pictures list the same bugs."""

import math
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from oracles import Gaussian
from PIL import Image
from torch import nn

import simple_diffusion as sd
from simple_diffusion.data.digits import SIZES
from simple_diffusion.randomness import Draws

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "lessons" / "bug_museum.py"
PAGE = (ROOT / "docs" / "bug-museum.md").read_text()
PICTURES = ROOT / "docs" / "images" / "bugs"
NAMES = re.findall(r'\bexhibit\(\s*"([\w-]+)"', SCRIPT.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("museum") / "bugs"


@pytest.fixture(scope="module")
def museum(folder) -> dict:
    """The global names of the script after a fast run on a few digits."""
    names: dict = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAST", "1")
        patch.setitem(SIZES, "train", 200)
        patch.setitem(SIZES, "test", 50)
        patch.setattr(sys, "argv", [str(SCRIPT), "--out", str(folder)])
        exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), names)
    return names


class RecordInputs(nn.Module):
    """A network that records its inputs and returns zeros."""

    def forward(self, x, noise_level, cond=None):
        self.level, self.x = noise_level, x
        return torch.zeros_like(x)


class ZeroDenoiser:
    """A denoiser whose x0 prediction is always zero."""

    schedule = sd.Linear()

    def __call__(self, x, t, cond=None):
        return torch.zeros_like(x)


# --- the script, the page and the pictures


def test_a_run_makes_a_picture_of_each_bug(museum, folder):
    assert list(museum["shown"]) == NAMES
    assert sorted(path.stem for path in folder.iterdir()) == sorted(NAMES)
    for name, (correct, wrong) in museum["shown"].items():
        assert correct.shape == wrong.shape == (museum["COUNT"], 1, 28, 28)
        # After four training steps no pixel leaves the range, and no batch has lost its labels.
        assert name in ("no-clamp", "whole-batches") or not torch.equal(correct, wrong), name


def test_without_a_folder_the_picture_is_shown(museum, monkeypatch):
    titles = []
    monkeypatch.setattr(plt, "show", lambda: titles.append(plt.gca().get_title()))
    monkeypatch.setitem(museum, "OUT", None)
    monkeypatch.setitem(museum, "shown", {})
    museum["exhibit"]("some-name", museum["correct"], museum["correct"])
    plt.close("all")
    assert titles == ["some-name: correct above, with the bug below"]


def test_page_and_pictures_show_the_same_bugs():
    assert len(NAMES) == len(set(NAMES))
    sections = PAGE.split("\n## ")[1:]
    shown = [re.findall(r"!\[[^\]]+\]\(images/bugs/([\w-]+)\.png\)", section) for section in sections]
    assert shown == [[name] for name in NAMES]
    for section in sections:
        assert re.findall(r"^\*\*(.+?)\.\*\*", section, re.MULTILINE) == ["Symptom", "Check", "Cause", "Fix"]
        assert section.count("```python") == 1
    rows = re.findall(r"^\| \[([\w-]+)\]\(#([\w-]+)\) \|", PAGE, re.MULTILINE)
    titles = [section.split("\n")[0].lower() for section in sections]
    slugs = [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles]
    assert rows == list(zip(NAMES, slugs, strict=True))
    assert sorted(path.name for path in PICTURES.iterdir()) == sorted(f"{name}.png" for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_small_and_of_one_size(name):
    path = PICTURES / f"{name}.png"
    assert path.stat().st_size < 60_000
    with Image.open(path) as picture:
        assert picture.size == (582, 118)  # two rows of ten


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_fixes_use_public_names(code):
    compile(code, "fix", "exec")
    for name in re.findall(r"\bsd\.(\w+)", code):
        assert name in sd.__all__


# --- data


def test_images_are_in_the_wrong_range(museum, monkeypatch):
    monkeypatch.setitem(museum, "loss", lambda denoiser, x0, cond, draws: x0)
    x0 = sd.to_unit(torch.arange(256, dtype=torch.uint8))
    halved, twice = museum["zero_to_one"](None, x0, None, None), museum["scaled_twice"](None, x0, None, None)
    assert (halved.min(), halved.max()) == (0, 1)
    assert (twice.min(), twice.max()) == (-3, 1)
    torch.testing.assert_close(halved, torch.arange(256) / 255)


def test_data_std_is_applied_twice(museum):
    correct, wrong = (sd.to_unit(pixels) for pixels in museum["shown"]["data-std-twice"])
    assert museum["trained"].data_std == museum["images"].std < 1
    # Both are rounded to gray levels; one level is 2/255.
    torch.testing.assert_close(wrong, museum["images"].std * correct, rtol=0, atol=2 / 255)


# --- training


def test_a_batch_loses_all_its_labels_or_none(museum):
    dropped = museum["drop_batches"](lambda denoiser, x0, cond, draws: cond, 10)
    x0, cond = torch.zeros(16, 1), torch.arange(16) % 10
    lost = []
    for step in range(1, 401):
        draws = Draws(0, step, range(16), total=16)
        halves = torch.cat([dropped(None, x0[rows], cond[rows], draws[rows]) for rows in (slice(0, 8), slice(8, 16))])
        lost.append((halves == 10).double().mean().item())
    assert set(lost) == {0.0, 1.0}
    assert abs(sum(lost) - 40) < 18  # three standard deviations


def test_the_library_drops_labels_independently():
    dropped = sd.drop_labels(lambda denoiser, x0, cond, draws: cond, 10, p=0.5)
    cond = torch.arange(64) % 10
    assert 16 < (dropped(None, torch.zeros(64, 1), cond, Draws(0, 1, range(64), total=64)) == 10).sum() < 48


def test_the_average_is_mostly_the_initial_weights(museum):
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    stale, library, constant = (
        sd.EMA(model, museum["no_warmup"]),
        sd.EMA(model),
        sd.EMA(model, sd.constant_decay(0.9999)),
    )
    nn.init.ones_(model.weight)
    for n in range(1, 351):
        for ema in (stale, library, constant):
            ema.update(model, n)
    assert stale.model.weight.item() == pytest.approx(1 - 0.9999**350, rel=1e-9)
    assert library.model.weight.item() == constant.model.weight.item() == 1  # nothing of the initial weights is left
    assert museum["stale_ema"].decay is museum["no_warmup"]


# --- schedules


def test_the_last_level_of_the_clipped_table_contains_the_image(museum):
    """Compared with the formula of the paper."""
    f = [math.cos((n / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(101)]
    betas = [1 - f[n] / f[n - 1] for n in range(1, 101)]
    end = torch.tensor(1.0, dtype=torch.float64)
    for schedule, most in ((museum["clipped"], 0.02), (museum["cosine"], 0.999)):
        want = math.prod(math.sqrt(1 - min(beta, most)) for beta in betas)
        assert schedule.alpha(end).item() == pytest.approx(want, rel=1e-9)
    assert museum["clipped"].alpha(end) > 0.44
    assert museum["cosine"].alpha(end) < 0.001


def test_the_network_is_conditioned_on_the_step_and_not_on_the_level(museum):
    std, t = museum["images"].std, torch.tensor([0.1, 0.3, 0.9])
    x_t = torch.linspace(-1, 1, 3 * 784).reshape(3, 1, 28, 28)

    def inputs(kind, schedule):
        net = RecordInputs()
        return net, kind(net, schedule, sd.targets.v, std)(x_t, t)

    def level(schedule):
        return (schedule.sigma(t) / (schedule.alpha(t) * std)).log() / 4

    correct, _ = inputs(sd.Denoiser, sd.Linear())
    wrong, _ = inputs(museum["ConditionedOnStep"], sd.Linear())
    torch.testing.assert_close(correct.level, level(sd.Linear()))
    torch.testing.assert_close(wrong.level, level(sd.Cosine()))
    assert ((correct.level - wrong.level).abs() > 0.01).all()
    # On the schedule of the training there is no difference.
    (net, x0), (other_net, other_x0) = (
        inputs(sd.Denoiser, sd.Cosine()),
        inputs(museum["ConditionedOnStep"], sd.Cosine()),
    )
    assert torch.equal(net.level, other_net.level)
    assert torch.equal(net.x, other_net.x)
    assert torch.equal(x0, other_x0)
    assert museum["on_step"].net is museum["on_level"].net is museum["trained"].net


# --- sampling


def test_the_few_steps_add_noise_of_variance_beta(museum):
    schedule, x = sd.Linear(), torch.zeros(1, 1)
    times = sd.uniform_grid(schedule, 10)

    def first(noise):
        return next(museum["ddpm_beta"](ZeroDenoiser(), x, times, None, lambda step, x: torch.full_like(x, noise)))

    added = (first(1.0) - first(0.0)).item()
    assert added**2 == pytest.approx(1 - (schedule.alpha(times[0]) / schedule.alpha(times[1])).item() ** 2, rel=1e-5)


def test_few_such_steps_leave_more_noise_than_the_level_has(museum):
    """With the exact denoiser of N(0.7, 0.4²), only the sampler causes the excess of noise before the last step."""
    exact = Gaussian(sd.Linear())

    def excess(sampler, n):
        times = sd.uniform_grid(exact.schedule, n)
        *_, x, _ = sd.trajectory(exact, (64, 400), times, sampler=sampler)
        return (x.std() / exact.marginal_std(times[-1:], x[:1])).item() - 1

    assert excess(museum["ddpm_beta"], 10) > 0.2
    assert abs(excess(museum["ddpm_beta"], 200)) < 0.02
    assert excess(sd.ddpm, 10) < 0  # the posterior variance adds too little noise


def test_the_noise_at_the_end_is_as_strong_as_the_last_level(museum):
    schedule, x = sd.Linear(), torch.ones(2, 1)
    times = sd.uniform_grid(schedule, 10)
    *_, clean, noisy = museum["noise_in_last_step"](ZeroDenoiser(), x, times, None, lambda step, x: torch.ones_like(x))
    assert torch.equal(clean, torch.zeros_like(x))
    torch.testing.assert_close(noisy, torch.full_like(x, schedule.sigma(times[-1]).item()))


def test_without_labels_samples_come_from_all_classes(museum):
    _, wrong = museum["shown"]["no-labels"]
    null = torch.full_like(museum["cond"], museum["null"])
    assert torch.equal(wrong, sd.to_uint8(museum["sample"](sd.Clipped(museum["trained"]), cond=null)))
    with pytest.raises(ValueError, match="guidance needs a label"):
        museum["sample"](museum["guided"](museum["trained"]), cond=None)


# --- saving


def test_without_a_clamp_pixels_wrap_around(museum):
    x = torch.tensor([-1.01, -1.0, 0.2, 1.0, 1.01])
    assert museum["without_clamp"](x).tolist() == [255, 0, 153, 255, 0]
    assert sd.to_uint8(x).tolist() == [0, 0, 153, 255, 255]
    inside = sd.to_unit(torch.arange(256, dtype=torch.uint8))
    assert torch.equal(museum["without_clamp"](inside), sd.to_uint8(inside))


def test_scaling_to_its_own_range_hides_the_range_of_an_image(museum):
    x = sd.to_unit(museum["images"].pixels[:8])
    faint = x * torch.linspace(0.2, 1.5, 8).reshape(-1, 1, 1, 1) + 0.3
    stretched = museum["own_range"](faint)
    assert stretched.amin((1, 2, 3)).tolist() == [0] * 8
    assert stretched.amax((1, 2, 3)).tolist() == [255] * 8
    assert (stretched.int() - museum["own_range"](x).int()).abs().max() <= 1  # up to rounding
