"""Not this machine: a GPU, Apple's MPS, which has no float64, and Windows, where a locked file can't be read."""

import builtins
import errno
import math
import os
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from devices import emulated
from filelock import FileLock
from torch import nn

import simple_diffusion as sd
from simple_diffusion.cli.main import main
from simple_diffusion.denoising_error import error_curves
from simple_diffusion.errors import BusyError, UsageError
from simple_diffusion.networks.embedding import Labels
from simple_diffusion.optimizers import OPTIMIZERS
from simple_diffusion.run import folder as run_folders
from simple_diffusion.run.folder import HOLDER, LOCK, hold, refuse_held
from simple_diffusion.samplers import SAMPLERS
from simple_diffusion.sampling import device_of
from simple_diffusion.schedules import BETAS, SCHEDULES, Discrete
from simple_diffusion.system.device import pick_device
from simple_diffusion.targets import TARGETS
from simple_diffusion.viz.trajectory import record_trajectory

KINDS = ("mps", "cuda")
TABLES = {f"{name} betas": lambda make=make: Discrete(make(1000)) for name, make in BETAS.items()}
EVERY = {**SCHEDULES, **TABLES}


class Net(nn.Module):
    """A small network with labels."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave, self.labels = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1), Labels(3, 4)

    def forward(self, x, noise_level, cond):
        return self.leave((self.enter(x) + (self.labels(cond) + noise_level[:, None])[:, :, None, None]).tanh())


def untrained(schedule) -> sd.Denoiser:
    torch.manual_seed(0)
    return sd.Denoiser(Net(), schedule, sd.targets.v, 0.5)


def images() -> sd.Images:
    pixels = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return sd.Images("noise", pixels, torch.arange(20) % 3, ("a", "b", "c"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_emulated_device_is_as_strict_as_a_real_one(kind):
    with emulated(kind) as device:
        x = torch.zeros(3).to(device)
        assert x.device == device
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        for make in (
            x.double,
            lambda: torch.ones(3, dtype=torch.float64).to(device),
            lambda: x * torch.ones(3).double().to(x.device),
        ):
            if kind == "mps":
                with pytest.raises(TypeError, match="float64"):
                    make()
            else:
                make()
        assert (x + 2).cpu().tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", EVERY)
def test_every_schedule_trains_and_samples_on_mps(name):
    loss = sd.drop_labels(partial(sd.denoising_loss, density=sd.LogNormal(-0.7, 1.2)), 3)

    def result(device=None):
        denoiser = untrained(EVERY[name]())
        denoiser = denoiser if device is None else denoiser.to(device)
        model = sd.fit(denoiser, images(), 2, loss=loss, batch=2, decay=sd.constant_decay(0.5)).model
        guided = sd.Clipped(sd.Guided(model, 1.5, 3, (0.1, 5.0)))
        return sd.sample(guided, (3, 1, 8, 8), sd.karras_grid(model.schedule, 4), torch.arange(3), batch=3)

    with emulated("mps") as device:
        there = result(device)
    torch.testing.assert_close(there, result(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrap", [lambda d: d, sd.Clipped, lambda d: sd.Clipped(sd.Guided(d, 2.0, 3))])
def test_samples_are_computed_where_the_weights_are(wrap):
    times, labels = sd.karras_grid(sd.Karras(), 2), torch.arange(3)
    cpu = sd.sample(wrap(untrained(sd.Karras())), (3, 1, 8, 8), times, labels)
    with emulated("cuda") as device:
        denoiser = wrap(untrained(sd.Karras()).to(device))
        assert device_of(denoiser) == device
        for there in (None, "cuda"):
            x = sd.sample(denoiser, (3, 1, 8, 8), times, labels, device=there)
            assert type(x) is torch.Tensor
            torch.testing.assert_close(x, cpu, rtol=1e-4, atol=1e-4)
        assert next(sd.sample_batches(denoiser, (3, 1, 8, 8), times, labels)).device == device
        with pytest.raises(ValueError, match=r"the weights are on cuda:0, not on cpu: leave `device` out"):
            sd.sample(denoiser, (3, 1, 8, 8), times, labels, device="cpu")


def test_everything_that_takes_a_denoiser_computes_on_mps():
    shape, labels = (3, 1, 8, 8), torch.arange(3)

    def results(device=None) -> list[torch.Tensor]:
        denoiser = untrained(Discrete(sd.linear_betas(100)))
        denoiser = denoiser if device is None else denoiser.to(device)
        times, x0 = sd.karras_grid(denoiser.schedule, 3), sd.to_unit(images().pixels[0])
        found = [
            sd.sample(denoiser, shape, times, labels, sampler=SAMPLERS[name].function, batch=3)
            for name in ("ddpm", "heun", "dpmpp-sde")
        ]
        for wrapped in (
            sd.AutoGuided(denoiser, denoiser, 2.0, (0.0, math.inf)),
            sd.Inpainted(denoiser, x0, torch.arange(64).view(8, 8) < 20),
        ):
            found.append(sd.sample(sd.Clipped(wrapped), shape, times, labels, sampler=sd.repaint, batch=3))
        found += [x.cpu() for x in sd.trajectory(denoiser, shape, times, labels, batch=3)]
        found += [x.cpu() for x in sd.sample_batches(denoiser, shape, times, labels, batch=3)]
        one, other = (
            x if device is None else x.to(device)
            for x in torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        )
        found.append(sd.slerp(one, other, [0.0, 0.3, 1.0]).cpu())
        found += [x.float() for x in record_trajectory(denoiser, shape, times, labels)]
        found += [torch.tensor(curve.points) for curve in error_curves(denoiser, images(), images())]
        for target in TARGETS.values():
            denoiser.target = target
            (batch,) = [b for b, _ in zip(sd.batches(images(), 3, device=device or "cpu"), range(1), strict=False)]
            found.append(
                sd.denoising_loss(denoiser, batch.x0, batch.cond, batch.draws, weight=sd.MinSNR()).detach().cpu()
            )
        return found

    with emulated("mps") as device:
        there = results(device)
    for i, (a, b) in enumerate(zip(there, results(), strict=True)):
        tolerance = 1.0 if a.max() > 100 else 2e-3  # of pixels in 0 .. 255, or of floats
        torch.testing.assert_close(a, b, rtol=2e-3, atol=tolerance, msg=f"result {i}")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_updates_weights_on_mps(name):
    with emulated("mps") as device:
        denoiser = untrained(sd.Karras()).to(device)
        before = [p.detach().cpu().clone() for p in denoiser.parameters()]
        sd.fit(denoiser, images(), 3, batch=4, optimizer=OPTIMIZERS[name](denoiser, 1e-2, (0.9, 0.99)))
        assert sum(not torch.equal(p.cpu(), q) for p, q in zip(denoiser.parameters(), before, strict=True)) == 5


@pytest.mark.slow
def test_the_commands_run_on_mps(squares, tmp_path, capsys):
    run, options = str(tmp_path / "run"), ["--device", "mps"]
    settings = [
        "widths=8,16",
        "blocks=1,1",
        "batch=16",
        "sampler_steps=3",
        "timesteps=100",
        "schedule=linear",
        "held_out=0.2",
        "guidance=2.0",
    ]
    with emulated("mps"), patch("torch.backends.mps.is_available", lambda: True):
        train = ["train", str(squares), "--steps", "4", "--out", run, *options]
        assert main([*train, *(f"--set={setting}" for setting in settings)]) in (0, None)
        assert main(["sample", run, "--n", "3", "--out", str(tmp_path / "s.png"), *options]) in (0, None)
        assert main(["sample", run, "--n", "3", "--trajectory", "--out", str(tmp_path / "t.png"), *options]) in (
            0,
            None,
        )
        assert main(["doctor", run, *options]) in (0, None)
        images = sd.sample(sd.load(run, "mps"), (2, 3, 12, 16), sd.uniform_grid(sd.Karras(), 3), torch.tensor([0, 1]))
    assert images.isfinite().all()


@pytest.mark.parametrize("name", ["gpu", "cuda:0", "", "CPU"])
def test_an_unknown_device_is_refused_in_one_sentence(name, run_folder):
    with pytest.raises(UsageError, match=r"^the device must be auto, cuda, mps, cpu, got"):
        pick_device(name)
    with pytest.raises(UsageError, match="the device must be"):
        sd.load(run_folder, name)


def test_windows_lets_nobody_read_the_locked_file_and_the_holder_is_still_named(tmp_path, monkeypatch):
    """Windows locks bytes of the file `lock`: while it is held, others can neither read nor write it."""

    def refusing(function):
        def checked(file, *arguments, **options):
            if Path(os.fspath(file)).name == LOCK:
                raise PermissionError(errno.EACCES, "Permission denied", str(file))
            return function(file, *arguments, **options)

        return checked

    with hold(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).read_bytes() == b""  # nothing lies in the bytes that Windows locks
        with monkeypatch.context() as patched:
            patched.setattr(builtins, "open", refusing(open))
            patched.setattr("io.open", refusing(open))
            patched.setattr(run_folders, "FileLock", Held)
            for take in (refuse_held, lambda folder: hold(folder).__enter__()):
                with pytest.raises(BusyError, match=rf"in use by process {os.getpid()} on .+: wait for it"):
                    take(tmp_path / "run")
            with pytest.raises(PermissionError):
                (tmp_path / "run" / LOCK).read_text()
    refuse_held(tmp_path / "run")
    assert (tmp_path / "run" / HOLDER).is_file()


class Held(FileLock):
    """A lock that another process holds, without a file of its own, which Windows would not open."""

    def _acquire(self) -> None:
        return None
