"""Atomic writes, files of tensors, and values from JSON."""

import hashlib
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from faults import TOKEN, assert_equal, full, watched
from model_files import apart
from safetensors.torch import load_file
from torch import nn

from simple_diffusion.errors import CheckpointError, ResourceError
from simple_diffusion.system.files import (
    FORMAT,
    MAX_HEADER,
    cache_folder,
    fits,
    from_json,
    load_weights,
    read_tensors,
    remove_parts,
    write_atomic,
    write_tensors,
)


def test_missing_folders_are_created(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    for content in (b"first", b"", b"second"):
        write_atomic(path, content)
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fault", [("write", "file.tmp"), ("fsync", "file.tmp"), ("replace", "file.tmp")])
def test_a_failed_write_keeps_the_old_file(tmp_path, fault):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with watched(full(*fault)), pytest.raises(ResourceError, match=f"^{path} can't be written .*No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_reads_back_differently_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda part: real(part)[:-1] + b"?")
    with pytest.raises(ResourceError, match="differs from the content written"):
        write_atomic(path, b"new")
    assert real(path) == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_synced_before_the_rename_and_the_folder_after_it(tmp_path):
    """After a power failure there is the old file or the new one."""
    seen, path = [], tmp_path / "file"
    descriptors = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    with watched(lambda what, name, size: seen.append((what, name.name))):
        write_atomic(path, b"content")
    first = ["open", "write", "fsync", "read", "replace"]
    assert [what for what, name in seen if name == "file.tmp"] == [*first, "unlink"]
    after = seen.index(("replace", "file.tmp"))
    assert ("fsync", tmp_path.name) in seen[after:]
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_only_temporary_files_are_removed(tmp_path):
    own = ("log.csv", "checkpoints/step-1.x", "samples/step-2.png")
    parts = [tmp_path / f"{name}.{TOKEN}.tmp" for name in own]
    others = [tmp_path / name for name in (*own, f"samples/n100.png.{TOKEN}.tmp", f"a/b/step-1.{TOKEN}.tmp")]
    others += [tmp_path / name for name in ("notes.tmp", "log.csv.tmp", "samples/step-2.png.0123.tmp")]  # of the user
    for path in (*parts, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / f"a.{TOKEN}.tmp").mkdir()  # can't be unlinked, and stops nothing
    remove_parts(tmp_path)
    assert not any(path.exists() for path in parts)
    assert all(path.exists() for path in others)


# --- tensors and their record -----------------------------------------------------------------------------------------

TENSORS = {
    "float": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "turned": torch.arange(6.0).view(2, 3).T,
    "half": torch.ones(5, dtype=torch.float16),
    "whole": torch.arange(4),
    "one": torch.tensor(2.5, dtype=torch.float64),
    "none": torch.zeros(0, 3),
}


def test_tensors_and_their_record_are_read_back(tmp_path):
    record = {"words": "σ > 0", "numbers": [1, 2.5, None, True], "inner": {"a": {}}}
    write_tensors(tmp_path / "file", TENSORS, record)
    tensors, about = read_tensors(tmp_path / "file")
    assert about == {"format": FORMAT, **record}
    assert_equal(tensors, TENSORS)
    assert_equal(load_file(tmp_path / "file"), TENSORS)  # any reader of safetensors gets them


def test_the_checksum_covers_all_other_bytes(tmp_path):
    """As anyone can compute it: SHA-256 of the file with zeros in the place of the checksum."""
    write_tensors(tmp_path / "file", TENSORS, {"more": "0" * 64})
    content, digest = (tmp_path / "file").read_bytes(), apart(tmp_path / "file").about["sha256"]
    assert hashlib.sha256(content.replace(digest.encode(), b"0" * 64)).hexdigest() == digest
    assert read_tensors(tmp_path / "file")[1]["more"] == "0" * 64


def test_files_of_format_1_have_no_checksum_and_newer_files_are_refused(tmp_path):
    path = tmp_path / "file"
    write_tensors(path, {"x": torch.ones(3)}, {})
    parts = apart(path)
    path.write_bytes(parts.record(json.dumps({"format": 1, "words": "old"})))
    assert read_tensors(path) == ({"x": pytest.approx(torch.ones(3))}, {"format": 1, "words": "old"})
    for newer in ({"format": FORMAT + 1}, {"format": FORMAT + 1, "sha256": "0" * 64}):
        path.write_bytes(parts.record(json.dumps(newer))[:-5])  # the rest is not read
        with pytest.raises(CheckpointError, match=r"newer version .*upgrade"):
            read_tensors(path)
    digests = ("0" * 64, "0" * 63, "", "\ud800" * 64, None, False, 0, [])
    for wrong in ({"format": FORMAT}, {"format": 0}, {"format": True}, *({"format": 2, "sha256": d} for d in digests)):
        path.write_bytes(parts.record(json.dumps(wrong)))
        with pytest.raises(CheckpointError, match="damaged"):
            read_tensors(path)


def test_a_header_above_the_limit_is_refused(tmp_path):
    path = tmp_path / "file"
    write_tensors(path, {"x": torch.ones(3)}, {})
    parts = apart(path)
    for length, read in ((MAX_HEADER, True), (MAX_HEADER + 1, False)):
        path.write_bytes(parts.file(json.dumps(parts.header).ljust(length)))
        if read:
            assert torch.equal(read_tensors(path)[0]["x"], torch.ones(3))
        else:
            with pytest.raises(CheckpointError, match="its header has 2,097,153 bytes, more than 2,097,152"):
                read_tensors(path)


def test_a_repeated_key_is_refused_anywhere_in_the_header(tmp_path):
    """One reader would take the first, another the last."""
    path = tmp_path / "file"
    write_tensors(path, {"x": torch.ones(3)}, {"words": "a"})
    parts = apart(path)
    twice = json.dumps(parts.about)[:-1] + ', "words": "b"}'
    for bad in (parts.record(twice), parts.file(json.dumps(parts.header)[:-1] + ', "x": {}}')):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match="its header repeats a key"):
            read_tensors(path)


# --- values -----------------------------------------------------------------------------------------------------------

FITS = [
    (int, [0, -5, 10**400], [1.0, True, "1", None, [1]]),
    (float, [0, 1, -0.5, 1e300, -1e300], [True, "1", None, math.nan, math.inf, -math.inf, 1.1e300, -1.1e300, 10**400]),
    (bool, [True, False], [0, 1, "true", None]),
    (str, ["", "a"], [1, None, ["a"], b"a"]),
    (str | None, ["a", None], [1, False, []]),
    (float | None, [1, 1.5, None], [math.nan, "1", True]),
    (tuple[int, ...], [[], [1], [1, 2]], [(1,), 1, "12", None, [1.5], [1, "2"], ["1", 2], {"a": 1}]),
    (dict[str, int], [{}, {"a": 1}], [[], "a", None, {"a": "1"}, {"a": 1, "b": None}, [["a", 1]]]),
    (dict[str, str | int], [{"a": 1, "b": "2"}], [{"a": 1.5}, {"a": [1]}]),
]


@pytest.mark.parametrize(("kind", "good", "bad"), FITS, ids=[str(kind) for kind, _, _ in FITS])
def test_a_value_matches_its_own_type_only(kind, good, bad):
    assert [value for value in good if not fits(value, kind)] == []
    assert [value for value in bad if fits(value, kind)] == []


@dataclass
class Thing:
    name: str
    sizes: tuple[int, ...] = (1, 2)
    weight: float = 0.5


def test_from_json_makes_a_dataclass_or_names_the_wrong_field():
    assert from_json(Thing, {"name": "a"}) == Thing("a")
    assert from_json(Thing, {"name": "a", "sizes": [3, 4], "weight": 2}) == Thing("a", (3, 4), 2)
    for wrong, word in (
        ([], "a Thing must be a JSON object"),
        (None, "a Thing must be a JSON object"),
        ({}, "name"),
        ({"name": 1}, "name can't be 1"),
        ({"name": "a", "sizes": [1, "x"]}, "sizes can't be"),
        ({"name": "a", "weight": math.nan}, "weight can't be nan"),
        ({"name": "a", "color": "red"}, "color"),
    ):
        with pytest.raises(TypeError, match=word):
            from_json(Thing, wrong)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_weights_are_loaded_only_if_they_match_the_module():
    real = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    weights, module = {name: w.clone() for name, w in real.state_dict().items()}, on_meta()
    load_weights(module, weights)
    assert_equal(module.state_dict(), weights)
    assert all(module.state_dict()[name].data_ptr() == w.data_ptr() for name, w in weights.items())  # not copied
    name = "0.bias"
    for wrong, word in (
        ({key: w for key, w in weights.items() if key != name}, "^0.bias is missing$"),
        (weights | {"9.bias": torch.zeros(3)}, "^9.bias is not a weight of this network$"),
        (weights | {name: torch.zeros(4)}, r"^0.bias must be torch.float32 \(3,\), got torch.float32 \(4,\)$"),
        (weights | {name: torch.zeros(3).double()}, r"^0.bias must be torch.float32 \(3,\), got torch.float64 \(3,\)$"),
        (weights | {name: torch.tensor([0, 0, math.nan])}, "^0.bias contains NaN or infinity$"),
        (weights | {name: torch.tensor([0, -math.inf, 0])}, "^0.bias contains NaN or infinity$"),
    ):
        with pytest.raises(ValueError, match=word):
            load_weights(on_meta(), wrong)


@pytest.mark.parametrize(
    ("platform", "variable", "default"),
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("darwin", None, "Library/Caches"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
    ],
)
def test_the_cache_folder_is_that_of_the_system(tmp_path, monkeypatch, platform, variable, default):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / default / "simple-diffusion"
    if variable:
        monkeypatch.setenv(variable, "")  # as good as none
        assert cache_folder() == tmp_path / default / "simple-diffusion"
        monkeypatch.setenv(variable, str(tmp_path / "own"))
        assert cache_folder() == tmp_path / "own" / "simple-diffusion"
