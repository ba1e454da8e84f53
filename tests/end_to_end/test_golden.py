"""What was made once is made again: by a model file of an earlier version, and by two processes that start cold."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from faults import assert_equal, tree
from PIL import Image

from simple_diffusion.model.generate import generate
from simple_diffusion.model.model_file import read
from simple_diffusion.run.checkpoint import latest

GOLDEN = Path(__file__).parent / "golden"


def test_a_model_file_of_format_2_generates_the_same_images():
    """digits.safetensors and its four images were made by version 0.1.0, on a CPU with torch 2.13, by

    simple-diffusion train digits --steps 30 --set widths=8,16 --set blocks=1,1 --precision fp32 --out run
    simple-diffusion sample run --n 4 --precision fp32 --out drawn

    A new format gets a new file beside it; this one stays as it is.
    """
    model = read(GOLDEN / "digits.safetensors", device="cpu", precision="fp32")
    assert (model.step, model.info.name, model.info.shape, model.info.classes) == (30, "digits", (1, 28, 28), 10)
    drawn = generate(model, 4, torch.arange(4), seed=0)[:, 0].int().numpy()
    for i, pixels in enumerate(drawn):
        with Image.open(GOLDEN / f"digits-{i}.png") as image:
            kept = np.asarray(image.convert("L")).astype(int)
        assert kept.std() > 20
        assert np.abs(pixels - kept).max() <= 1  # of 255 grey levels: 1e-2 in [-1, 1]


RUN = """
import os, sys
from simple_diffusion.cli.main import main

walk = os.walk

def reversed_walk(*args, **kwargs):
    for here, folders, files in walk(*args, **kwargs):
        folders.reverse()
        files.reverse()
        yield here, folders, files

if os.environ["PYTHONHASHSEED"] == "1":
    os.walk = reversed_walk
options = sys.argv[1:]
main(["train", "photos", "--steps", "6", "--out", "run", *options])
main(["sample", "run", "--n", "5", "--out", "samples.npz"])
"""


def test_two_new_processes_give_bit_exact_results(tmp_path):
    """With other hashes of strings, and files that were made, and are listed, in another order."""
    pixels = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 3), np.uint8)
    for seed, order in (("0", range(30)), ("1", range(29, -1, -1))):
        for i in order:
            path = tmp_path / seed / "photos" / "abc"[i % 3] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i]).save(path)
        command = [sys.executable, "-c", RUN, *TINY, "--set=augment=mirror", "--set=dropout=0.1", "--set=held_out=0.1"]
        env = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run(command, cwd=tmp_path / seed, env=env, check=True, capture_output=True)
    once, again = ({**tree(tmp_path / seed)} for seed in "01")
    assert_equal(latest(tmp_path / "0" / "run").tensors, latest(tmp_path / "1" / "run").tensors)
    for name in ("samples.npz", "run/samples/step-00000006.png"):
        assert sha256(once[name]).digest() == sha256(again[name]).digest(), name


SOAK = """
import os, sys, torch
import simple_diffusion.run.steps as steps
from simple_diffusion.cli.main import main

torch.set_num_threads(2)  # with the threads that compute on the parts
real, table = steps.train, []

def train(*args, **kwargs):
    for step in real(*args, **kwargs):
        if step.n % 50 == 0:
            status = open("/proc/self/status").read()
            kilobytes = int(status.split("VmRSS:")[1].split()[0])
            threads = int(status.split("Threads:")[1].split()[0])
            table.append((step.n, kilobytes, len(os.listdir("/proc/self/fd")), threads))
        yield step

steps.train = train
main(sys.argv[1:])
for row in table:
    print("row", *row)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory and threads are read from /proc")
def test_memory_files_and_threads_stay_constant_in_a_long_run(squares, tmp_path):
    """10,000 steps with a save a second, pictures, and a held-out loss."""
    settings = ["save_seconds=1", "held_out=0.1", "snapshot=0.1", "widths=8,8", "patch=4", "batch=8"]
    command = [sys.executable, "-c", SOAK, "train", str(squares), "--steps", "10000", "--out", str(tmp_path / "run")]
    command += [*TINY, *(f"--set={pair}" for pair in settings)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    table = np.array([line.split()[1:] for line in done.stdout.splitlines() if line.startswith("row")], float)
    assert len(table) == 200
    steps, kilobytes, files, threads = table[80:].T  # after a warm-up of 4,000 steps
    slope = np.polyfit(steps, kilobytes, 1)[0]
    assert slope < 1, f"{slope:.2f} kB a step"  # 1 MB each 1,000 steps
    assert np.ptp(files) == 0, files
    assert threads[:20].min() == threads[-20:].min(), threads  # one that is about to end may be seen
