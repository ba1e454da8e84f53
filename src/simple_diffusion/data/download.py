"""Fetch a file of known content: HTTPS only, resumable, and never under its final name before its SHA-256 is right."""

import hashlib
import os
import time
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from ..errors import DataError

SCHEMES = ("https",)
TIMEOUT = 30.0  # seconds without a byte
PACE = 1000.0  # fewest bytes a second after TIMEOUT: one byte now and then would never end
MAX_BYTES = 64 * 2**20  # more than any file we fetch: a server that never stops cannot fill the disk
CHUNK = 2**16


def download(urls: Iterable[str], path: Path, sha256: str) -> None:
    """Put the file that the mirrors `urls` hold at `path`. Raises DataError when no mirror gives it.

    What arrives goes to `path.part`; a connection that breaks leaves it there, and the next try goes on from its end.
    """
    part = path.with_name(path.name + ".part")
    cause = "no mirror is known"
    for url in urls:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(url, part)
            if hashlib.sha256(part.read_bytes()).hexdigest() == sha256:
                os.replace(part, path)
                return
            part.unlink()
            cause = f"{url} sent something else: the SHA-256 differs"
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a redirect to what is not a URL
            cause = f"{url}: {' '.join(str(error).split())}"
    raise DataError(
        f"cannot download {path.name} ({cause}); put it in {str(path.parent)!r} yourself, "
        "or set --data-root to the folder that has it"
    )


def _fetch(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`, or write it anew where the server cannot resume."""
    _check_scheme(url)
    start = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310, it is checked above
    try:
        response = build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing lies beyond our end: the checksum decides
            return
        raise
    with response:
        if (response.headers["Content-Range"] or "").startswith(f"bytes {start}-"):
            mode = "ab"
        else:
            mode, start = "wb", 0
        total = start + response.length if response.length is not None else None
        bar = tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None)
        with part.open(mode) as file, bar:
            began = time.monotonic()
            while file.tell() < MAX_BYTES and (chunk := response.read1(CHUNK)):
                file.write(chunk)
                bar.update(len(chunk))
                seconds = time.monotonic() - began
                if seconds > TIMEOUT and file.tell() - start < PACE * seconds:
                    raise OSError(f"it sends less than {PACE:g} bytes a second")
            if response.length and file.tell() < MAX_BYTES:
                raise OSError(f"the connection broke with {response.length} bytes to go")


def _check_scheme(url: str) -> None:
    if urlsplit(url).scheme not in SCHEMES:
        raise OSError(f"{url} is not {' or '.join(SCHEMES)}")


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, but not out of `SCHEMES`."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        with fp:
            _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
