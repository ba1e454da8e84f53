"""Large images: the error by noise level needs bounded memory, and what fails after the scores does not lose them."""

import json

import numpy as np
import pytest
import torch
from faults import fails

from simple_diffusion import Karras, denoising_error
from simple_diffusion.cli import evaluate as evaluate_command
from simple_diffusion.cli.main import main
from simple_diffusion.data.images import Images
from simple_diffusion.denoising_error import LEVELS, error_curves, linear_error, wiener_error
from simple_diffusion.run.report import FILE


class Halving(torch.nn.Module):
    """A denoiser that answers half of the noisy image, and notes how many images come at once."""

    def __init__(self):
        super().__init__()
        self.weight, self.schedule, self.batches = torch.nn.Parameter(torch.tensor(0.5)), Karras(), []

    def forward(self, x, t, cond):
        self.batches.append(len(x))
        return self.weight * x


def photos(n: int, size: int, classes: int = 3) -> Images:
    pixels = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images("photos", pixels, torch.arange(n).sort().values % classes, tuple("abc"[:classes]))


def test_images_of_128_pixels_need_no_covariance_of_their_pixels():
    """It would have 49,152 x 49,152 numbers, 19 GB, for each class."""
    images, denoiser = photos(12, 128), Halving()
    unseen = Images("unseen", 255 - images.pixels, images.labels, images.class_names)
    curves = {curve.name: curve.points for curve in error_curves(denoiser, images, unseen)}
    assert set(curves) == {"linear denoiser", "model, training images", "ideal denoiser", "model, unseen images"}
    assert max(denoiser.batches) == 12
    errors = (
        torch.tensor([error for _, error in curves[f"model, {which} images"]]) for which in ("unseen", "training")
    )
    torch.testing.assert_close(*errors, rtol=0.01, atol=0)
    white = LEVELS**2 / 3 / (1 / 3 + LEVELS**2)  # uniform pixels have the variance 1/3
    bound = torch.tensor([error for _, error in curves["linear denoiser"]], dtype=torch.float64)
    assert (white < 1.01 * bound).all()
    assert (bound < 1.34 * white).all()  # the mean of three other images has a third of the variance of one


def test_batches_of_the_network_are_smaller_for_larger_images():
    for size, batch in ((8, 50), (128, 16), (256, 4), (600, 1)):
        denoiser = Halving()
        denoising_error.model_error(denoiser, torch.zeros(50 if size < 600 else 2, 1, size, size), None)
        assert max(denoiser.batches) == batch


def test_of_a_data_set_with_more_numbers_than_the_limit_a_random_part_is_measured(monkeypatch):
    monkeypatch.setattr(denoising_error, "NUMBERS", 30 * 3 * 8 * 8)
    images = photos(200, 8)
    curves = error_curves(Halving(), images, images, n=50)
    assert [curve.name for curve in curves][2] == "ideal denoiser of 30 images"
    chosen = denoising_error.chosen_from(images)
    assert len(chosen) == 30
    assert images.labels[chosen].unique().tolist() == [0, 1, 2]  # though they are sorted by class
    assert len(denoising_error.chosen_from(photos(5, 256))) == 1  # at least one


def test_the_bounds_of_large_images_take_the_smaller_matrix(monkeypatch):
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or eigh(matrix))
    for n, width in ((20, 300), (300, 20), (1200, 1100)):
        linear_error(torch.randn(n, width), torch.arange(n) % 2)
    assert sizes == [20, 10, 10, 20, 20, 20, 1000, 600, 600]


def test_the_wiener_error_of_many_large_images_is_measured_on_some():
    x = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wiener_error(x.repeat(12, 1, 1, 1)), wiener_error(x), rtol=0.3, atol=0)


OUT_OF_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def out_of_memory(*_, **__):
    raise OUT_OF_MEMORY


def test_curves_and_pictures_that_fail_do_not_lose_the_scores(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("simple_diffusion.evaluation.classifier.SEEN", 2 * 86 * 32**2)
    monkeypatch.setattr("simple_diffusion.denoising_error.error_curves", out_of_memory)
    monkeypatch.setattr("simple_diffusion.evaluation.scores.search_near_duplicates", out_of_memory)
    main(["evaluate", str(run_folder), "--n", "60", "--out", str(tmp_path), "--json"])
    out, err = capsys.readouterr()
    assert "Without levels.png: not enough memory." in err
    assert "Near-duplicates were not searched" in err
    assert json.loads(out)["extractors"] == json.loads((tmp_path / "scores.json").read_text())["extractors"]
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json"}


def test_a_report_is_written_without_what_fails(run_folder, capsys, monkeypatch):
    monkeypatch.setattr("simple_diffusion.denoising_error.error_curves", out_of_memory)
    main(["report", str(run_folder)])
    assert "Without a new denoising error by noise level: not enough memory." in capsys.readouterr().out
    assert (run_folder / FILE).exists()


def test_an_error_of_the_program_is_not_hidden(run_folder, monkeypatch):
    def wrong(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("simple_diffusion.denoising_error.error_curves", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["report", str(run_folder)])


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(run_folder, squares, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_command, "extractors_for", out_of_memory)
    (tmp_path / "file").write_text("")
    for what in (run_folder, squares):
        fails(capsys, ["evaluate", what, "--data", squares, "--out", tmp_path / "file" / "scores"], 6, "scores")


def test_scores_of_sorted_and_duplicated_images_are_finite(squares, tmp_path, capsys, monkeypatch):
    """One image, repeated: no score and no interval may be NaN."""
    monkeypatch.setattr("simple_diffusion.evaluation.classifier.SEEN", 2 * 86 * 32**2)
    pixels = np.repeat(np.load(squares)["images"][:1], 60, axis=0)
    np.savez(tmp_path / "same.npz", images=pixels, labels=np.zeros(60, int))
    main(["evaluate", str(tmp_path / "same.npz"), "--data", str(squares), "--out", str(tmp_path / "out"), "--json"])
    text = capsys.readouterr().out
    assert "NaN" not in text
    assert "Infinity" not in text
