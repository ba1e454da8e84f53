"""Model files: what is saved comes back, and nothing else is taken for one."""

import json
import struct

import pytest
import torch
from faults import assert_equal
from model_files import good_files
from safetensors.torch import load_file, save_file

from simple_diffusion import load
from simple_diffusion.data.info import DataInfo
from simple_diffusion.errors import CheckpointError, ResourceError, UsageError
from simple_diffusion.guidance import AutoGuided
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.config import Config
from simple_diffusion.model.model_file import Model, read, save
from simple_diffusion.samplers import ddim
from simple_diffusion.system.files import write_tensors


def record(path) -> dict:
    """What a file says of itself, without its checksum."""
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    about = json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["simple-diffusion"])
    del about["sha256"]
    return about


def test_what_is_saved_comes_back(run_folder, tmp_path):
    model = read(run_folder)
    save(tmp_path / "copy.safetensors", model)
    copy = read(tmp_path / "copy.safetensors")
    assert (copy.config, copy.info, copy.step) == (model.config, model.info, model.step)
    assert (tmp_path / "copy.safetensors").read_bytes() == (run_folder / "model.safetensors").read_bytes()
    x = torch.randn(2, *model.info.shape)
    t, labels = torch.tensor([0.3, 0.9]), torch.tensor([0, 3])
    assert torch.equal(copy.denoiser(x, t, labels), load(run_folder)(x, t, labels))


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_every_part_of_a_model_comes_back_ready_to_sample(tmp_path, layout):
    config = Config(widths=(8, 8), blocks=(1, 1), precision="fp32", memory_format=layout)
    info, path = DataInfo("photos", 9, 1, 8, 8, ("a", "b"), 0.1, 0.5, "0" * 64), tmp_path / "model.safetensors"
    denoiser, guide = ModelSpec(config, info).denoiser(), ModelSpec(config, info).denoiser()
    save(path, Model(denoiser, ModelSpec(config, info), 5, 61.26, guide))
    model = read(path, precision="fp32")
    assert (model.config, model.info, model.step, model.seconds) == (config, info, 5, 61.3)  # to a tenth
    assert model.guide is not None
    for got, want in ((model.denoiser, denoiser), (model.guide, guide), (load(path), denoiser)):
        assert_equal(got.state_dict(), want.state_dict())
        assert [p.stride() for p in got.parameters()] == [p.stride() for p in want.parameters()]
        assert not any(module.training for module in got.modules())
        assert not any(p.requires_grad for p in got.parameters())
    save(path, Model(denoiser, ModelSpec(config, info), 0, 0.0))
    again = read(tmp_path, precision="bf16")  # the folder is as good as the file
    assert (again.guide, again.step, again.seconds) == (None, 0, 0)
    assert (again.config.precision, again.denoiser.dtype) == ("bf16", torch.bfloat16)
    assert again.training_config.precision == "fp32"
    few = model.changed(sampler_steps=3, sampler="ddim")
    denoiser, times, sampler = few.sampler()
    assert (few.denoiser, few.guide, len(times), sampler) == (model.denoiser, model.guide, 3, ddim)
    assert isinstance(denoiser.denoiser.denoiser, AutoGuided)  # inside clipping and classifier-free guidance


def test_a_device_that_is_not_there_and_a_model_that_is_not_there_are_named(tmp_path):
    absent = "cuda" if torch.backends.mps.is_available() else "mps"
    file = good_files(tmp_path)[read]
    for reader in (read, load):
        with pytest.raises(UsageError, match=f"no {absent} device"):
            reader(file, absent)
        folder = tmp_path / "checkpoints"
        for path in (folder, folder / "model.safetensors"):
            with pytest.raises(CheckpointError, match=f"there is no model at {folder}/model.safetensors: give"):
                reader(path)


def test_precision_is_the_readers_choice(run_folder):
    assert read(run_folder, precision="fp32").denoiser.dtype == torch.float32
    assert read(run_folder, precision="bf16").denoiser.dtype == torch.bfloat16


def test_every_cut_and_foreign_file_is_refused(run_folder, tmp_path):
    whole = (run_folder / "model.safetensors").read_bytes()
    path = tmp_path / "m.safetensors"
    for length in [0, 1, 7, 8, 9, 100, *range(500, len(whole), len(whole) // 20), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"m\.safetensors"):
            read(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a file of simple-diffusion"):
        read(path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda about: about["config"].update(widths=[8, 24]), "net"),
        (lambda about: about["config"].update(widths=[4096, 4096]), "net"),
        (lambda about: about["config"].update(widths="os.system"), "widths"),
        (lambda about: about["config"].update(schedule="__class__"), "schedule"),
        (lambda about: about["config"].update(extra=1), "extra"),
        (lambda about: about["info"].pop("std"), "std"),
        (lambda about: about["info"].update(channels=1), "net"),
        (lambda about: about.update(format=5), "newer"),
        (lambda about: about.pop("step"), "step"),
    ],
)
def test_a_header_that_lies_is_refused(run_folder, tmp_path, change, word):
    file = run_folder / "model.safetensors"
    about = record(file)
    change(about)
    path = tmp_path / "m.safetensors"
    write_tensors(path, load_file(file), about)
    with pytest.raises(CheckpointError, match=word):
        read(path)


def test_a_setting_that_came_later_than_the_file_has_its_default(run_folder, tmp_path):
    file = run_folder / "model.safetensors"
    about = record(file)
    del about["config"]["lr"]
    write_tensors(tmp_path / "m.safetensors", load_file(file), about)
    assert read(tmp_path / "m.safetensors").config.lr == Config().lr


def test_a_full_disk_leaves_the_old_file(run_folder, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    model = read(run_folder)
    save(path, model)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simple_diffusion.system.files.os.fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        save(path, model)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
