"""The web page of `simple-diffusion play`.

Three paths are answered: `/` is the page, `/model` what it must know of the model, and a POST to `/draw` gets a line of
JSON for each step as it comes. No file is read after the start, and nobody is answered but pages of this address.
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

from ..errors import SimpleDiffusionError, UsageError
from ..system.files import from_json
from .session import SampleRequest, Session

MOST_BYTES = 2**23
"""Of a request: an image of a million pixels with its mask has fewer."""

WAITING = 4
"""Drawings that may wait for the one at work."""


def page() -> tuple[str, str]:
    """(the page, the policy by which a browser runs and loads nothing but what stands in it)."""
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


def refused(status: int, sentence: str) -> JSONResponse:
    """An error in one sentence."""
    return JSONResponse({"error": sentence}, status)


async def body_of(request: Request) -> Any:
    """The JSON of a request. Raises HTTPException for what is too long, or none."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, as content-type application/json")
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            raise HTTPException(413, f"a request has at most {MOST_BYTES:,} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise HTTPException(400, "this is no JSON") from None


def app_of(studio: Session, port: int) -> Starlette:
    """The application; `port` is where it answers."""
    html, policy = page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    endings = (f":{port}", "") if port == 80 else (f":{port}",)  # browsers leave the usual port out
    hosts = {host + ending for host in ("127.0.0.1", "localhost") for ending in endings}
    at_work = Lock()

    def check_sender(request: Request) -> None:
        """Raise HTTPException for another site's request: by another name for this address, or by a page of its own."""
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
        if request.headers.get("host") not in hosts:
            raise HTTPException(403, f"this page is at http://127.0.0.1:{port}")
        if site not in ("none", "same-origin") or (origin and origin.removeprefix("http://") not in hosts):
            raise HTTPException(403, "requests of other sites are not answered")

    async def index(request: Request) -> Response:
        check_sender(request)
        return HTMLResponse(html, headers=headers)

    async def facts(request: Request) -> Response:
        check_sender(request)
        return JSONResponse(studio.facts(), headers=headers)

    async def draw(request: Request) -> Response:
        check_sender(request)
        try:
            ask = from_json(SampleRequest, await body_of(request))
            studio.check(ask)
        except (TypeError, UsageError) as error:
            raise HTTPException(400, str(error)[:500]) from None
        if at_work.statistics().tasks_waiting >= WAITING:
            raise HTTPException(503, "too many drawings are waiting: try again in a moment")
        return StreamingResponse(lines(ask), media_type="application/x-ndjson", headers=headers)

    async def lines(ask: SampleRequest) -> AsyncIterator[str]:
        """One drawing at a time, each step in a thread of its own, so that other requests are answered meanwhile."""
        async with at_work:
            drawing = studio.draw(ask)
            try:
                while (line := await run_sync(next, drawing, None)) is not None:
                    yield json.dumps(line) + "\n"
            except SimpleDiffusionError as error:
                yield json.dumps({"error": str(error)}) + "\n"
            finally:  # also when the page has gone, or asks for something else
                drawing.close()

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refused(error.status_code, error.detail)

    async def left(request: Request, error: Exception) -> Response:
        return refused(400, "the sender has gone")

    return Starlette(
        routes=[Route("/", index), Route("/model", facts), Route("/draw", draw, methods=["POST"])],
        exception_handlers={HTTPException: failed, ClientDisconnect: left},
    )
