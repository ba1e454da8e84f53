"""Denoising trajectories show what the sampler computes, keep no more than they show, and clamp every pixel."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from oracles import ALL, Gaussian, f64
from PIL import Image, ImageSequence
from torch.multiprocessing.reductions import StorageWeakRef

from simple_diffusion import to_uint8, to_unit
from simple_diffusion.cli.main import main
from simple_diffusion.data.arrays import npz
from simple_diffusion.denoiser import Denoiser
from simple_diffusion.errors import DivergedError
from simple_diffusion.model.model_file import read, save
from simple_diffusion.networks.unet import UNet
from simple_diffusion.samplers import SAMPLERS, ddim, karras_grid, uniform_grid
from simple_diffusion.sampling import sample, trajectory
from simple_diffusion.schedules import Cosine, Flow, Karras, Linear
from simple_diffusion.targets import v
from simple_diffusion.viz.grids import animation, frames, make_grid, png, strips, webp
from simple_diffusion.viz.trajectory import FRACTIONS, noise_images, record_trajectory, steps_shown

SHAPE = (3, 1, 4, 6)


def picture(content) -> np.ndarray:
    with Image.open(content if not isinstance(content, bytes) else io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def animated(content) -> list[np.ndarray]:
    with Image.open(content if not isinstance(content, bytes) else io.BytesIO(content)) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


# --- which steps


def test_the_predecessors_six_panels_for_many_and_for_few_steps():
    assert steps_shown(FRACTIONS, 500) == [1, 201, 401, 451, 481, 500]
    assert steps_shown(FRACTIONS, 10) == [1, 4, 8, 9, 10]
    assert steps_shown(FRACTIONS, 1) == [1]


@pytest.mark.parametrize("n", [1, 2, 7, 500, 501])
def test_a_trajectory_runs_from_the_first_step_to_the_image(n):
    shown = steps_shown(FRACTIONS, n)
    assert (shown[0], shown[-1]) == (1, n)
    assert shown == sorted(set(shown))
    assert steps_shown([(i + 1) / n for i in range(n)], n) == list(range(1, n + 1))
    assert steps_shown([1.0, 0.0], n) == sorted({1, n})


@pytest.mark.parametrize("fractions", [[], [-0.1], [0.5, 1.01], [float("nan")]])
def test_fractions_outside_the_trajectory_are_refused(fractions):
    with pytest.raises(ValueError, match="fractions"):
        steps_shown(fractions, 10)


def test_more_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="64"):
        record_trajectory(Gaussian(Karras()), (65, 1, 2, 2), karras_grid(Karras(), 2))


# --- what they show


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_panel_is_bit_exact_with_sample(name):
    torch.manual_seed(0)
    net = UNet(1, classes=3, widths=(8, 16), blocks=(1, 1))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    denoiser, cond = Denoiser(net, Karras(), v, 0.5).eval(), torch.arange(5) % 4
    times, given = karras_grid(Karras(), 3), {"sampler": SAMPLERS[name].function, "seed": 3}
    x_t, x0_hat = record_trajectory(denoiser, (5, 1, 8, 8), times, cond, **given)
    image = sample(denoiser, (5, 1, 8, 8), times, cond, **given)
    assert image.std() > 0.05
    assert torch.equal(x_t[-1], to_uint8(image))
    assert x_t.shape == x0_hat.shape == (len(steps_shown(FRACTIONS, 3)), 5, 1, 8, 8)
    assert x_t.dtype == x0_hat.dtype == torch.uint8
    assert (x0_hat[-1].int() - x_t[-1].int()).abs().max() <= 1  # every sampler ends at x0_hat


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp"])
def test_x0_hat_is_the_prediction_that_the_step_used(name):
    oracle, times = Gaussian(Cosine(), mean=0.1), uniform_grid(Cosine(), 20)
    _, x0_hat = record_trajectory(oracle, SHAPE, times, sampler=SAMPLERS[name].function, fractions=[0, 0.25, 0.5, 1])
    path = list(trajectory(oracle, SHAPE, times, sampler=SAMPLERS[name].function))
    for panel, step in zip(x0_hat, [1, 5, 10, 20], strict=True):
        assert torch.equal(panel, to_uint8(oracle(path[step - 1], times[step - 1])))
    assert len(x0_hat.unique()) > 20


def test_heun_shows_the_prediction_at_its_second_evaluation():
    calls = []
    oracle, times = Gaussian(Cosine(), mean=0.1), uniform_grid(Cosine(), 4)

    def spy(x_t, t, cond=None):
        calls.append((t.item(), oracle(x_t, t, cond)))
        return calls[-1][1]

    spy.schedule = oracle.schedule
    _, x0_hat = record_trajectory(spy, SHAPE, times, sampler=SAMPLERS["heun"].function, fractions=[0, 1])
    assert [t for t, _ in calls] == [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    assert {len(x0) for _, x0 in calls} == {64}  # a full batch, as in `sample`, or the last bits would differ
    assert torch.equal(x0_hat[0], to_uint8(calls[1][1][:3]))
    assert torch.equal(x0_hat[1], to_uint8(calls[-1][1][:3]))


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
def test_every_schedule_shows_the_same_trajectory_on_the_same_noise_levels(schedule):
    """x_t / sqrt(alpha^2 + sigma^2) depends on sigma/alpha only; a schedule reparametrizes time."""
    levels, fractions = f64(20, 7, 3, 1, 0.4, 0.1), [i / 6 for i in range(1, 7)]
    panels = record_trajectory(Gaussian(schedule), SHAPE, schedule.time_of(levels), sampler=ddim, fractions=fractions)
    want = record_trajectory(Gaussian(Karras()), SHAPE, Karras().time_of(levels), sampler=ddim, fractions=fractions)
    for got, expected in zip(panels, want, strict=True):
        assert (got.int() - expected.int()).abs().max() <= 1  # a rounding of a half
    assert 1 < panels[0][0].float().sub(127.5).abs().mean() < 127  # neither gray nor all clamped


def test_noise_is_shown_at_unit_variance_at_every_noise_level():
    x_t, _ = record_trajectory(Gaussian(Karras()), (8, 1, 16, 16), karras_grid(Karras(), 50), fractions=[0])
    inside = (x_t > 63.75) & (x_t < 191.25)  # |eps| < 1/2, which has probability erf(1 / sqrt 8)
    n = inside.numel()
    p = torch.erf(f64(1 / 8**0.5)).item()
    assert abs(inside.float().mean().item() - p) < 5 * (p * (1 - p) / n) ** 0.5


def test_memory_does_not_grow_with_the_steps():
    """The number of states and predictions that exist at once does not depend on the number of steps."""

    def most_alive(n):
        made, most = [], 0

        def watch(x):
            nonlocal most
            made.append(StorageWeakRef(x.untyped_storage()))
            made[:] = [ref for ref in made if not ref.expired()]
            most = max(most, len(made))
            return x

        def denoiser(x_t, t, cond=None):
            return watch(oracle(x_t, t, cond))

        def sampler(*given):
            return (watch(x) for x in ddim(*given))

        oracle = Gaussian(Linear())
        denoiser.schedule = oracle.schedule
        x_t, x0_hat = record_trajectory(denoiser, (2, 1, 2, 2), uniform_grid(Linear(), n), sampler=sampler)
        assert (x_t.element_size(), x0_hat.element_size()) == (1, 1)
        assert len(x_t) == 6
        return most

    assert most_alive(20) == most_alive(100) <= 6


# --- the forward process


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
def test_noise_images_is_the_forward_process_with_one_noise_per_image(schedule):
    times = schedule.time_of(f64(0.2, 0.5, 1, 4))
    still = to_unit(noise_images(torch.zeros(3, 1, 20, 20), schedule, times)).double()  # sigma eps / hypot
    x0 = torch.linspace(-1, 1, 400).reshape(1, 1, 20, 20).expand(3, -1, -1, -1)
    share = f64(0.2, 0.5, 1, 4)
    share = share / (1 + share**2).sqrt()  # sigma / hypot
    eps = still[0] / share[0]  # |eps| < 5: nothing is clamped; known to 1 / (255 share), 0.02
    assert still[0].abs().max() < 1
    assert abs(eps.std() - 1) < 5 / (2 * eps.numel()) ** 0.5
    assert eps.flatten(1).corrcoef().fill_diagonal_(0).abs().max() < 5 / 400**0.5  # each image has its own
    for panel, s in zip(noise_images(x0, schedule, times), share, strict=True):
        want = ((1 - s**2).sqrt() * x0 + s * eps).clamp(-1, 1)
        assert (to_unit(panel) - want).abs().max() <= 1 / 255 + s / share[0] / 255 + 1e-6


def test_at_time_0_an_image_has_no_noise():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    for schedule in (Linear(), Cosine(), Flow()):
        assert torch.equal(noise_images(to_unit(pixels), schedule, f64(0, 1))[0], pixels)


# --- extremes


@pytest.mark.parametrize(("channels", "size"), [(1, 1e6), (3, 1e6), (3, float("inf"))])
def test_large_values_are_clamped_on_every_way_to_a_file(channels, size):
    sign = torch.randn(channels, 6, 8, generator=torch.Generator().manual_seed(0)).sign()
    want = torch.where(sign > 0, 255, 0).to(torch.uint8)

    def huge(x_t, t, cond=None):
        return (size * sign).expand_as(x_t)

    huge.schedule = Karras()
    times = karras_grid(Karras(), 3)
    if size < 1e10:  # above, the sampler itself overflows float32 (inf - inf)
        trajectories = record_trajectory(huge, (1, channels, 6, 8), times, sampler=ddim)
        assert all(torch.equal(panel[0], want) for panels in trajectories for panel in panels)
    else:
        trajectories = (to_uint8(size * sign)[None, None].expand(3, 1, -1, -1, -1),) * 2
    noised = noise_images(size * sign[None], Cosine(), f64(0, 0.5))
    generated = to_uint8(size * sign)[None]
    assert torch.equal(noised, want.expand_as(noised))
    assert torch.equal(generated[0], want)
    cell = want.expand(3, -1, -1).permute(1, 2, 0).numpy()
    for sheet, rows, columns in (
        (picture(png(strips(*trajectories))), 2, 3),
        (picture(png(strips(noised))), 1, 2),
        (picture(png(make_grid(generated, 1))), 1, 1),
        (picture(webp(make_grid(generated, 1))), 1, 1),
        *((frame, 1, 2) for frame in animated(animation(frames(*trajectories), "WEBP"))),
        *((frame, 1, 2) for frame in animated(animation(frames(*trajectories), "GIF"))),
    ):
        # 6 x 8 pixels, 8 times as large, 2 between two; each side of `frames` and each image has its own edge
        assert (sheet.shape[0] - 2) // 50 == rows
        assert (sheet.shape[1] - 2) // 66 == columns
        assert set(np.unique(sheet)) <= {0, 128, 255}
        assert np.array_equal(sheet[2:50:8, 2:66:8], cell)
    assert np.array_equal(picture(png(make_grid(generated, 1, gap=0, scale=1))), cell)
    with np.load(io.BytesIO(npz(generated, None))) as file:
        assert np.array_equal(file["images"][0], want.permute(1, 2, 0).numpy())


def test_nan_is_an_error_and_not_a_gray_pixel():
    def lost(x_t, t, cond=None):
        return torch.where(t < 0.5, torch.nan, 0.0).expand_as(x_t)

    lost.schedule = Flow()
    times = uniform_grid(Flow(), 4)
    with pytest.raises(DivergedError, match="NaN"):
        record_trajectory(lost, SHAPE, times, sampler=ddim)
    record_trajectory(lost, SHAPE, times, sampler=ddim, fractions=[0])  # the NaN comes after this panel
    with pytest.raises(DivergedError, match="NaN"):
        noise_images(torch.full(SHAPE, torch.nan), Flow(), times)


# --- the commands


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy of the run folder."""
    return shutil.copytree(run_folder, tmp_path / "run")


