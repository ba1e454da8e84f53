"""The bug museum: each mistake is what its page says, and page, pictures and script tell of the same ones."""

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
    """The names of the script after a fast run of it."""
    names: dict = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAST", "1")
        patch.setattr(sys, "argv", [str(SCRIPT), "--out", str(folder)])
        exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), names)
    return names


class Heard(nn.Module):
    """A network that remembers the noise levels that it is told, and says nothing."""

    def forward(self, x, noise_level, cond=None):
        self.level, self.x = noise_level, x
        return torch.zeros_like(x)


class Nothing:
    """A denoiser that sees a clean image of zeros everywhere."""

    schedule = sd.Linear()

    def __call__(self, x, t, cond=None):
        return torch.zeros_like(x)


# --- the script, the page and the pictures


def test_a_run_draws_a_picture_of_each(museum, folder):
    assert list(museum["shown"]) == NAMES
    assert sorted(path.stem for path in folder.iterdir()) == sorted(NAMES)
    for name, (right, wrong) in museum["shown"].items():
        assert right.shape == wrong.shape == (museum["COUNT"], 1, 28, 28)
        # After four steps no pixel leaves the range, and no coin has fallen on a whole batch.
        assert name in ("no-clamp", "whole-batches") or not torch.equal(right, wrong), name


def test_without_a_folder_the_picture_is_shown(museum, monkeypatch):
    titles = []
    monkeypatch.setattr(plt, "show", lambda: titles.append(plt.gca().get_title()))
    monkeypatch.setitem(museum, "OUT", None)
    monkeypatch.setitem(museum, "shown", {})
    museum["exhibit"]("some-name", museum["right"], museum["right"])
    plt.close("all")
    assert titles == ["some-name: right above, wrong below"]


