"""Files made to harm: nothing in them runs, nothing large is believed, and each is refused in one sentence."""

import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from model_files import Parts, apart, good_files
from safetensors.torch import save as packed

from simple_diffusion.cli.main import main
from simple_diffusion.data.arrays import load_array
from simple_diffusion.data.idx import read_idx
from simple_diffusion.data.sources import load_images
from simple_diffusion.errors import CheckpointError, DataError
from simple_diffusion.evaluation import extractors, features
from simple_diffusion.model import model_file as checkpoint
from simple_diffusion.run import checkpoint as state

MEMORY = 100 * 2**20  # bytes that a refusal may take


class Bomb:
    """Unpickled it makes the folder `canary` where the process runs."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.fixture(autouse=True)
def no_canary(tmp_path, monkeypatch):
    """Nothing in a file has run when the test is over."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("canary").exists()


def test_the_canary_detects_executed_code():
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("canary").is_dir()
    Path("canary").rmdir()


def memory() -> int:
    """The most bytes that this process has held since the peak was last reset."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, and a peak that never falls


def refused(error: type[Exception], read: Callable, path: Path) -> str:
    """The sentence in which the file is refused: one line with its path, for little memory."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory()
    with pytest.raises(error) as caught:
        read(path)
    assert memory() - before < MEMORY
    text = str(caught.value)
    assert str(path) in text
    assert text.isprintable()
    assert len(text) < 400
    return text


# --- model files, of which one thing is wrong


