"""The downloader against a real local HTTP server: resume, retries, corruption, refusals, and pip's settings."""

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from glass_core.errors import CheckpointError, ModelError
from glass_core.offline.pull.download import DirectDownloadRefusedError, download, http_client, part_file
from glass_core.offline.pull.pip_index import network_settings, parse_settings

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behavior:
    """How the server answers. `break_after` lists, per request, after how many body bytes it hangs up."""

    content: bytes = CONTENT
    supports_range: bool = True
    statuses: list[int] = field(default_factory=list)
    break_after: list[int] = field(default_factory=list)
    wrong_range: bool = False
    ranges_seen: list[str | None] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    behavior: Behavior


class Handler(BaseHTTPRequestHandler):
    """Serves one file with Range support and planned misbehavior."""

    server: Server

    def do_GET(self) -> None:
        behavior = self.server.behavior
        requested = self.headers.get("Range")
        behavior.ranges_seen.append(requested)
        if behavior.statuses:
            self.send_error(behavior.statuses.pop(0))
            return
        start = self._start(requested) if behavior.supports_range else 0
        if start > len(behavior.content):
            self.send_error(416)
            return
        body = behavior.content[start:]
        self._send_head(start, len(body))
        self.wfile.write(body[: behavior.break_after.pop(0)] if behavior.break_after else body)

    def _start(self, requested: str | None) -> int:
        return int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0

    def _send_head(self, start: int, length: int) -> None:
        total = start + length
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if self.server.behavior.wrong_range else start
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def behavior() -> Behavior:
    return Behavior()


@pytest.fixture
def url(behavior: Behavior) -> Iterator[str]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.behavior = behavior
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/model.whl"
        server.shutdown()
        thread.join()


def fetch(url: str, target: Path) -> list[int]:
    """Download and return the progress reports."""
    reports: list[int] = []
    with httpx.Client(trust_env=False) as client:
        download(client, url, target, sha256=SHA256, num_bytes=len(CONTENT), report=reports.append, pause_seconds=0.0)
    return reports


def test_whole_download(url: str, tmp_path: Path, behavior: Behavior) -> None:
    reports = fetch(url, tmp_path / "m.whl")
    assert (tmp_path / "m.whl").read_bytes() == CONTENT
    assert reports == sorted(reports)
    assert reports[-1] == len(CONTENT)
    assert behavior.ranges_seen == [None]
    assert not part_file(tmp_path / "m.whl").exists()


def test_an_interrupted_run_is_resumed_by_the_next(url: str, tmp_path: Path, behavior: Behavior) -> None:
    target = tmp_path / "m.whl"
    part_file(target).write_bytes(CONTENT[:300_001])
    fetch(url, target)
    assert target.read_bytes() == CONTENT
    assert behavior.ranges_seen == ["bytes=300001-"]


def test_connections_that_break_off_are_resumed(url: str, tmp_path: Path, behavior: Behavior) -> None:
    behavior.break_after = [200_000] * 4
    fetch(url, tmp_path / "m.whl")
    assert (tmp_path / "m.whl").read_bytes() == CONTENT
    starts = [int(seen.removeprefix("bytes=").removesuffix("-")) for seen in behavior.ranges_seen if seen]
    assert len(starts) == 4
    assert starts == sorted(set(starts))


def test_a_server_without_ranges_starts_over(url: str, tmp_path: Path, behavior: Behavior) -> None:
    behavior.supports_range = False
    part_file(tmp_path / "m.whl").write_bytes(b"old bytes")
    fetch(url, tmp_path / "m.whl")
    assert (tmp_path / "m.whl").read_bytes() == CONTENT


def test_a_complete_part_needs_no_request(url: str, tmp_path: Path, behavior: Behavior) -> None:
    part_file(tmp_path / "m.whl").write_bytes(CONTENT)
    fetch(url, tmp_path / "m.whl")
    assert behavior.ranges_seen == []