def test_page_and_pictures_tell_of_the_same():
    assert len(NAMES) == len(set(NAMES))
    sections = PAGE.split("\n## ")[1:]
    shown = [re.findall(r"!\[[^\]]+\]\(images/bugs/([\w-]+)\.png\)", section) for section in sections]
    assert shown == [[name] for name in NAMES]
    for section in sections:
        assert re.findall(r"^\*\*(.+?)\.\*\*", section, re.MULTILINE) == ["Symptom", "Recognise it", "Why", "Cure"]
        assert section.count("```python") == 1
    rows = re.findall(r"^\| \[([\w-]+)\]\(#([\w-]+)\) \|", PAGE, re.MULTILINE)
    slugs = [section.split("\n")[0].lower().replace(" ", "-") for section in sections]
    assert rows == list(zip(NAMES, slugs, strict=True))
    assert sorted(path.name for path in PICTURES.iterdir()) == sorted(f"{name}.png" for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_small_and_alike(name):
    path = PICTURES / f"{name}.png"
    assert path.stat().st_size < 60_000
    with Image.open(path) as picture:
        assert picture.size == (582, 118)  # two rows of ten


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_cures_name_what_is_there(code):
    compile(code, "cure", "exec")
    for name in re.findall(r"\bsd\.(\w+)", code):
        assert name in sd.__all__


# --- data


def test_images_lie_in_the_wrong_range(museum, monkeypatch):
    monkeypatch.setitem(museum, "loss", lambda denoiser, x0, cond, draws: x0)
    x0 = sd.to_unit(torch.arange(256, dtype=torch.uint8))
    halved, twice = museum["zero_to_one"](None, x0, None, None), museum["scaled_twice"](None, x0, None, None)
    assert (halved.min(), halved.max()) == (0, 1)
    assert (twice.min(), twice.max()) == (-3, 1)
    torch.testing.assert_close(halved, torch.arange(256) / 255)


def test_the_deviation_is_applied_twice(museum):
    right, wrong = (sd.to_unit(pixels) for pixels in museum["shown"]["data-std-twice"])
    assert museum["good"].data_std == museum["images"].std < 1
    # Both were rounded to whole levels, of which one is 2/255.
    torch.testing.assert_close(wrong, museum["images"].std * right, rtol=0, atol=2 / 255)


# --- training


def test_a_batch_loses_all_its_labels_or_none(museum):
    dropped = museum["drop_batches"](lambda denoiser, x0, cond, draws: cond, 10)
    x0, cond = torch.zeros(16, 1), torch.arange(16) % 10
    lost = []
    for step in range(1, 1001):
        draws = Draws(0, step, range(16), total=16)
        halves = torch.cat([dropped(None, x0[rows], cond[rows], draws[rows]) for rows in (slice(0, 8), slice(8, 16))])
        lost.append((halves == 10).double().mean().item())
    assert set(lost) == {0.0, 1.0}
    assert abs(sum(lost) - 100) < 30  # three deviations of a thousand coins


def test_the_library_drops_them_one_by_one():
    dropped = sd.drop_labels(lambda denoiser, x0, cond, draws: cond, 10, p=0.5)
    cond = torch.arange(64) % 10
    assert 16 < (dropped(None, torch.zeros(64, 1), cond, Draws(0, 1, range(64), total=64)) == 10).sum() < 48


@pytest.mark.parametrize("updates", [350, 1000])
def test_the_average_is_mostly_what_there_was_before_the_first_step(museum, updates):
    fast = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(fast.weight)
    old, library, short = sd.EMA(fast, museum["no_warmup"]), sd.EMA(fast), sd.EMA(fast, sd.constant_decay(0.9999))
    nn.init.ones_(fast.weight)
    for n in range(1, updates + 1):
        for ema in (old, library, short):
            ema.update(fast, n)
    assert old.model.weight.item() == pytest.approx(1 - 0.9999**updates, rel=1e-9)
    assert library.model.weight.item() == short.model.weight.item() == 1  # of the start nothing is left
    assert museum["stale"].decay is museum["no_warmup"]


# --- schedules


def test_the_clipped_table_ends_with_the_image_in_sight(museum):
    """Against the paper's formula, written out."""
    f = [math.cos((n / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(101)]
    betas = [1 - f[n] / f[n - 1] for n in range(1, 101)]
    end = torch.tensor(1.0, dtype=torch.float64)
    for schedule, most in ((museum["clipped"], 0.02), (museum["cosine"], 0.999)):
        want = math.prod(math.sqrt(1 - min(beta, most)) for beta in betas)
        assert schedule.alpha(end).item() == pytest.approx(want, rel=1e-9)
    assert museum["clipped"].alpha(end) > 0.44
    assert museum["cosine"].alpha(end) < 0.001


def test_the_network_is_told_the_step_and_not_the_level(museum):
    std, t = museum["images"].std, torch.tensor([0.1, 0.3, 0.9])
    x_t = torch.linspace(-1, 1, 3 * 784).reshape(3, 1, 28, 28)

    def told(kind, schedule):
        net = Heard()
        return net, kind(net, schedule, sd.targets.v, std)(x_t, t)

    def level(schedule):
        return (schedule.sigma(t) / (schedule.alpha(t) * std)).log() / 4

    right, _ = told(sd.Denoiser, sd.Linear())
    wrong, _ = told(museum["ToldTheStep"], sd.Linear())
    torch.testing.assert_close(right.level, level(sd.Linear()))
    torch.testing.assert_close(wrong.level, level(sd.Cosine()))
    assert ((right.level - wrong.level).abs() > 0.01).all()
    # On the schedule of the training it is no mistake at all.
    (one, its), (other, others) = told(sd.Denoiser, sd.Cosine()), told(museum["ToldTheStep"], sd.Cosine())
    assert torch.equal(one.level, other.level)
    assert torch.equal(one.x, other.x)
    assert torch.equal(its, others)
    assert museum["told_the_step"].net is museum["told_the_level"].net is museum["good"].net


# --- drawing


def test_the_few_steps_add_noise_of_variance_beta(museum):
    schedule, x = sd.Linear(), torch.zeros(1, 1)
    times = sd.uniform_grid(schedule, 10)

    def first(noise):
        return next(museum["beta"](Nothing(), x, times, None, lambda step, x: torch.full_like(x, noise)))

    added = (first(1.0) - first(0.0)).item()
    assert added**2 == pytest.approx(1 - (schedule.alpha(times[0]) / schedule.alpha(times[1])).item() ** 2, rel=1e-5)


def test_few_such_steps_leave_more_noise_than_the_level_has(museum):
    """Data N(0.7, 0.4²) with its exact denoiser: what is too much before the last step is the sampler's alone."""
    exact = Gaussian(sd.Linear())

    def excess(sampler, n):
        times = sd.uniform_grid(exact.schedule, n)
        *_, x, _ = sd.trajectory(exact, (64, 400), times, sampler=sampler)
        return (x.std() / exact.marginal_std(times[-1:], x[:1])).item() - 1

    assert excess(museum["beta"], 10) > 0.2
    assert abs(excess(museum["beta"], 200)) < 0.02
    assert excess(sd.ddpm, 10) < 0  # of the smaller variance there is too little


def test_the_noise_at_the_end_is_as_strong_as_the_last_level(museum):
    schedule, x = sd.Linear(), torch.ones(2, 1)
    times = sd.uniform_grid(schedule, 10)
    *_, clean, noisy = museum["noisy_to_the_end"](Nothing(), x, times, None, lambda step, x: torch.ones_like(x))
    assert torch.equal(clean, torch.zeros_like(x))
    torch.testing.assert_close(noisy, torch.full_like(x, schedule.sigma(times[-1]).item()))


def test_without_labels_it_draws_from_all_classes(museum):
    _, wrong = museum["shown"]["no-labels"]
    null = torch.full_like(museum["cond"], museum["null"])
    assert torch.equal(wrong, sd.to_uint8(museum["drawn"](sd.Clipped(museum["good"]), cond=null)))
    with pytest.raises(ValueError, match="guidance needs a label"):
        museum["drawn"](museum["guided"](museum["good"]), cond=None)


# --- saving


def test_without_a_clamp_pixels_wrap_round(museum):
    x = torch.tensor([-1.01, -1.0, 0.2, 1.0, 1.01])
    assert museum["wrapped"](x).tolist() == [255, 0, 153, 255, 0]
    assert sd.to_uint8(x).tolist() == [0, 0, 153, 255, 255]
    inside = sd.to_unit(torch.arange(256, dtype=torch.uint8))
    assert torch.equal(museum["wrapped"](inside), sd.to_uint8(inside))


def test_a_stretched_image_tells_nothing_of_its_range(museum):
    x = sd.to_unit(museum["images"].pixels[:8])
    faint = x * torch.linspace(0.2, 1.5, 8).reshape(-1, 1, 1, 1) + 0.3
    stretched = museum["stretched"](faint)
    assert stretched.amin((1, 2, 3)).tolist() == [0] * 8
    assert stretched.amax((1, 2, 3)).tolist() == [255] * 8
    assert (stretched.int() - museum["stretched"](x).int()).abs().max() <= 1  # up to rounding: the range is forgotten
