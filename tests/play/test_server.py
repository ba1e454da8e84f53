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

REQUEST = {"seed": 5, "n": 4, "labels": [2, 0], "guidance": 1.5, "sampler": "dpmpp", "steps": 4}


@pytest.fixture(scope="module")
def server(run_folder):
    """(process, port) of a running server."""
    words = [sys.executable, "-m", "simple_diffusion", "play", str(run_folder), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:([0-9]+) ", line)
        assert found, line + process.stderr.read()
        yield process, int(found[1])
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "simple-diffusion: stopped\n"  # no traceback after any of the requests


def ask(port: int, method: str, path: str, body: str | bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
    """(status, headers, body) of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def sample(port: int, request: object, **headers: str) -> tuple[int, dict, bytes]:
    body = request if isinstance(request, (str, bytes)) else json.dumps(request)
    return ask(port, "POST", "/sample", body, **{"Content-Type": "application/json"} | headers)


# --- responses


def test_the_page_and_the_facts_about_the_model(server):
    _, port = server
    status, headers, html = ask(port, "GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"<title>play" in html
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(rb"https?:|@import|url\(|src=", html)  # the page loads nothing
    status, _, body = ask(port, "GET", "/model")
    facts = json.loads(body)
    assert (status, facts["shape"], facts["classes"]) == (200, [3, 12, 16], ["0", "1", "2"])


def test_samples_come_as_lines_of_json(server):
    _, port = server
    status, headers, body = sample(port, REQUEST)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    first, *frames, last = map(json.loads, body.splitlines())
    assert "sample" in first["command"]
    assert [frame["step"] for frame in frames] == [0, 1, 2, 3, 4]
    assert last["seconds"] > 0


def test_only_this_machine_can_connect(server):
    process, port = server
    found = subprocess.run(["cat", f"/proc/{process.pid}/net/tcp"], capture_output=True, text=True).stdout
    listening = [row.split()[1] for row in found.splitlines()[1:] if row.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_closing_the_page_cancels_its_request(server):
    """Sampling in a thousand steps stops if the client disconnects."""
    _, port = server
    long = json.dumps(REQUEST | {"sampler": "ddim", "steps": 1000, "n": 64})
    for _ in range(6):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/sample", long, {"Content-Type": "application/json"})
        connection.getresponse().read(10)
        connection.close()
    began = time.perf_counter()
    while (response := sample(port, REQUEST))[0] == 503:
        time.sleep(0.05)
    assert response[0] == 200
    assert time.perf_counter() - began < 20  # far less than one of them takes


# --- requests that are refused

WRONG = {
    "not JSON": ("{", 400),
    "empty": ("", 400),
    "a list": ([], 400),
    "deeply nested": ("[" * 100_000, 400),
    "long digits": ('{"n": ' + "9" * 10_000 + "}", 400),
    "huge n": (REQUEST | {"n": 10**9}, 400),
    "NaN": (json.dumps(REQUEST | {"guidance": float("nan")}), 400),
    "a string for a number": (REQUEST | {"steps": "10"}, 400),
    "a boolean for a number": (REQUEST | {"n": True}, 400),
    "an unknown key": (REQUEST | {"__class__": "x"}, 400),
    "missing keys": ({"seed": 5}, 400),
    "many labels": (REQUEST | {"labels": [0] * 100_000}, 400),
    "nested labels": (REQUEST | {"labels": [[0]]}, 400),
    "a large body": ("x" * (2**23 + 1), 413),
}


@pytest.mark.parametrize(("request_", "status"), WRONG.values(), ids=WRONG)
def test_invalid_requests_get_an_error_in_one_sentence(server, request_, status):
    got, headers, body = sample(server[1], request_)
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
    {"Host": "evil.example"},  # DNS rebinding
    {"Host": "127.0.0.1"},
]


@pytest.mark.parametrize("headers", OTHERS, ids=str)
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/model"), ("POST", "/sample")])
def test_requests_from_other_sites_are_refused(server, method, path, headers):
    status, _, body = ask(
        server[1], method, path, json.dumps(REQUEST), **{"Content-Type": "application/json"} | headers
    )
    assert status == 403
    assert list(json.loads(body)) == ["error"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_content_types_that_a_form_can_send_are_refused(server, kind):
    assert sample(server[1], REQUEST, **{"Content-Type": kind})[0] == 415


PATHS = [
    "/../../etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "//etc/passwd",
    "/play.html",
    "/model.safetensors",
    "/sample/../model",
    "/\\..\\..\\etc\\passwd",
    "/%00",
    "/" + "a" * 20_000,
    "/?x=../../etc/passwd#",
]


@pytest.mark.parametrize("path", PATHS[:-1])
def test_no_path_reads_a_file(server, path):
    status, _, body = ask(server[1], "GET", path)
    assert status == 404
    assert b"root:" not in body


def memory_of(process) -> int:
    """Resident memory of a process, in bytes."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def hostile(port: int, number: int) -> int:
    """Send one of many requests. Returns the status, or 0 if the server closed the connection."""
    rng = random.Random(number)
    kind = number % 5
    if kind == 0:
        return sample(port, list(WRONG.values())[number // 5 % (len(WRONG) - 1)][0])[0]
    if kind == 1:
        headers = OTHERS[number // 5 % len(OTHERS)]
        return sample(port, REQUEST, **headers)[0]
    if kind == 2:
        method = rng.choice(["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "HEAD"])
        return ask(port, method, rng.choice([*PATHS, "/sample"]))[0]
    if kind == 3:  # valid JSON with one wrong value
        key = rng.choice(list(REQUEST))
        value = rng.choice([None, -1, 2**70, 1e308, "", [], {}, [None], "\x00" * 50, True, -0.5, [2**63]])
        return sample(port, REQUEST | {key: value})[0]
    odd = rng.choice(  # not HTTP, or half of a request
        [
            rng.randbytes(200) + b"\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /sample HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            b"POST /sample HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
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
        except OSError:  # closed before the end was sent or read
            found = None
        return int(found[1]) if found else 0


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_hostile_requests_neither_stop_the_server_nor_grow_its_memory(server, count):
    """The server stays responsive, and none of the requests reads a file or gets a traceback."""
    process, port = server
    for number in range(50):  # warm up
        hostile(port, number)
    sample(port, REQUEST)
    before, slowest, stop = memory_of(process), [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            began = time.perf_counter()
            assert ask(port, "GET", "/model")[0] == 200
            slowest[0] = max(slowest[0], time.perf_counter() - began)

    with ThreadPoolExecutor(9) as pool:
        watcher = pool.submit(watch)
        try:
            statuses = Counter(pool.map(lambda number: hostile(port, number), range(count)))
        finally:
            stop.set()
        watcher.result()
    assert set(statuses) <= {0, 200, 400, 403, 404, 405, 503}, statuses
    assert statuses[400] > 0.2 * count
    assert statuses[403] > 0.15 * count
    assert process.poll() is None
    assert memory_of(process) - before < 60e6
    assert slowest[0] < 2
    assert sample(port, REQUEST)[0] == 200


# --- the command


def test_a_port_in_use_is_an_error(server, run_folder, capsys):
    fails(capsys, ["play", str(run_folder), "--port", str(server[1])], 7, str(server[1]), "--port 0")


def test_a_missing_model_is_an_error(capsys):
    fails(capsys, ["play", "nowhere.safetensors", "--port", "0"], 5, "nowhere.safetensors")


def test_missing_packages_are_an_error_that_names_the_extra(run_folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    fails(capsys, ["play", str(run_folder)], 2, "uvicorn", "simple-diffusion[play]")


# --- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser_page(server):
    """The page in a browser. No errors are allowed in its console, and no requests to other addresses."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    errors, urls = [], set()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: urls.add(request.url))
        address = f"http://127.0.0.1:{server[1]}/"
        page.goto(address)
        yield page
        browser.close()
    assert [text for text in errors if "net::ERR_FAILED" not in text] == []  # a test makes that one
    assert urls <= {address, f"{address}model", f"{address}sample", "data:,"}


@pytest.fixture
def page(browser_page):
    """The page after a reload, with its first samples."""
    browser_page.reload()
    wait_for_samples(browser_page)
    return browser_page


def wait_for_samples(page) -> None:
    page.locator("#status", has_text=re.compile(r"Sampled \d+ image")).wait_for(timeout=60_000)


def sample_by(page, act) -> None:
    """Do something that makes the page sample, and wait for the samples."""
    page.evaluate("() => document.getElementById('status').textContent = ''")
    act()
    wait_for_samples(page)


def red_values(page, selector: str) -> list[int]:
    """The red values of a canvas."""
    code = """selector => { const canvas = document.querySelector(selector);
        return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)
            .filter((_, i) => i % 4 === 0); }"""
    return page.evaluate(code, selector)


@pytest.mark.slow
def test_settings_change_the_samples_and_every_step_can_be_seen(page):
    samples, position = page.locator("#samples button"), page.locator("#position")
    assert samples.count() == 6
    assert samples.nth(4).get_attribute("aria-label") == "Image 5, class 1"
    sample_by(page, lambda: page.get_by_label("Seed", exact=True).fill("7"))
    sample_by(page, lambda: page.locator("#classes label").nth(2).click())
    assert samples.nth(4).get_attribute("aria-label") == "Image 5, class 2"
    assert "--label 2 " in page.locator("#command").inner_text()
    assert "--seed 7 " in page.locator("#command").inner_text()
    samples.nth(3).click()
    assert "Image 4, class 2: step 4 of 4, noise level 0" in position.inner_text()
    assert red_values(page, "#x_t") == red_values(page, "#x0_hat")
    page.locator("#frame").focus()
    page.keyboard.press("Home")
    assert "step 0 of 4" in position.inner_text()
    assert set(red_values(page, "#x0_hat")) == {128}  # no prediction before the first step
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "step 2 of 4" in position.inner_text()
    assert red_values(page, "#x_t") != red_values(page, "#x0_hat")
    assert len(set(red_values(page, "#change"))) > 10
    page.locator("#play").click()
    position.filter(has_text="step 4 of 4").wait_for()
    sample_by(page, lambda: page.locator("#measure").check())
    assert float(page.locator("#history tr").first.locator("td").last.inner_text()) > 0


@pytest.mark.slow
def test_inpainting_changes_only_the_rows_under_the_brush(page):
    mask = page.locator("#mask")
    mask.scroll_into_view_if_needed()
    assert page.locator("#inpaint").is_disabled()
    before = red_values(page, "#samples li:nth-child(1) canvas")
    box = mask.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.5, steps=30)
    page.mouse.up()
    masked = int(page.locator("#masked").inner_text().split()[0])
    assert 30 < masked < 100
    sample_by(page, lambda: page.locator("#inpaint").click())
    after = red_values(page, "#samples li:nth-child(1) canvas")
    changed = [row for row in range(12) if before[16 * row : 16 * row + 16] != after[16 * row : 16 * row + 16]]
    assert changed
    assert set(changed) <= {4, 5, 6, 7}
    assert "repaint" in page.locator("#code").inner_text()
    assert page.locator("#as-command").is_hidden()


@pytest.mark.slow
def test_every_control_works_from_the_keyboard(page):
    """Tab reaches each control, which has a name and shows that it has the focus."""
    controls = []
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => { const e = document.activeElement, box = e.closest('label') ?? e;
                const name = e.labels?.[0]?.innerText || e.getAttribute('aria-label') || e.innerText || '';
                const outlined = [e, box].some(one => getComputedStyle(one).outlineStyle !== 'none');
                return [e.id || e.value, name.trim(), outlined]; }"""
        )
        if focused in controls or page.evaluate("() => document.activeElement === document.body"):
            break  # it starts again
        controls.append(focused)
        assert focused[1], focused
        assert focused[2], focused
    reached = {name for name, _, _ in controls}
    assert {"guidance", "sampler", "steps", "n", "seed", "sample", "new-seed", "auto", "measure"} <= reached
    assert {"frame", "play", "to_seed", "interpolate", "mask", "brush", "half", "clear", "command", "code"} <= reached
    page.locator("#mask").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    assert "Row 6, column 9: masked" in page.locator("#masked").inner_text()
    count = int(page.locator("#masked").inner_text().split()[0])
    page.keyboard.press("Backspace")
    assert count > 0
    assert page.locator("#masked").inner_text().startswith("0 of 192")
    page.locator("#to_seed").focus()
    page.keyboard.press("Tab")
    sample_by(page, lambda: page.keyboard.press("Enter"))
    assert "slerp" in page.locator("#code").inner_text()


@pytest.mark.slow
def test_a_narrow_window_does_not_scroll_sideways(page):
    size = page.viewport_size
    page.set_viewport_size({"width": 340, "height": 700})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 340
    for button in page.locator("main button:visible").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 340
    page.set_viewport_size(size)


@pytest.mark.slow
def test_the_page_reports_a_server_that_does_not_respond(page):
    page.route("**/sample", lambda route: route.abort())
    page.locator("#sample").click()
    page.locator("#status", has_text="does not respond").wait_for()
    page.unroute("**/sample")