def test_a_part_longer_than_the_file_is_dropped(url: str, tmp_path: Path) -> None:
    part_file(tmp_path / "m.whl").write_bytes(CONTENT + b"junk")
    fetch(url, tmp_path / "m.whl")
    assert (tmp_path / "m.whl").read_bytes() == CONTENT


def test_busy_servers_are_asked_again(url: str, tmp_path: Path, behavior: Behavior) -> None:
    behavior.statuses = [503, 429]
    fetch(url, tmp_path / "m.whl")
    assert len(behavior.ranges_seen) == 3


@pytest.mark.parametrize("resumed", [False, True])
def test_corrupted_content_is_refused_and_deleted(url: str, tmp_path: Path, behavior: Behavior, resumed: bool) -> None:
    behavior.content = CONTENT[:-1] + b"?"
    if resumed:
        part_file(tmp_path / "m.whl").write_bytes(CONTENT[:1000])
    with pytest.raises(CheckpointError, match=f"expected {SHA256}; the file was deleted"):
        fetch(url, tmp_path / "m.whl")
    assert list(tmp_path.iterdir()) == []


def test_more_than_announced_is_cut_off(url: str, tmp_path: Path, behavior: Behavior) -> None:
    behavior.content = CONTENT + bytes(10_000_000)
    with pytest.raises(CheckpointError, match="more than the expected"):
        fetch(url, tmp_path / "m.whl")
    assert list(tmp_path.iterdir()) == []


def test_a_shorter_file_ends_in_an_error_that_keeps_the_part(url: str, tmp_path: Path, behavior: Behavior) -> None:
    behavior.content = CONTENT[:-10]
    with pytest.raises(ModelError, match="run again to resume"):
        fetch(url, tmp_path / "m.whl")
    assert part_file(tmp_path / "m.whl").stat().st_size == len(CONTENT) - 10


def test_the_wrong_range_starts_over(url: str, tmp_path: Path, behavior: Behavior) -> None:
    behavior.wrong_range = True
    part_file(tmp_path / "m.whl").write_bytes(CONTENT[:1000])
    fetch(url, tmp_path / "m.whl")
    assert behavior.ranges_seen == ["bytes=1000-", None]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusals_are_told_apart(url: str, tmp_path: Path, behavior: Behavior, status: int) -> None:
    behavior.statuses = [status]
    with pytest.raises(DirectDownloadRefusedError, match=str(status)):
        fetch(url, tmp_path / "m.whl")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.whl", "ftp://127.0.0.1/x.whl"])
def test_unreachable_servers_are_refusals(url: str, tmp_path: Path) -> None:
    with pytest.raises(DirectDownloadRefusedError, match="could not start"):
        fetch(url, tmp_path / "m.whl")


def test_file_urls_are_copied(tmp_path: Path) -> None:
    (tmp_path / "a wheel.whl").write_bytes(CONTENT)
    assert fetch((tmp_path / "a wheel.whl").as_uri(), tmp_path / "m.whl") == [len(CONTENT)]
    assert (tmp_path / "m.whl").read_bytes() == CONTENT


def test_pip_settings_come_by_priority() -> None:
    listing = "\n".join(
        [
            "global.cert='/global.pem'",
            "global.index-url='https://mirror.invalid/simple'",
            ":env:.cert='/env.pem'",
            "download.proxy='http://proxy:1'",
            "global.proxy='http://other:1'",
            "install.cert='/install.pem'",
        ]
    )
    assert parse_settings(listing) == {"cert": "/env.pem", "proxy": "http://proxy:1"}


def test_pip_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_PROXY", "http://127.0.0.1:9")
    assert network_settings()["proxy"] == "http://127.0.0.1:9"


def test_client_uses_pip_certificate_and_proxy(url: str, behavior: Behavior, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    proxy = url.removesuffix("/model.whl")
    with http_client({"proxy": proxy}) as client:
        assert client.get("http://elsewhere.invalid/model.whl").content == CONTENT
    assert len(behavior.ranges_seen) == 1
    with pytest.raises(FileNotFoundError):
        http_client({"cert": "/nonexistent.pem"})
