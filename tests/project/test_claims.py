"""Numbers and names in the documentation that the code, or a file of the project, decides."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from simple_diffusion.data.info import DataInfo
from simple_diffusion.doctor.examine import DIAGNOSES
from simple_diffusion.model.build import ModelSpec
from simple_diffusion.model.config import Config, schedule_of
from simple_diffusion.model.presets import PRESETS
from simple_diffusion.samplers import GRIDS
from simple_diffusion.schedules import BETAS, SCHEDULES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {requirement.name: requirement for requirement in map(Requirement, PROJECT["dependencies"])}


def table(page: str, heading: str) -> list[str]:
    """The first cells of the table below a heading."""
    section = (ROOT / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [row.split("|")[1].strip() for row in section.splitlines() if row.startswith("|")][2:]


def pins(file: str) -> dict[str, Version]:
    found = re.findall(r"^([\w-]+)==(\S+)", (ROOT / file).read_text(), re.M)
    return {name.lower(): Version(version) for name, version in found}


def test_every_test_that_a_page_names_exists():
    named = {name for page in PAGES for name in re.findall(r"\btests/[\w/]+\.py", page.read_text())}
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_the_page_on_architecture_names_every_dependency():
    named = re.findall(r"^[a-z][\w-]*", "\n".join(table("docs/architecture.md", "Dependencies")), re.M)
    assert {name for name in named if name in REQUIRED} == REQUIRED.keys()


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_the_versions_of_the_tests_are_allowed(file):
    pinned = pins(file)
    assert pinned.keys() >= REQUIRED.keys()
    assert [name for name, required in REQUIRED.items() if pinned[name] not in required.specifier] == []


def test_the_number_of_checks_of_the_doctor():
    assert len(DIAGNOSES) == len(table("docs/doctor.md", "Checks")) == 16
    assert "runs sixteen checks" in (ROOT / "docs/doctor.md").read_text()
    assert "sixteen typical mistakes" in (ROOT / "README.md").read_text()


def test_no_schedule_leaves_much_of_the_image_unless_its_table_is_too_short():
    """As `terminal_snr` of the doctor says. An image has a norm of at most 1 for each pixel."""
    names = [name for name in BETAS if "unscaled" not in name]
    configs = [Config(schedule=name) for name in SCHEDULES]
    configs += [Config(schedule=name, timesteps=steps) for name in names for steps in (100, 1000)]
    for schedule in map(schedule_of, configs):
        for grid in GRIDS.values():
            start = grid(schedule, 10)[:1]
            assert schedule.alpha(start).item() < 0.03 * schedule.sigma(start).item()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_all_noise_levels(preset):
    """As `untrained_levels` of the doctor says."""
    info = DataInfo("x", 9, 1, 32, 32, (), 0.0, 0.5, "")
    for std in (0.3, 0.5, 0.8):
        spec = ModelSpec(Config(**PRESETS[preset][1]), replace(info, std=std))
        schedule, u = schedule_of(spec.config), (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        level = schedule.ratio(spec.density(u, schedule)) / std
        shares = [part.double().mean().item() for part in (level < 0.3, level > 1.5)]
        shares.append(1 - sum(shares))
        assert min(shares) > (0.15 if spec.config.density == "lognormal" else 0.0235)
