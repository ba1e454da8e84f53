"""The page of `play`: a real server, hostile requests, and a real browser."""

import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import fails

ASK = {"seed": 5, "n": 4, "labels": [2, 0], "guidance": 1.5, "sampler": "dpmpp", "steps": 4}


@pytest.fixture(scope="module")
def server(run_folder):
    """(process, port) of a page."""
    words = [sys.executable, "-m", "simple_diffusion", "play", str(run_folder), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:([0-9]+) ", line)
        assert found, line + process.stderr.read()
        yield process, int(found[1])
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "simple-diffusion: stopped\n"  # no traceback, whatever was asked


def asked(
    port: int, method: str, path: str, body: str | bytes | None = None, **headers: str
) -> tuple[int, dict, bytes]:
    """(status, headers, body) of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def drawn(port: int, ask: object, **headers: str) -> tuple[int, dict, bytes]:
    body = ask if isinstance(ask, (str, bytes)) else json.dumps(ask)
    return asked(port, "POST", "/draw", body, **{"Content-Type": "application/json"} | headers)


# --- what it answers


def test_the_page_and_the_model(server):
    _, port = server
    status, headers, html = asked(port, "GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"<title>play" in html
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(rb"https?:|@import|url\(|src=", html)  # all of it stands in the page
    status, _, body = asked(port, "GET", "/model")
    facts = json.loads(body)
    assert (status, facts["shape"], facts["classes"]) == (200, [3, 12, 16], ["0", "1", "2"])


def test_a_drawing_comes_in_lines(server):
    _, port = server
    status, headers, body = drawn(port, ASK)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    first, *frames, last = map(json.loads, body.splitlines())
    assert "sample" in first["command"]
    assert [frame["step"] for frame in frames] == [0, 1, 2, 3, 4]
    assert last["seconds"] > 0


def test_it_answers_this_machine_alone(server):
    process, port = server
    found = subprocess.run(["cat", f"/proc/{process.pid}/net/tcp"], capture_output=True, text=True).stdout
    listening = [row.split()[1] for row in found.splitlines()[1:] if row.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_a_page_that_leaves_makes_room_for_the_next(server):
    """A drawing of a thousand steps is given up when nobody reads it any more."""
    _, port = server
    long = json.dumps(ASK | {"sampler": "ddim", "steps": 1000, "n": 64})
    for _ in range(6):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/draw", long, {"Content-Type": "application/json"})
        connection.getresponse().read(10)
        connection.close()
    began = time.perf_counter()
    while (answer := drawn(port, ASK))[0] == 503:
        time.sleep(0.05)
    assert answer[0] == 200
    assert time.perf_counter() - began < 20  # far less than one of them takes


# --- what it refuses

WRONG = {
    "no JSON": ("{", 400),
    "nothing": ("", 400),
    "a list": ([], 400),
    "deep": ("[" * 100_000, 400),
    "long digits": ('{"n": ' + "9" * 10_000 + "}", 400),
    "huge n": (ASK | {"n": 10**9}, 400),
    "NaN": (json.dumps(ASK | {"guidance": float("nan")}), 400),
    "a word for a number": (ASK | {"steps": "10"}, 400),
    "a truth for a number": (ASK | {"n": True}, 400),
    "an unknown key": (ASK | {"__class__": "x"}, 400),
    "a key too few": ({"seed": 5}, 400),
    "many labels": (ASK | {"labels": [0] * 100_000}, 400),
    "nested labels": (ASK | {"labels": [[0]]}, 400),
    "a large body": ("x" * (2**23 + 1), 413),
}


@pytest.mark.parametrize(("ask", "status"), WRONG.values(), ids=WRONG)
def test_requests_that_cannot_be(server, ask, status):
    got, headers, body = drawn(server[1], ask)
    assert (got, headers["content-type"]) == (status, "application/json")
    sentence = json.loads(body)["error"]
    assert 0 < len(sentence) <= 500
    assert "Traceback" not in sentence


OTHERS = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Host": "evil.example"},  # a name of its own for 127.0.0.1
    {"Host": "127.0.0.1"},
]


@pytest.mark.parametrize("headers", OTHERS, ids=str)
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/model"), ("POST", "/draw")])
def test_other_sites_are_not_answered(server, method, path, headers):
    status, _, body = asked(server[1], method, path, json.dumps(ASK), **{"Content-Type": "application/json"} | headers)
    assert status == 403
    assert list(json.loads(body)) == ["error"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_can_send_is_refused(server, kind):
    assert drawn(server[1], ASK, **{"Content-Type": kind})[0] == 415


PATHS = [
    "/../../etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "//etc/passwd",
    "/play.html",
    "/model.safetensors",
    "/draw/../model",
    "/\\..\\..\\etc\\passwd",
    "/%00",
    "/" + "a" * 20_000,
    "/?x=../../etc/passwd#",
]


@pytest.mark.parametrize("path", PATHS[:-1])
def test_no_path_is_a_file(server, path):
    status, _, body = asked(server[1], "GET", path)
    assert status == 404
    assert b"root:" not in body


def memory_of(process) -> int:
    """Bytes that a process holds."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def hostile(port: int, number: int) -> int:
    """Send one of a thousand requests. Returns the status, 0 where the server hung up."""
    rng = random.Random(number)
    kind = number % 5
    if kind == 0:
        return drawn(port, list(WRONG.values())[number // 5 % (len(WRONG) - 1)][0])[0]
    if kind == 1:
        headers = OTHERS[number // 5 % len(OTHERS)]
        return drawn(port, ASK, **headers)[0]
    if kind == 2:
        method = rng.choice(["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "HEAD"])
        return asked(port, method, rng.choice([*PATHS, "/draw"]))[0]
    if kind == 3:  # JSON of the right shape with something else in one place
        key = rng.choice(list(ASK))
        value = rng.choice([None, -1, 2**70, 1e308, "", [], {}, [None], "\x00" * 50, True, -0.5, [2**63]])
        return drawn(port, ASK | {key: value})[0]
    odd = rng.choice(  # no HTTP at all, or half of it
        [
            rng.randbytes(200) + b"\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /draw HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            b"POST /draw HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET / HTTP/1.1\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
        ]
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        try:
            raw.sendall(odd)
            raw.shutdown(socket.SHUT_WR)
            found = re.match(rb"HTTP/1\.[01] ([0-9]{3})", raw.recv(1000))
        except TimeoutError:
            raise
        except OSError:  # it hung up at once, before the end was sent or read
            found = None
        return int(found[1]) if found else 0


def test_a_thousand_hostile_requests(server):
    """None crashes it, is served a file or gets a traceback; its memory stays, and it answers all the while."""
    process, port = server
    for number in range(50):  # what it takes once
        hostile(port, number)
    drawn(port, ASK)
    before, slowest, stop = memory_of(process), [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            began = time.perf_counter()
            assert asked(port, "GET", "/model")[0] == 200
            slowest[0] = max(slowest[0], time.perf_counter() - began)

    with ThreadPoolExecutor(9) as pool:
        watcher = pool.submit(watch)
        try:
            statuses = Counter(pool.map(lambda number: hostile(port, number), range(1000)))
        finally:
            stop.set()
        watcher.result()
    assert set(statuses) <= {0, 200, 400, 403, 404, 405, 503}, statuses
    assert statuses[400] > 200
    assert statuses[403] > 150
    assert process.poll() is None
    assert memory_of(process) - before < 60e6
    assert slowest[0] < 2
    assert drawn(port, ASK)[0] == 200


# --- the command


def test_a_port_that_is_taken(server, run_folder, capsys):
    fails(capsys, ["play", str(run_folder), "--port", str(server[1])], 7, str(server[1]), "--port 0")


def test_no_model(capsys):
    fails(capsys, ["play", "nowhere.safetensors", "--port", "0"], 5, "nowhere.safetensors")


def test_without_its_packages(run_folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    fails(capsys, ["play", str(run_folder)], 2, "uvicorn", "simple-diffusion[play]")


# --- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def page(server):
    """The page in a browser, when its first drawing is there; nothing may go wrong in it, and nothing may be asked of
    another address."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    wrong, asked_for = [], set()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked_for.add(request.url))
        address = f"http://127.0.0.1:{server[1]}/"
        page.goto(address)
        drew(page)
        yield page
        browser.close()
    assert [text for text in wrong if "net::ERR_FAILED" not in text] == []  # that one is made by a test
    assert asked_for <= {address, f"{address}model", f"{address}draw", "data:,"}


def drew(page, words: str = "Drew") -> None:
    page.locator("#status", has_text=words).wait_for(timeout=60_000)


def rows(page) -> int:
    return page.locator("#tried tr").count()


def drew_again(page, act) -> None:
    """Do something, and wait for the drawing that it causes."""
    page.evaluate("() => document.getElementById('status').textContent = ''")
    act()
    drew(page)


def dots(page, selector: str) -> list[int]:
    """The red values of a canvas."""
    code = """selector => { const canvas = document.querySelector(selector);
        return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)
            .filter((_, i) => i % 4 === 0); }"""
    return page.evaluate(code, selector)


@pytest.mark.slow
def test_draw_and_step_through(page, tmp_path):
    assert page.locator("#pictures button").count() == 6
    assert page.locator("#pictures button").nth(4).get_attribute("aria-label") == "Image 5: 1"
    drew_again(page, lambda: page.get_by_label("Seed", exact=True).fill("7"))
    drew_again(page, lambda: page.locator("#classes label").nth(2).click())
    assert page.locator("#pictures button").nth(4).get_attribute("aria-label") == "Image 5: 2"
    assert "--label 2 " in page.locator("#command").inner_text()
    assert "--seed 7 " in page.locator("#command").inner_text()
    page.locator("#pictures button").nth(3).click()
    assert "Image 4, 2: step 4 of 4, noise level 0" in page.locator("#where").inner_text()
    assert dots(page, "#x_t") == dots(page, "#x0_hat")
    page.locator("#frame").focus()
    page.keyboard.press("Home")
    assert "step 0 of 4" in page.locator("#where").inner_text()
    assert set(dots(page, "#x0_hat")) == {128}  # there is no guess yet
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "step 2 of 4" in page.locator("#where").inner_text()
    assert dots(page, "#x_t") != dots(page, "#x0_hat")
    assert len(set(dots(page, "#change"))) > 10
    drew_again(page, lambda: page.locator("#measure").check())
    assert float(page.locator("#tried tr").first.locator("td").last.inner_text()) > 0
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.slow
def test_paint_with_the_mouse_and_fill_in(page):
    mask = page.locator("#mask")
    mask.scroll_into_view_if_needed()
    assert page.locator("#fill").is_disabled()
    before = dots(page, "#pictures li:nth-child(1) canvas")
    box = mask.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.5, steps=30)
    page.mouse.up()
    painted = int(page.locator("#painted").inner_text().split()[0])
    assert 30 < painted < 100
    drew_again(page, lambda: page.locator("#fill").click())
    after = dots(page, "#pictures li:nth-child(1) canvas")
    changed = [row for row in range(12) if before[16 * row : 16 * row + 16] != after[16 * row : 16 * row + 16]]
    assert changed
    assert set(changed) <= {4, 5, 6, 7}  # the rows that the brush went over
    assert "repaint" in page.locator("#code").inner_text()
    assert page.locator("#as-command").is_hidden()


@pytest.mark.slow
def test_all_of_it_from_the_keyboard(page):
    """Each control is reached by Tab, says its name, and shows that it has the focus."""
    names = []
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => { const e = document.activeElement, box = e.closest('label') ?? e;
                const name = e.labels?.[0]?.innerText || e.getAttribute('aria-label') || e.innerText || '';
                const seen = [e, box].some(one => getComputedStyle(one).outlineStyle !== 'none');
                return [e.id || e.value, name.trim(), seen]; }"""
        )
        if focused in names or page.evaluate("() => document.activeElement === document.body"):
            break  # it begins anew
        names.append(focused)
        assert focused[1], focused
        assert focused[2], focused
    reached = {name for name, _, _ in names}
    assert {"guidance", "sampler", "steps", "n", "seed", "draw", "fresh", "live", "measure", "frame", "run"} <= reached
    assert {"to_seed", "between", "mask", "brush", "half", "clear", "command", "code"} <= reached
    page.locator("#mask").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    assert "Row 6, column 9: painted" in page.locator("#painted").inner_text()
    count = int(page.locator("#painted").inner_text().split()[0])
    page.keyboard.press("Backspace")
    assert count > 0
    assert page.locator("#painted").inner_text().startswith("0 of 192")
    page.locator("#to_seed").focus()
    page.keyboard.press("Tab")
    drew_again(page, lambda: page.keyboard.press("Enter"))
    assert "between" in page.locator("#code").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window(page, scheme):
    page.set_viewport_size({"width": 340, "height": 700})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 340
    for button in page.locator("main button:visible").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 340


@pytest.mark.slow
def test_a_server_that_has_gone_is_said(page):
    page.route("**/draw", lambda route: route.abort())
    page.locator("#draw").click()
    page.locator("#status", has_text="does not answer").wait_for()
