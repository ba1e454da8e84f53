"""Terminals of other encodings, streams that are closed or missing, odd paths, and no home or no cache."""

import io
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from faults import ends, fails, unprivileged
from PIL import Image

import simple_diffusion as sd
from simple_diffusion.errors import UsageError
from simple_diffusion.evaluation import extractors
from simple_diffusion.evaluation.extractors import extractor_for
from simple_diffusion.evaluation.features import cached_features
from simple_diffusion.learn.explain import ENTRIES
from simple_diffusion.model.config import Config
from simple_diffusion.run.command import config_toml
from simple_diffusion.system.files import cache_folder
from simple_diffusion.system.terminal import STDERR, command_line, note, progress_bar

NAMES = ("猫", "Café", "🐱", "a\x1b[31mb", "T\u2028U")


class Mute:
    """A stream with the methods that `print` needs, and no others."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


class Broken(Mute):
    """A stream that fails, as a terminal does that was closed."""

    def write(self, *text: str) -> int:
        raise OSError(5, "Input/output error")

    flush = isatty = write


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {"None": lambda: None, "closed": closed, "without isatty": Mute}


@pytest.fixture(scope="module")
def animals(tmp_path_factory) -> Path:
    """A folder of two images in each class, whose names few terminals can show."""
    root, rng = tmp_path_factory.mktemp("animals"), np.random.default_rng(0)
    for name in NAMES:
        (root / name).mkdir()
        for i in range(8):
            Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def printed(argv: list[str], encoding: str) -> str:
    """What a command prints to a strict stream of this encoding."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert ends(argv) == 0
    out.flush()
    return out.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "shift_jis", "utf-8"])
def test_every_encoding_can_print_what_commands_say(animals, encoding):
    for name in ENTRIES:
        assert printed(["explain", name], encoding)
    assert printed(["train", "--set", "help"], encoding)
    assert printed(["check", "3"], encoding)
    text = printed(["data", str(animals)], encoding)
    assert "\x1b" not in text
    for name in NAMES[:3]:
        assert name.encode(encoding, "backslashreplace").decode(encoding) in text


