"""Download a file of known SHA-256 over HTTPS. Downloads resume; a file gets its name only after the checksum."""

import hashlib
import os
import time
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..errors import DataError
from ..system.terminal import progress_bar

SCHEMES = ("https",)
TIMEOUT = 30.0  # seconds without data
PACE = 1000.0  # minimum of bytes per second after TIMEOUT, against servers that send single bytes
MAX_BYTES = 64 * 2**20  # more than any file here has, against servers that never stop
CHUNK = 2**16


def download(urls: Iterable[str], path: Path, sha256: str) -> None:
    """Download a file to `path` from the first of the mirrors `urls` that works. Raises DataError if none does.

    The data goes to `path.part` first. If a connection breaks, the next attempt resumes at the end of that file.
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
            cause = f"{url} sent another file: its SHA-256 is wrong"
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a redirect to an invalid URL
            cause = f"{url}: {' '.join(str(error).split())}"
    raise DataError(
        f"cannot download {path.name} ({cause}); copy it to {str(path.parent)!r}, "
        "or set --data-root to a folder that contains it"
    )


def _fetch(url: str, part: Path) -> None:
    """Append the rest of `url` to `part`, or write all of it if the server cannot resume."""
    _check_scheme(url)
    start = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310, its scheme is checked above
    try:
        response = build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the part is complete: the checksum decides
            return
        raise
    with response:
        if (response.headers["Content-Range"] or "").startswith(f"bytes {start}-"):
            mode = "ab"
        else:
            mode, start = "wb", 0
        total = start + response.length if response.length is not None else None
        bar = progress_bar(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True)
        with part.open(mode) as file, bar:
            began = time.monotonic()
            while file.tell() < MAX_BYTES and (chunk := response.read1(CHUNK)):
                file.write(chunk)
                bar.update(len(chunk))
                seconds = time.monotonic() - began
                if seconds > TIMEOUT and file.tell() - start < PACE * seconds:
                    raise OSError(f"it sends less than {PACE:g} bytes per second")
            if response.length and file.tell() < MAX_BYTES:
                raise OSError(f"the connection broke {response.length} bytes before the end")


def _check_scheme(url: str) -> None:
    if urlsplit(url).scheme not in SCHEMES:
        raise OSError(f"{url} is not {' or '.join(SCHEMES)}")


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, but not out of `SCHEMES`."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        with fp:
            _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
