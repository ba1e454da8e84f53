"""The web server of `simple-diffusion play`.

It serves three paths: `/` is the page, `/model` the facts about the model, and a POST to `/sample` streams one line of
JSON per step. It reads no file after the start, and answers only requests from its own page.
"""

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

from anyio import Lock
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..errors import SimpleDiffusionError, UsageError, is_out_of_memory
from ..system.files import from_json, to_json
from .request import SampleRequest
from .session import Session

MAX_BYTES = 2**23
"""Of the body of a request: an image of a million pixels with its mask is smaller."""

MAX_WAITING = 4
"""Requests that may wait for the one in progress."""


def load_page() -> tuple[str, str]:
    """(HTML, content security policy that allows nothing but the page's own script and style)."""
    html = files("simple_diffusion.play").joinpath("page.html").read_text("utf-8")
    digests = {}
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests[tag] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digests['script']}'; style-src 'sha256-{digests['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


async def read_body(request: Request) -> Any:
    """The JSON of a request. Raises HTTPException for another type, a body that is too long, or invalid JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the content type must be application/json")
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f"the body of a request must be at most {MAX_BYTES:,} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body of the request is not valid JSON") from None


async def stream(session: Session, request: SampleRequest, lock: Lock) -> AsyncIterator[str]:
    """Lines of JSON. One request is sampled at a time; each step runs in a thread, so the server stays responsive."""
    async with lock:
        messages = session.sample(request)
        try:
            while (message := await run_sync(next, messages, None)) is not None:
                yield to_json(message) + "\n"
        except SimpleDiffusionError as error:
            yield to_json({"error": str(error)}) + "\n"
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            yield to_json({"error": "there is not enough memory: ask for fewer images"}) + "\n"
        finally:  # also when the page is closed or sends another request
            messages.close()


def create_app(session: Session, port: int) -> Starlette:
    """The web application for requests to this port of 127.0.0.1."""
    html, policy = load_page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    suffixes = (f":{port}", "") if port == 80 else (f":{port}",)  # browsers leave out the default port
    hosts = {host + suffix for host in ("127.0.0.1", "localhost") for suffix in suffixes}
    lock = Lock()

    def check_sender(request: Request) -> None:
        """Raise HTTPException for requests from other sites, and for other names of this address (DNS rebinding)."""
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
        if request.headers.get("host") not in hosts:
            raise HTTPException(403, f"this page is at http://127.0.0.1:{port}")
        if site not in ("none", "same-origin") or (origin and origin.removeprefix("http://") not in hosts):
            raise HTTPException(403, "requests from other sites are not allowed")

    async def page(request: Request) -> Response:
        check_sender(request)
        return HTMLResponse(html, headers=headers)

    async def model(request: Request) -> Response:
        check_sender(request)
        return JSONResponse(session.facts(), headers=headers)

    async def sample(request: Request) -> Response:
        check_sender(request)
        try:
            wanted = from_json(SampleRequest, await read_body(request))
            session.check(wanted)
        except (TypeError, UsageError) as error:
            raise HTTPException(400, str(error)[:500]) from None
        if lock.statistics().tasks_waiting >= MAX_WAITING:
            raise HTTPException(503, "too many requests are waiting: try again in a moment")
        return StreamingResponse(stream(session, wanted, lock), media_type="application/x-ndjson", headers=headers)

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code)

    async def disconnected(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the connection was closed"}, 400)

    return Starlette(
        routes=[Route("/", page), Route("/model", model), Route("/sample", sample, methods=["POST"])],
        exception_handlers={HTTPException: refuse, ClientDisconnect: disconnected},
    )