HIGH, WIDE = 12 * 4 + 2, 16 * 4 + 2  # an image of the squares in a grid, with its gap


def cell(sheet, row, column, rows=2):
    """The image at a place of strips with so many rows per image."""
    top, left = 2 + row * HIGH + 2 * (row // rows), 2 + column * WIDE
    return sheet[top : top + 48 : 4, left : left + 64 : 4]


@pytest.mark.parametrize("sampler", ["dpmpp", "ddpm"])
def test_strips_end_with_the_images_of_sample(run, tmp_path, sampler):
    same = ["--seed", "5", "--label", "2,0", "--sampler", sampler]
    main(["sample", str(run), "--trajectory", *same])
    main(["sample", str(run), "--n", "4", *same, "--out", str(tmp_path / "s.npz")])
    with np.load(tmp_path / "s.npz") as file:
        images = file["images"]
    sheet = picture(run / "samples" / "trajectory.png")  # every step of four
    assert sheet.shape == (4 * (2 * HIGH + 2), 4 * WIDE + 2, 3)
    for i, image in enumerate(images):
        assert np.array_equal(cell(sheet, 2 * i, 3), image)
        assert np.abs(cell(sheet, 2 * i + 1, 3).astype(int) - image).max() <= 1  # x0_hat
        assert not np.array_equal(cell(sheet, 2 * i, 0), image)


def test_fractions_and_steps_determine_the_panels(run, tmp_path):
    out, uniform = tmp_path / "strips.png", tmp_path / "uniform.safetensors"
    save(uniform, read(run).changed(grid="uniform"))
    for model, options, columns in (
        (run, ["--at", "0,1"], 2),
        (run, ["--steps", "12"], 10),
        (uniform, ["--steps", "20"], 6),
    ):
        main(["sample", str(model), "--trajectory", "--n", "1", *options, "--out", str(out)])
        assert picture(out).shape == (2 * HIGH + 2, columns * WIDE + 2, 3)


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_animations_show_at_most_so_many_frames_and_end_with_the_image(run, tmp_path, ending, monkeypatch):
    monkeypatch.setattr("simple_diffusion.cli.sample.FRAMES", 5)
    out = tmp_path / f"trajectory.{ending}"
    for steps in (3, 12):
        main(["sample", str(run), "--trajectory", "--n", "1", "--steps", str(steps), "--out", str(out)])
        with Image.open(out) as image:
            assert image.format == ending.upper()
            assert image.n_frames == min(steps, 5)
            assert image.size == (2 * (WIDE + 2), HIGH + 2)  # x_t beside x0_hat
    main(["sample", str(run), "--n", "1", "--steps", "12", "--out", str(tmp_path / "s.npz")])
    with np.load(tmp_path / "s.npz") as file:
        image = file["images"][0]
    shown = animated(out)[-1][2:50:4, 2:66:4].astype(int)
    # A GIF has 256 colors. In a lattice of 6 values per channel, no value would be off by more than 128 / 6.
    assert np.abs(shown - image).mean() <= (0 if ending == "webp" else 128 / 6)


def test_a_grid_as_webp_has_the_pixels_of_the_png(run, tmp_path):
    for name in ("grid.png", "grid.webp"):
        main(["sample", str(run), "--n", "7", "--out", str(tmp_path / name)])
    with Image.open(tmp_path / "grid.webp") as image:
        assert (image.format, image.mode) == ("WEBP", "RGB")
    assert np.array_equal(picture(tmp_path / "grid.webp"), picture(tmp_path / "grid.png"))


def test_a_model_with_huge_predictions_gives_black_and_white(run, tmp_path):
    """The head predicts one huge number everywhere; only its sign can be seen."""
    path, model = tmp_path / "huge.safetensors", read(run)
    net = model.denoiser.net
    for size, want in ((1e8, 0), (-1e8, 255)):  # v prediction: x0_hat falls as the output rises
        with torch.no_grad():
            net.norm.weight.zero_()
            net.norm.bias.fill_(1.0)
            net.head.weight.zero_()
            net.head.weight[:, :, 1, 1] = size
        save(path, model)
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        for name in ("a.png", "a.webp", "a.npz", "folder"):
            main(["sample", str(path), "--n", "2", "--steps", "2", "--out", str(tmp_path / name)])
        with np.load(tmp_path / "a.npz") as file:
            assert (file["images"] == want).all()
        for name in ("a.png", "a.webp"):
            assert set(np.unique(picture(tmp_path / name))) == {want, 128}
        for file in (tmp_path / "folder").rglob("*.png"):
            assert (picture(file) == want).all()
        out = tmp_path / "trajectory.gif"
        main(["sample", str(path), "--trajectory", "--n", "1", "--steps", "2", "--out", str(out)])
        assert (animated(out)[-1][-50:-2:4, -66:-2:4] == want).all()


def test_the_command_data_shows_the_forward_process(squares, tmp_path, capsys):
    out = tmp_path / "noised.png"
    main(["data", str(squares), "--noised", str(out)])
    assert "cosine" in capsys.readouterr().out
    sheet = picture(out)
    assert sheet.shape == (3 * (HIGH + 2), 8 * WIDE + 2, 3)
    with np.load(squares) as file:
        images, labels = file["images"], file["labels"]
    for row in range(3):  # one class per row: an image, then rising noise
        first = cell(sheet, row, 0, rows=1)
        assert any(np.array_equal(first, image) for image in images[labels == row])
        away = [np.abs(cell(sheet, row, column, rows=1).astype(int) - first).mean() for column in range(8)]
        assert away == sorted(away)
        assert away[-1] > 60
    main(["data", str(squares), "--noised", str(tmp_path / "karras.png"), "--schedule", "karras", "--json"])
    assert json.loads(capsys.readouterr().out)["count"] == 96
    assert not np.array_equal(picture(tmp_path / "karras.png"), sheet)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["sample", "--trajectory", "--n", "65"], ["64", "65"]),
        (["sample", "--trajectory", "--out", "f.npz"], ["f.npz", ".gif"]),
        (["sample", "--trajectory", "--out", "folder"], ["folder", ".png"]),
        (["sample", "--out", "f.gif"], ["f.gif", "--trajectory"]),
        (["sample", "--out", "f.jpeg"], [".jpeg", ".webp"]),
        (["sample", "--at", "0,1"], ["--at", "--trajectory"]),
        (["sample", "--trajectory", "--at", "0,2"], ["0,2"]),
        (["sample", "--trajectory", "--at", "nan"], ["nan"]),
        (["sample", "--trajectory", "--at", "half"], ["half"]),
        (["sample", "--trajectory", "--at", ""], ["numbers"]),
        (["sample", "--n", "200000", "--dry-run", "--out", "f.webp"], ["f.webp", "16,383", ".png"]),
        (["data", "--noised", "f.gif"], ["f.gif", ".png"]),
        (["data", "--out", "f.jpeg"], ["f.jpeg", ".png"]),
        (["data", "--schedule", "cosine"], ["--schedule", "--noised"]),
        (["data", "--noised", "f.png", "--schedule", "cosin"], ["cosin", "cosine"]),
    ],
)
def test_wrong_options_are_an_error_in_one_line(capsys, tmp_path, monkeypatch, run_folder, squares, options, words):
    monkeypatch.chdir(tmp_path)
    name, *rest = options
    with pytest.raises(SystemExit) as stop:
        main([name, str(run_folder if name == "sample" else squares), *rest])
    err = capsys.readouterr().err
    assert stop.value.code == 2, err
    assert err.count("\n") == 1
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []
