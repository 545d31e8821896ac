"""A small HTTP server on loopback that streams completions as an OpenAI-compatible one, at a pace of its choosing."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROMPT_TOKENS = 7


@dataclass
class FakeServer:
    """Its address and the bodies it was sent. `status` other than 200 refuses every completion. `version` is what
    `/version` answers; None = it has no such path. `owner` is whose its models are."""

    port: int = 0
    status: int = 200
    seconds_per_token: float = 0.0
    version: object = None
    owner: str = "somebody"
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def fake_server(*, status: int = 200, seconds_per_token: float = 0.0, owner: str = "somebody") -> Iterator[FakeServer]:
    fake = FakeServer(status=status, seconds_per_token=seconds_per_token, owner=owner)

    class Bound(Handler):
        server_state = fake

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Models, readiness, streamed completions."""

    server_state: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        models = {"data": [{"id": "fake", "owned_by": self.server_state.owner}]}
        known: dict[str, object] = {"/v1/models": models, "/ready": {}, "/health": {}}
        if self.server_state.version is not None:
            known["/version"] = self.server_state.version
        self.send_json(200 if self.path in known else 404, known.get(self.path, {}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server_state.bodies.append(body)
        if self.server_state.status != 200:
            self.send_json(self.server_state.status, {"error": {"message": "no"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks(body):
            data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
            self._chunk(data)
            time.sleep(self.server_state.seconds_per_token)
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def send_json(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def chunks(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One chunk a token, a finish, and the usage."""
    for index in range(body["max_tokens"]):
        yield {"choices": [{"index": 0, "text": f" {index}", "finish_reason": None}]}
    report = {"glass": {"sparsity": 0.51}} if "glass_sparsity" in body else {}
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": body["max_tokens"]}
    yield {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
    yield {"choices": [], "usage": usage, **report}
