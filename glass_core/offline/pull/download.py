"""Resumable, verified download of one file.

Bytes go to `<target>.part`, which survives an interruption; the next attempt or the next run asks for the rest with a
Range request. Only a file whose sha256 is right gets its final name, by an atomic rename.
"""

import hashlib
import re
import shutil
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx

from glass_core.errors import CheckpointError, ModelError

MAX_ATTEMPTS = 5
TIMEOUT_SECONDS = 60.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
_TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)

Report = Callable[[int], None]  # called with the number of bytes on disk


class DirectDownloadRefusedError(ModelError):
    """Not one byte came: credentials, a proxy or a certificate that only pip knows, or no network at all."""


def http_client(settings: Mapping[str, str]) -> httpx.Client:
    """A client with the system's, httpx's and pip's certificates and pip's proxy (else the environment's)."""
    context = httpx.create_ssl_context()
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if cert := settings.get("cert"):
        context.load_verify_locations(cert)
    return httpx.Client(
        verify=context, proxy=settings.get("proxy"), follow_redirects=True, timeout=httpx.Timeout(TIMEOUT_SECONDS)
    )


def download(
    client: httpx.Client, url: str, target: Path, *, sha256: str, num_bytes: int, report: Report, pause_seconds: float
) -> None:
    """Fetch `url` (http, https or file) into `target` (its folder exists), resuming what an earlier run left.

    `pause_seconds` grows with every attempt in a row that brought nothing. Raises DirectDownloadRefusedError before
    the first byte, ModelError when the transfer keeps breaking off, CheckpointError when size or sha256 are wrong.
    """
    part = part_file(target)
    if urlsplit(url).scheme == "file":
        shutil.copyfile(url2pathname(urlsplit(url).path), part)
        report(part.stat().st_size)
    elif _size(part) != num_bytes:
        _stream_with_retries(client, url, part, num_bytes, report, pause_seconds)
    verify_sha256(part, sha256)
    part.replace(target)


def part_file(target: Path) -> Path:
    """Where the unfinished download lies."""
    return target.with_name(target.name + ".part")


def verify_sha256(path: Path, expected: str) -> None:
    """Delete the file and raise CheckpointError when its sha256 is another."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.unlink()
        raise CheckpointError(f"{path.name}: sha256 is {found}, expected {expected}; the file was deleted, pull again")


def _stream_with_retries(
    client: httpx.Client, url: str, part: Path, num_bytes: int, report: Report, pause_seconds: float
) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            _stream(client, url, part, num_bytes, report)
        except httpx.TransportError as error:
            failures = 0 if _size(part) > before else failures + 1
            _give_up_if(failures >= MAX_ATTEMPTS or isinstance(error, httpx.UnsupportedProtocol), part, error)
            time.sleep(pause_seconds * failures)
        else:
            return


def _give_up_if(hopeless: bool, part: Path, error: Exception) -> None:
    if hopeless and _size(part) == 0:
        raise DirectDownloadRefusedError(f"the download could not start ({error})") from error
    if hopeless:
        raise ModelError(f"the download broke off after {_size(part)} bytes ({error}); run again to resume") from error


def _stream(client: httpx.Client, url: str, part: Path, num_bytes: int, report: Report) -> None:
    """One request: the whole file, or the rest of it when the server agrees."""
    start = _size(part)
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with client.stream("GET", url, headers=headers) as response:
        _check_status(response)
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT  # a plain 200 is the whole file again
        if _has_wrong_range(response, start):
            part.unlink(missing_ok=True)
            raise httpx.ReadError("the server cannot continue where the part on disk ends; starting over")
        with part.open("ab" if resumed else "wb") as file:
            written = start if resumed else 0
            for chunk in response.iter_raw():  # as they come: a larger buffer would be lost on a break
                written += len(chunk)
                if written > num_bytes:
                    break
                file.write(chunk)
                report(written)
    _check_size(part, written, num_bytes)


def _check_status(response: httpx.Response) -> None:
    if response.status_code in _TRANSIENT_STATUSES:
        raise httpx.ReadError(f"HTTP {response.status_code}")
    if response.is_error and response.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise DirectDownloadRefusedError(f"the server answered HTTP {response.status_code}")


def _has_wrong_range(response: httpx.Response, start: int) -> bool:
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        return match is None or int(match[1]) != start
    return response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE


def _check_size(part: Path, written: int, num_bytes: int) -> None:
    if written > num_bytes:
        part.unlink()
        raise CheckpointError(f"{part.name}: more than the expected {num_bytes} bytes; the file was deleted")
    if written < num_bytes:  # a server or proxy that closed early without saying so
        raise httpx.ReadError(f"{written} of {num_bytes} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
