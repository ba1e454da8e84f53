"""Downloads from a local server that cuts, stalls and sends wrong headers."""

import gzip
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from filelock import FileLock

from simple_diffusion.data import download as module
from simple_diffusion.data import idx
from simple_diffusion.data.download import download
from simple_diffusion.errors import DataError

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers each path by the function in `routes`, and keeps a list of the paths and ranges it was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, Callable] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.over = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request, client_address):
        """Clients hang up in some tests."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Range"]))
        self.server.routes[self.path](self)

    def log_message(self, format, *args):
        pass

    def head(self, code: int = 200, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def send(content: bytes, resumes: bool = True, cut: int | None = None, stall: bool = False) -> Callable:
    """A route that sends `content`, up to the byte `cut` of it, and perhaps says nothing more without hanging up."""

    def route(handler: Handler):
        asked = handler.headers["Range"]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and resumes else 0
        if start and start >= len(content):
            handler.head(416, Content_Length=0)
            return
        if asked and resumes:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            handler.head(206, Content_Length=len(content) - start, Content_Range=span)
        else:
            handler.head(200, Content_Length=len(content))
        handler.wfile.write(content[start:cut])
        if stall:
            handler.wfile.flush()
            handler.server.over.wait()

    return route


def redirect(url: str) -> Callable:
    return lambda handler: handler.head(302, Location=url, Content_Length=0)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "SCHEMES", ("http",))
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "file.gz"


@pytest.fixture
def part(path):
    path.parent.mkdir()
    return path.with_name("file.gz.part")


def done(path):
    return path.read_bytes() == CONTENT and [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_arrives_whole_and_alone(server, path):
    server.routes["/good"] = send(CONTENT)
    download([server.url("/good"), server.url("/unasked")], path, SHA256)
    assert done(path)
    assert server.asked == [("/good", None)]


def test_an_interrupted_download_resumes(server, path):
    server.routes["/x"] = send(CONTENT, cut=100_000)
    with pytest.raises(DataError, match=r"file\.gz .*200000 bytes before the end.*folder.*--data-root"):
        download([server.url("/x")], path, SHA256)
    assert not path.exists()
    assert path.with_name("file.gz.part").read_bytes() == CONTENT[:100_000]
    server.routes["/x"] = send(CONTENT)
    download([server.url("/x")], path, SHA256)
    assert done(path)
    assert server.asked == [("/x", None), ("/x", "bytes=100000-")]


def test_the_next_mirror_resumes_the_download(server, path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 1.0)  # of the stalled mirror
    server.routes |= {"/cut": send(CONTENT, cut=70_000), "/stalled": send(CONTENT, cut=150_000, stall=True)}
    server.routes["/good"] = send(CONTENT)
    download([server.url(name) for name in server.routes], path, SHA256)
    assert done(path)
    (_, first), (_, second), (_, third) = server.asked
    assert (first, second) == (None, "bytes=70000-")
    assert 70_000 < int(third.removeprefix("bytes=").rstrip("-")) <= 150_000


def test_a_download_restarts_if_the_server_cannot_resume(server, path, part):
    part.write_bytes(CONTENT[:1000])
    server.routes["/x"] = send(CONTENT, resumes=False)
    download([server.url("/x")], path, SHA256)
    assert done(path)
    assert server.asked == [("/x", "bytes=1000-")]


def test_a_complete_partial_file_is_only_renamed(server, path, part):
    part.write_bytes(CONTENT)
    server.routes["/x"] = send(CONTENT)
    download([server.url("/x")], path, SHA256)
    assert done(path)


@pytest.mark.parametrize("wrong", [CONTENT[:-1] + b"!", b"<html>Sign in to the network</html>", b"", CONTENT + b"more"])
def test_a_file_with_a_wrong_checksum_is_deleted(server, path, wrong):
    server.routes |= {"/wrong": send(wrong, resumes=False), "/good": send(CONTENT)}
    with pytest.raises(DataError, match="SHA-256"):
        download([server.url("/wrong")], path, SHA256)
    assert list(path.parent.iterdir()) == []
    download([server.url("/wrong"), server.url("/good")], path, SHA256)
    assert done(path)


def test_a_partial_file_with_wrong_content_is_deleted(server, path, part):
    part.write_bytes(b"?" * 1000)
    server.routes["/x"] = send(CONTENT)
    download([server.url("/x"), server.url("/x")], path, SHA256)
    assert done(path)
    assert server.asked == [("/x", "bytes=1000-"), ("/x", None)]


def test_a_download_larger_than_expected_is_stopped(server, path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 200_000)

    def endless(handler: Handler):
        handler.head(200)  # no length
        while not handler.server.over.is_set():
            handler.wfile.write(bytes(50_000))

    server.routes["/endless"] = endless
    with pytest.raises(DataError, match="SHA-256"):
        download([server.url("/endless")], path, SHA256)
    assert list(path.parent.iterdir()) == []


def test_a_slow_server_is_abandoned(server, path, monkeypatch):
    def drips(handler: Handler):
        handler.head(200, Content_Length=len(CONTENT))
        for i in range(200):  # 0.05 s of silence each: no timeout tells
            handler.wfile.write(CONTENT[i : i + 1])
            handler.wfile.flush()
            if handler.server.over.wait(0.05):
                return

    server.routes |= {"/drips": drips, "/good": send(CONTENT)}
    with monkeypatch.context() as patch:
        patch.setattr(module, "TIMEOUT", 0.5)
        with pytest.raises(DataError, match="it sends less than 1000 bytes per second"):
            download([server.url("/drips")], path, SHA256)
    assert not path.exists()
    download([server.url("/good")], path, SHA256)
    assert done(path)


def respond(content: bytes, code: int = 200, **headers: object) -> Callable:
    """A route with these headers, right or wrong."""

    def route(handler: Handler):
        handler.head(code, **headers)
        handler.wfile.write(content)

    return route


LIES = {
    "a length that is too short": respond(CONTENT, Content_Length=1000),
    "a length that is too long": respond(CONTENT, Content_Length=10**18),
    "a length below 0": respond(CONTENT[:-1], Content_Length=-5),
    "a length that is no number": respond(CONTENT[:-1], Content_Length="many"),
    "a part that it was not asked for": respond(CONTENT, 206, Content_Range="bytes 0-299999/300000"),
    "the wrong part": respond(CONTENT, 206, Content_Range="bytes 1000-299999/300000"),
    "another part than it says": respond(CONTENT[5:], 206, Content_Range="bytes 1000-300999/301000"),
    "a part of nothing": respond(b"", 206, Content_Range="bytes 1000-999/1000", Content_Length=0),
    "nothing": respond(b"", 204),
    "chunks that are none": respond(CONTENT, Transfer_Encoding="chunked"),
    "chunks that end early": respond(b"fff\r\nabc", Transfer_Encoding="chunked"),
    "a chunk of 2^70 bytes": respond(b"400000000000000000\r\nabc", Transfer_Encoding="chunked"),
    "a packed file": respond(gzip.compress(CONTENT), Content_Encoding="gzip"),
    "an error": respond(CONTENT, 500, Content_Length=len(CONTENT)),
    "headers without end": lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 10_000),
    "a line without end": lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK" + b"!" * 10**6),
    "a redirect to itself": lambda handler: handler.head(302, Location=handler.path, Content_Length=0),
    "a redirect to nowhere": lambda handler: handler.head(302, Content_Length=0),
}


def test_a_wrong_response_is_not_accepted_as_the_file(server, path, part):
    server.routes["/good"] = send(CONTENT)
    for number, (lie, route) in enumerate(LIES.items()):
        path.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        if number % 2:
            part.write_bytes(CONTENT[:1000])  # the download resumes
        server.routes["/lie"] = route
        with suppress(DataError):  # some wrong headers do no harm
            download([server.url("/lie")], path, SHA256)
        assert not path.exists() or done(path), lie
        for _ in range(2):  # what remained is resumed or deleted
            with suppress(DataError):
                download([server.url("/good")], path, SHA256)
        assert done(path), lie


@pytest.mark.parametrize(
    "target", ["https://127.0.0.1:1/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x", "//[bad"]
)
def test_a_redirect_to_another_scheme_is_not_followed(server, path, target):
    server.routes["/away"] = redirect(target)
    with pytest.raises(DataError, match=r"file\.gz"):
        download([server.url("/away")], path, SHA256)
    assert list(path.parent.iterdir()) == []
    if target.startswith("https"):
        with pytest.raises(DataError, match="is not http"):
            download([server.url("/away")], path, SHA256)


def test_a_redirect_of_the_same_scheme_is_followed(server, path):
    server.routes |= {"/here": redirect("/there"), "/there": send(CONTENT)}
    download([server.url("/here")], path, SHA256)
    assert done(path)


def test_other_schemes_than_https_are_refused(path, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    for url in (f"file://{secret}", "http://127.0.0.1:1/x", "ftp://127.0.0.1/x", "x"):
        with pytest.raises(DataError, match="is not https"):
            download([url], path, SHA256)
    assert not path.exists()


def test_the_error_names_the_last_failure(server, path):
    server.routes["/gone"] = lambda handler: handler.head(404, Content_Length=0)
    server.routes["/hangup"] = lambda handler: handler.wfile.write(b"nonsense\r\n\r\n")
    with pytest.raises(DataError, match=r"hangup.*nonsense") as error:
        download([server.url("/gone"), server.url("/hangup")], path, SHA256)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="404"):
        download([server.url("/hangup"), server.url("/gone")], path, SHA256)
    path.parent.rmdir()
    path.parent.touch()  # no folder can be made here
    with pytest.raises(DataError, match="File exists"):
        download([server.url("/gone")], path, SHA256)


@pytest.fixture
def tiny(server, tmp_path, monkeypatch) -> dict[str, bytes]:
    """The files of a data set of two images, which is on the server and not on this machine."""
    monkeypatch.delenv("SIMPLE_DIFFUSION_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(idx, "SYSTEM", tmp_path / "system")
    files = {
        "train-images-idx3-ubyte.gz": gzip.compress(b"\0\0\x08\3" + bytes([0, 0, 0, 2] * 3) + bytes(range(8))),
        "train-labels-idx1-ubyte.gz": gzip.compress(b"\0\0\x08\1" + bytes([0, 0, 0, 2]) + bytes([1, 0])),
    }
    for name, content in files.items():
        server.routes[f"/{name}"] = send(content)
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setitem(idx.IDX_SETS, "tiny", idx.IdxSet(("a", "b"), (server.url("/"),), sha256))
    return files


def test_what_another_process_has_just_downloaded_is_not_fetched_again(server, tiny, tmp_path):
    (tmp_path / "tiny").mkdir()
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / "tiny" / ".lock") as lock:
            waiting = pool.submit(idx.load_idx, "tiny", "train", tmp_path)
            with pytest.raises(TimeoutError):
                waiting.result(0.2)
            for name, content in tiny.items():
                (tmp_path / "tiny" / name).write_bytes(content)
            lock.release()
        assert waiting.result(10).labels.tolist() == [1, 0]
    assert server.asked == []


def test_a_place_where_no_download_can_be_put_is_named(server, tiny, tmp_path):
    (tmp_path / "tiny").touch()
    with pytest.raises(DataError, match=r"cannot write train-images.* to .*tiny' .*File exists.*set --data-root"):
        idx.load_idx("tiny", "train", tmp_path)
    assert server.asked == []


def test_a_missing_data_set_is_downloaded_once(server, tiny, tmp_path):
    files, root = tiny, tmp_path / "root"
    (root / "tiny").mkdir(parents=True)
    (root / "tiny" / "train-images-idx3-ubyte.gz.part").write_bytes(b"not the file")
    with pytest.raises(DataError, match="SHA-256"):  # the rest of another file was put behind it, and thrown away
        idx.load_idx("tiny", "train", root)
    for _ in range(2):
        images = idx.load_idx("tiny", "train", root)
        assert images.pixels.flatten().tolist() == list(range(8))
        assert images.labels.tolist() == [1, 0]
    assert len(server.asked) == 3
    assert sorted(file.name for file in (root / "tiny").glob("[!.]*")) == sorted(files)