def test_a_terminal_without_utf_8_trains_and_samples_in_a_locale_of_ascii(animals, tmp_path):
    """The real thing: an ASCII locale, in which also the names of files are not text."""
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
    code = "from simple_diffusion.cli.main import main; import sys; [main(x.split(chr(31))) for x in sys.argv[1:]]"
    run = str(tmp_path / "run")
    train = ["train", str(animals), "--steps", "2", "--out", run, *TINY]
    sample = ["sample", run, "--n", "5", "--label", "3,none", "--out", f"{run}/x.npz"]
    words = [sys.executable, "-c", code, *map("\x1f".join, (train, sample, ["report", run]))]
    done = subprocess.run(words, env=env, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert b"\\u732b" in done.stdout
    assert "猫" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", STREAMS)
def test_commands_and_fit_work_without_streams(squares, run_folder, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    before = sys.stdout, sys.stderr
    assert ends(["train", str(squares), "--steps", "2", "--out", str(tmp_path / "run"), *TINY]) == 0
    assert ends(["sample", str(run_folder), "--n", "4", "--out", str(tmp_path / "x.png")]) == 0
    assert ends(["sample", str(tmp_path / "nothing")]) == 5
    assert ends(["explain", "v", "--json"]) == 0
    sd.fit(sd.load(run_folder).requires_grad_(True), sd.load_images(str(squares)), steps=1)
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("kind", [*STREAMS, "broken"])
def test_messages_and_bars_never_fail(monkeypatch, capsys, kind):
    monkeypatch.setattr(sys, "stderr", Broken() if kind == "broken" else STREAMS[kind]())
    note("words")
    with progress_bar(total=3) as bar:
        bar.update()
        bar.write("words", file=STDERR)
    assert list(progress_bar(range(3))) == [0, 1, 2]
    assert capsys.readouterr().out == ""  # what is for stderr does not go to stdout


def test_a_bar_in_a_terminal_that_closes_does_not_end_the_work(monkeypatch):
    class Closes(Mute):
        encoding, left = "utf-8", 3

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            self.left -= 1
            if self.left < 0:
                raise OSError(5, "Input/output error")
            return len(text)

    monkeypatch.setattr(sys, "stderr", Closes())
    assert sum(progress_bar(range(100), mininterval=0)) == 4950
    assert isinstance(sys.stderr, Closes)
    assert sys.stderr.left < 0


def test_a_reader_that_ends_does_not_end_the_command(squares, tmp_path, monkeypatch):
    """`train | head -1` trains to the end."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert ends(["train", str(squares), "--steps", "2", "--out", str(tmp_path / "run"), *TINY]) == 0
        assert ends(["explain", "--json"]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_terminal_that_is_closed_does_not_end_the_command(squares, tmp_path, monkeypatch):
    """As `nohup` and `disown` leave it: every write to it fails."""
    terminal, ours = os.openpty()
    os.close(terminal)
    with open(ours, "w") as gone:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, gone)
        assert ends(["train", str(squares), "--steps", "2", "--out", str(tmp_path / "run"), *TINY]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_help_for_a_reader_that_ends_leaves_no_message():
    """The real thing: also Python's own flush at the end of the process is silent."""
    script = f"{sys.executable} -m simple_diffusion --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("argv", [["explain", "v", "--json"], ["train", "--help"], ["--version"], ["data", "nothing"]])
def test_output_that_cannot_be_written_is_an_error(monkeypatch, capsys, argv):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        if argv[0] == "data":  # nothing to print to stdout
            fails(capsys, argv, 3, "'nothing' is not a data set")
        else:
            fails(capsys, argv, 6, "No space left on device")


# --- paths


def test_config_toml_is_toml_for_every_character():
    points = [*range(1, 0x3000), *range(0x3000, 0xD800, 97), *range(0xE000, 0x110000, 97), 0xFFFF, 0x10FFFF]
    config = Config(data="".join(map(chr, points)))
    read = tomllib.loads(config_toml(config).decode())
    assert Config(**{key: tuple(v) if isinstance(v, list) else v for key, v in read.items()}) == config


def test_the_command_of_a_run_is_one_line_that_a_shell_reads_back():
    words = [
        "plain",
        "",
        "a b",
        "it's",
        '"',
        "\\",
        "new\nline\t\r\x1b\x7f",
        "猫\n🐱",
        os.fsdecode(b"\xff\xfe'x"),
        "-",
        "$HOME",
    ]
    line = command_line(words)
    assert line.isprintable()
    script = f"printf '%s\\0' {line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout == b"".join(os.fsencode(word) + b"\0" for word in words)


def test_paths_of_odd_names_are_trained_on_and_written_to(squares, tmp_path):
    name = "pics 🐱 'q' \"d\" \\ \x7f \x01 \n end.npz"
    (tmp_path / name).write_bytes(squares.read_bytes())
    out = tmp_path / os.fsdecode(b"run-\xff\n")
    assert ends(["train", str(tmp_path / name), "--steps", "2", "--out", str(out), *TINY]) == 0
    assert ends(["report", str(out)]) == 0
    assert ends(["sample", str(out), "--n", "4"]) == 0
    assert tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))["data"] == str(tmp_path / name)
    assert ends(["train", "--resume", "--out", str(out), str(tmp_path / name)]) == 0


def test_data_whose_path_is_not_utf_8_is_refused_before_training(squares, tmp_path, capsys):
    path = tmp_path / os.fsdecode(b"pics-\xff.npz")
    path.write_bytes(squares.read_bytes())
    argv = ["train", str(path), "--steps", "2", "--out", str(tmp_path / "run"), *TINY]
    fails(capsys, argv, 2, "pics-\\udcff.npz is not UTF-8", "rename it")
    assert not (tmp_path / "run").exists()
    assert ends(["data", str(path), "--json"]) == 0
    with pytest.raises(UsageError, match="is not UTF-8"):
        Config(data="\ud800")


# --- no home, no cache


def test_without_a_home_the_cache_is_a_folder_of_this_process(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7, raising=False)  # a user without an entry, as in a container
    with pytest.raises(RuntimeError):
        Path.home()
    folder = cache_folder()
    assert folder == cache_folder()
    assert folder.parent.is_dir()


def test_a_cache_that_cannot_be_used_costs_only_time(tmp_path, monkeypatch):
    """A file in its place, or a folder that this user must not enter."""
    images = sd.Images("some", torch.arange(250).repeat(50, 1).byte().view(50, 1, 10, 25))
    own = extractor_for(replace(images, name="digits"))  # a shipped one
    monkeypatch.setattr(extractors, "make_extractor", lambda *args, **options: own)
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0o700)
    for name in ("file", "locked"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        with unprivileged():
            assert extractor_for(images) is own
            assert len(cached_features(images, own, own.name)) == 50