def put(parts: Parts, convert: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
    """The file whose last tensor is another one."""
    tensors = parts.tensors
    name = max(tensors)
    return parts.with_tensors({**tensors, name: convert(tensors[name])})


def poisoned(value: float) -> Callable[[Parts], bytes]:
    """One number of the last tensor is not finite."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return lambda parts: put(parts, change)


def first_twice(members: dict) -> str:
    """The JSON object with its first member twice."""
    first = next(iter(members))
    return f"{json.dumps({first: members[first]})[:-1]}, {json.dumps(members)[1:]}"


def many(parts: Parts, n: int) -> bytes:
    """The file with n more tensors of no elements."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(parts.data)] * 2}
    return parts.file(parts.header | {str(i): empty for i in range(n)})


def offsets(parts: Parts, begin: float, end: float) -> list[float]:
    """Those of the first tensor, moved."""
    was = parts.header[parts.names[0]]["data_offsets"]
    return [was[0] + begin, was[1] + end]


FILES: dict[str, Callable[[Parts], bytes]] = {
    # the header
    "empty": lambda p: b"",
    "seven bytes": lambda p: p.file()[:7],
    "a header of 2^63 bytes": lambda p: struct.pack("<Q", 2**63) + p.file()[8:],
    "a header of 2^64 - 1 bytes": lambda p: b"\xff" * 8 + p.file()[8:],
    "a header of 100 MB that is not there": lambda p: struct.pack("<Q", 10**8) + p.file()[8:],
    "a header of 99 MB of spaces": lambda p: p.file(json.dumps(p.header) + " " * 99_000_000),
    "a header of no bytes": lambda p: bytes(8) + p.data,
    "a header that ends early": lambda p: struct.pack("<Q", len(json.dumps(p.header)) - 5) + p.file()[8:],
    "a header of nulls": lambda p: p.file(bytes(500)),
    "a header that is a list": lambda p: p.file("[1, 2]"),
    "a header not in UTF-8": lambda p: p.file(json.dumps(p.header).encode().replace(b"dtype", b"\xff\xfe\xfd\xfc\xfb")),
    "a header of deep JSON": lambda p: p.file('{"a":' * 100_000 + "1" + "}" * 100_000),
    "a header of deep lists": lambda p: p.file('{"a":' + "[" * 500_000),
    "a record that is a number": lambda p: p.file({**p.header, "__metadata__": {"simple-diffusion": 1}}),
    "metadata that are a list": lambda p: p.file({**p.header, "__metadata__": []}),
    "no metadata": lambda p: p.file({name: p.header[name] for name in p.names}),
    "metadata of another program": lambda p: p.file({**p.header, "__metadata__": {"format": "pt"}}),
    "the metadata twice": lambda p: p.file(json.dumps(p.header)[:-1] + ', "__metadata__": {"simple-diffusion": "{}"}}'),
    # the tensors
    "a tensor twice": lambda p: p.file(first_twice({name: p.header[name] for name in (*p.names, "__metadata__")})),
    "tensors that overlap": lambda p: p.file({**p.header, p.names[1]: p.header[p.names[0]]}),
    "a hole before a tensor": lambda p: p.tensor(data_offsets=offsets(p, 4, 4)),
    "a hole behind a tensor": lambda p: p.tensor(data_offsets=offsets(p, 0, -4)),
    "a tensor beyond the end": lambda p: p.tensor(data_offsets=offsets(p, 10**12, 10**12)),
    "a tensor at 2^64": lambda p: p.tensor(data_offsets=[2**64 - 4, 2**64 + 4]),
    "a tensor before the beginning": lambda p: p.tensor(data_offsets=offsets(p, -8, -8)),
    "a tensor that ends before it begins": lambda p: p.tensor(data_offsets=offsets(p, 0, 0)[::-1]),
    "offsets that are no whole numbers": lambda p: p.tensor(data_offsets=offsets(p, 0.5, 0.5)),
    "a shape whose product overflows": lambda p: p.tensor(shape=[2**62, 2**62]),
    "a shape whose product overflows to its size": lambda p: p.tensor(shape=[2**63, 2, *p.header[p.names[0]]["shape"]]),
    "a shape of terabytes": lambda p: p.tensor(shape=[2**40]),
    "a shape below 0": lambda p: p.tensor(shape=[-8]),
    "a shape of NaN": lambda p: p.tensor(shape=[float("nan")]),
    "a shape of a hundred thousand axes": lambda p: p.tensor(shape=[1] * 100_000),
    "a type that there is not": lambda p: p.tensor(dtype="OBJECT"),
    "a type of other width": lambda p: p.tensor(dtype="F64"),
    "two hundred thousand weights": lambda p: many(p, 200_000),
    "bytes behind the end": lambda p: p.file() + b"more",
    "a pickle behind the end": lambda p: p.file() + pickle.dumps(Bomb()),
    "a pickle instead of the weights": lambda p: p.file(data=pickle.dumps(Bomb())),
    # the record
    "a record of deep JSON": lambda p: p.record('{"a":' * 100_000 + "1" + "}" * 100_000),
    "a record of deep lists": lambda p: p.record("[" * 100_000 + "]" * 100_000),
    "a record of empty lists": lambda p: p.record("[" + "[]," * 600_000 + "[]]"),
    "a record that is a list": lambda p: p.record("[]"),
    "a record that is a word": lambda p: p.record('"simple-diffusion"'),
    "a record that is null": lambda p: p.record("null"),
    "a record that is a pickle": lambda p: p.record(pickle.dumps(Bomb(), 0).decode()),
    "a record that says its first word twice": lambda p: p.record(first_twice(p.about)),
    "a record with a number of 5,000 digits": lambda p: p.record('{"format": ' + "1" * 5000 + "}"),
}

WEIGHTS: dict[str, Callable[[Parts], bytes]] = {
    "weights in float64": lambda p: put(p, lambda x: x.double()),
    "weights in float16": lambda p: put(p, lambda x: x.half()),
    "weights that are whole numbers": lambda p: put(p, lambda x: x.int()),
    "weights that are bools": lambda p: put(p, lambda x: x > 0),
    "weights that are complex": lambda p: put(p, lambda x: x.to(torch.complex64)),
    "a NaN in a weight": poisoned(float("nan")),
    "an infinite weight": poisoned(float("inf")),
    "a weight of minus infinity": poisoned(-float("inf")),
    "a weight too many": lambda p: p.with_tensors(p.tensors | {"extra": torch.zeros(3)}),
    "a weight too few": lambda p: p.with_tensors(dict(list(p.tensors.items())[1:])),
    "no weights": lambda p: p.with_tensors({}),
    "a weight of another shape": lambda p: put(p, lambda x: x[None]),
    "an empty weight": lambda p: put(p, lambda x: x.flatten()[:0]),
    "a type of the same width": lambda p: p.tensor(dtype="I32"),
    "a weight called NaN": lambda p: p.with_tensors(p.tensors | {"NaN": torch.zeros(3)}),
    "a weight whose name rings": lambda p: p.with_tensors(p.tensors | {"\x1b[31m\x07\n\u202e": torch.zeros(3)}),
    "ten thousand weights": lambda p: many(p, 10_000),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[Callable, Path]:
    """For each reader of weights a good file."""
    return good_files(tmp_path_factory.mktemp("good"))


READERS = (checkpoint.read, extractors.read_extractor, state.read_checkpoint)
of_each = pytest.mark.parametrize("read", READERS, ids=["model", "extractor", "checkpoint"])
of_weights = pytest.mark.parametrize("read", READERS[:2], ids=["model", "extractor"])


@of_each
def test_good_files_are_read(good, read):
    path = good[read]
    read(path)
    parts = apart(path)
    path.with_name("again.safetensors").write_bytes(parts.file())  # taken apart and put together
    read(path.with_name("again.safetensors"))


ALL_READERS = ("empty", "a tensor twice", "a record that is a list")  # they share what opens a file


@pytest.mark.parametrize(
    ("read", "case"),
    [(checkpoint.read, case) for case in FILES] + [(read, case) for read in READERS[1:] for case in ALL_READERS],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_manipulated_model_files_are_refused(good, tmp_path, read, case):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(FILES[case](apart(good[read])))
    refused(CheckpointError, read, path)


@of_weights
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit_the_network_are_refused(good, tmp_path, read, case):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(WEIGHTS[case](apart(good[read])))
    refused(CheckpointError, read, path)


# --- records of which one value is wrong

BASE = 10**400  # overflows a float, and any 64 bits
WRONG: dict[Callable, list[tuple[str, object]]] = {
    checkpoint.read: [
        *(("format", value) for value in (5, 10**30, 0, -1, "1", True, None, 1.5, float("nan"), [1])),
        *(("step", value) for value in (-1, "5", True, None, 1.5, float("inf"), float("nan"), [5])),
        *(("seconds", value) for value in (-1, "1", True, None, float("inf"), float("nan"), BASE)),
        *(("config", value) for value in (None, [], "Config", 1, {"__class__": "os.system"}, {"_target_": "os.mkdir"})),
        *(("config.widths", value) for value in ([2**40, 2**40], [4096] * 8, [8], [], 8, "os.system", [8, "8"])),
        *(("config.widths", value) for value in ([8, 8.0], [True, True], [[8], [8]], [8, -8], [8] * 100_000)),
        *(("config.blocks", value) for value in ([64, 64], [0, 1], [1, 10**9])),
        *(("config.patch", value) for value in (0, -1, 16, 10**9, True, 2.0)),
        *(("config.timesteps", value) for value in (10**9, -1, 5)),
        *(("config.sampler_steps", value) for value in (0, 10**9, "10")),
        *(("config.schedule", value) for value in ("__class__", "os", 1, "../karras", None)),
        *(("config.network", value) for value in ("Linear", "annotated", "double-conv")),
        *(("config.guidance", value) for value in (float("nan"), float("inf"), BASE, "1", True)),
        *(("config.dropout", value) for value in (1, -0.1, float("nan"))),
        ("config.data", 1),
        ("config.evil", 1),
        ("config.__class__", "x"),
        *(("info", value) for value in (None, [], "Card", {})),
        *(("info.height", value) for value in (0, -8, 10**6, 10**18, "8", 8.0, True, None)),
        ("info.width", 10**6),
        *(("info.channels", value) for value in (0, 2, 3, 10**9)),
        *(("info.count", value) for value in (0, -1, "9", 1.5)),
        *(("info.std", value) for value in (0, -0.5, 5, float("nan"), float("inf"), BASE, "0.5", None)),
        *(("info.mean", value) for value in (2, float("nan"), "0")),
        *(("info.class_names", value) for value in ("ab", ["a"], ["a", "b", "c"], ["a", 1], [["a"], "b"], None)),
        ("info.class_names", ["a", "b"] * 50_000),
        ("info.name", None),
        ("info.evil", 1),
    ],
    extractors.read_extractor: [
        *(("format", value) for value in (5, 0, "1", None)),
        *(("extractor", value) for value in (None, [], "Record", {})),
        *(("extractor.name", value) for value in ("../../etc/cnn", "/etc/cnn", "a/b", "", ".", "..", None, 5)),
        *(("extractor.classes", value) for value in (-1, 2, 10**9, "3", None, True)),
        *(("extractor.architecture", value) for value in (None, [], {}, {"layers": 10**9}, {"evil": 1})),
        *(("extractor.architecture.start", value) for value in (0, -4, 2**40, 4096, "4", 4.0, None)),
        *(("extractor.architecture.layers", value) for value in (0, 3, 17, 10**9)),
        *(("extractor.architecture.size", value) for value in (0, 4096, 2**31)),
        *(("extractor.architecture.classes", value) for value in (4096, 0)),
        *(("extractor.test_accuracy", value) for value in ("1", float("nan"), [1])),
        ("extractor.epochs", "many"),
        ("extractor.evil", 1),
    ],
    state.read_checkpoint: [
        *(("numbers", value) for value in (None, [], {}, {"n": 5})),
        *(("numbers.n", value) for value in (-1, "5", 1.5, True, None)),
        *(("numbers.progress", value) for value in (-0.1, 1.5, float("nan"), "0", None)),
        *(("numbers.done", value) for value in (1, "yes", None)),
        *(("numbers.best", value) for value in ("1", float("nan"))),
        *(("made_by", value) for value in (None, [], {"torch": [1]})),
        *(("config.batch", value) for value in (0, 10**9, "64")),
        ("info.height", 10**6),
        ("sha256", None),
        ("sha256", "0"),
    ],
}


@pytest.mark.parametrize(
    ("read", "key", "value"),
    [(read, key, value) for read, wrong in WRONG.items() for key, value in wrong],
    ids=lambda part: part.__name__ if callable(part) else str(part)[:30],
)
def test_records_with_wrong_values_are_refused(good, tmp_path, read, key, value):
    parts, path = apart(good[read]), tmp_path / "bad.safetensors"
    about = parts.about
    *groups, last = key.split(".")
    inner = about
    for group in groups:
        inner = inner[group]
    inner[last] = value
    path.write_bytes(parts.record(json.dumps(about)))
    refused(CheckpointError, read, path)


def test_a_wrong_checksum_is_refused(good, tmp_path):
    whole, path = good[checkpoint.read].read_bytes(), tmp_path / "bad.safetensors"
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "checksum" in refused(CheckpointError, checkpoint.read, path)


@of_weights
def test_the_error_for_a_non_finite_number_names_its_tensor(good, tmp_path, read):
    parts, path = apart(good[read]), tmp_path / "bad.safetensors"
    path.write_bytes(poisoned(float("nan"))(parts))
    assert f"{max(parts.tensors)} contains NaN or infinity" in refused(CheckpointError, read, path)


def test_a_path_in_a_model_is_never_opened(good, tmp_path, monkeypatch):
    """Words of a model file name what it was trained on; reading and sampling touch none of it."""
    parts, path = apart(good[checkpoint.read]), tmp_path / "m.safetensors"
    about = parts.about
    about["config"]["data"] = about["info"]["name"] = "../../secret"
    about["info"]["class_names"] = ["/etc/passwd", "\x1b[31mred\n"]
    path.write_bytes(parts.record(json.dumps(about)))
    opened = []
    monkeypatch.setattr("simple_diffusion.data.sources.load_images", lambda *a, **k: opened.append(a))
    main(["sample", str(path), "--n", "2", "--steps", "2", "--out", "out"])
    assert not opened
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "out"]
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")}
    assert written == {"%2Fetc%2Fpasswd/000000.png", "%1B[31mred%0A/000001.png"}


# --- files that hold code, under every name


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def torch_file(zip_format: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": torch.zeros(3), "bomb": Bomb()}, buffer, _use_new_zipfile_serialization=zip_format)
    return buffer.getvalue()


def torch_tar() -> bytes:
    """As torch wrote before its version 0.1.10."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            member = tarfile.TarInfo(name)
            content = pickle.dumps(Bomb(), 2)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


OBJECTS = np.array([Bomb(), Bomb()], dtype=object)
CODE: dict[str, Callable[[], bytes]] = {
    "pickle 0": lambda: pickle.dumps(Bomb(), 0),
    "pickle 2": lambda: pickle.dumps({"state_dict": Bomb()}, 2),
    "pickle 5": lambda: pickle.dumps([Bomb()], 5),
    "torch zip": lambda: torch_file(True),
    "torch legacy": lambda: torch_file(False),
    "torch tar": torch_tar,
    "objects": lambda: npy(OBJECTS, allow_pickle=True),
    "an object in a record": lambda: npy(np.array([(1, Bomb())], "i4,O"), allow_pickle=True),
    "objects in an archive": lambda: zipped(images__npy=npy(OBJECTS, allow_pickle=True)),
    "labels that are objects": lambda: zipped(
        images__npy=npy(np.zeros((2, 4, 4), np.uint8)), labels__npy=npy(OBJECTS, allow_pickle=True)
    ),
    "a pickle in an archive": lambda: zipped(images__npy=pickle.dumps(Bomb())),
    "a pickle without an ending": lambda: zipped(images=pickle.dumps(Bomb())),
    "a pickle behind NumPy's first bytes": lambda: b"\x93NUMPY\x01\x00" + pickle.dumps(Bomb()),
    "a pickle behind a header of bytes": lambda: npy(np.zeros((2, 4, 4), np.uint8))[:128] + pickle.dumps(Bomb(), 0),
    "NumPy's header that is code": lambda: (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 54) + b'{"descr": __import__("os").mkdir("canary"), "shape": ()}\n'
    ),
}
ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".npz", ".npy")


ONE_EACH = [(case, ENDINGS[i % len(ENDINGS)]) for i, case in enumerate(CODE)]
REST = [(case, ending) for case in CODE for ending in ENDINGS if (case, ending) not in ONE_EACH]


@pytest.mark.parametrize(
    ("case", "ending"), [*ONE_EACH, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)]
)
def test_files_with_code_are_refused_under_every_name(tmp_path, squares, capsys, case, ending):
    path = tmp_path / f"file{ending}"
    path.write_bytes(CODE[case]())
    for read in READERS:
        refused(CheckpointError, read, path)
    text = refused(DataError, load_array, path)
    assert "allow_pickle" not in text  # NumPy's advice
    assert "pickle.load" not in text
    refused(DataError, lambda path: load_images(str(path)), path)
    with pytest.raises(DataError):
        read_idx(path)
    with pytest.raises(CheckpointError):
        features.read_features(path, 2)
    for command in (["evaluate", path, "--data", squares], ["sample", path], ["train", path]):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in command])
        out, err = capsys.readouterr()
        assert stop.value.code in (3, 5)
        assert (out, err.count("\n")) == ("", 1)
        assert str(path) in err
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# --- arrays


def header_of(shape: str, dtype: str = "|u1") -> bytes:
    """The beginning of an .npy file that claims a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@cache
def bombed(method: int, megabytes: int) -> bytes:
    """Megabytes of zeros in a thousandth of their length."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, archive.open("images.npy", "w") as file:
        file.write(header_of(f"({megabytes}, 1024, 1024)"))
        for _ in range(megabytes):
            file.write(bytes(2**20))
    return buffer.getvalue()


def lying(size: int) -> bytes:
    """An archive whose member claims another length, at both ends."""
    whole = zipped(images__npy=npy(np.zeros((2, 4, 4), np.uint8)))
    true = struct.pack("<I", 128 + 32)
    assert whole.count(true) == 4  # packed and unpacked
    return whole.replace(true, struct.pack("<I", size))


ARRAYS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "NumPy's first bytes alone": lambda: b"\x93NUMPY",
    "a zip's first bytes alone": lambda: b"PK\3\4",
    "an empty archive": lambda: zipped(),
    "a header of 64 kB": lambda: b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65535,
    "a header of 4 GB": lambda: b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"{" * 1000,
    "a header of deep lists": lambda: header_of("[" * 9000),
    "a header of minus signs": lambda: header_of("(" + "-" * 9000 + "1,)"),
    "a header of a product": lambda: header_of("(9**9**9,)"),
    "a header of many digits": lambda: header_of("(" + "9" * 5000 + ",)"),
    "a version that there is not": lambda: b"\x93NUMPY\x09\x09" + bytes(100),
    "a shape of petabytes": lambda: header_of("(1000000000000, 64, 64)") + bytes(100),
    "a shape of gigabytes": lambda: header_of("(1000000, 64, 64)") + bytes(100),
    "a shape that overflows": lambda: header_of("(4294967296, 4294967296, 4)") + bytes(100),
    "a shape below 0": lambda: header_of("(-2, 4, 4)") + bytes(100),
    "a shape of words": lambda: header_of("('a', 4, 4)") + bytes(100),
    "a shape of bools": lambda: header_of("(True, True, True)") + bytes(1),
    "axes without end": lambda: header_of("(" + "1," * 4000 + ")") + bytes(1),
    "a type of 2 GB": lambda: header_of("(1, 1, 1)", "|V2147483647") + bytes(100),
    "text": lambda: npy(np.array([[["<script>"]]])),
    "300 MB of zeros": lambda: bombed(zipfile.ZIP_DEFLATED, 300),
    "zeros packed by bzip2": lambda: bombed(zipfile.ZIP_BZIP2, 1),
    "zeros packed by LZMA": lambda: bombed(zipfile.ZIP_LZMA, 1),
    "a petabyte of zeros in an archive": lambda: zipped(images__npy=header_of("(1000000000000, 64, 64)")),
    "a member that claims a byte": lambda: lying(1),
    "a member that claims 100 bytes": lambda: lying(100),
    "ten thousand arrays": lambda: zipped(**{f"a{i}": b"" for i in range(10_000)}),
    "names that lead elsewhere": lambda: zipped(**{"../../images": b"x", "/etc/passwd": b"x"}),
    "a name that rings": lambda: zipped(**{"\x1b[31m\n\x07": b"x", "b": b"x"}),
    "an archive in an archive": lambda: zipped(images__npy=zipped(images__npy=b"x")),
}


@pytest.mark.parametrize("ending", [".npz", pytest.param(".npy", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ARRAYS)
def test_manipulated_arrays_are_refused(tmp_path, case, ending):
    path = tmp_path / f"file{ending}"
    path.write_bytes(ARRAYS[case]())
    refused(DataError, load_array, path)
    refused(DataError, lambda path: load_images(str(path)), path)


def test_a_web_page_named_as_an_array_is_not_reported_as_code(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"<html>404</html>")
    assert "it is not a .npy or .npz file" in refused(DataError, load_array, path)


def test_an_idx_file_of_zeros_is_refused(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, 300, 1024, 1024))
        for _ in range(300):
            file.write(bytes(2**20))
    refused(DataError, read_idx, path)


def test_invalid_cached_features_are_computed_again(good, tmp_path):
    path = tmp_path / "features.safetensors"
    whole = {"features": torch.zeros(3, 4), "logits": torch.zeros(3, 2)}
    header = {"simple-diffusion": '{"format": 1}'}
    path.write_bytes(packed(whole, header))
    assert features.read_features(path, 3).logits.shape == (3, 2)
    for wrong in (
        {"features": torch.zeros(3, 4)},
        whole | {"more": torch.zeros(3, 2)},
        whole | {"logits": torch.zeros(4, 2)},
        whole | {"logits": torch.zeros(3)},
        whole | {"logits": torch.zeros(3, 2).double()},
        whole | {"features": torch.full((3, 4), float("nan"))},
    ):
        path.write_bytes(packed(wrong, header))
        refused(CheckpointError, lambda path: features.read_features(path, 3), path)
