"""Whom the load is sent to, and what is sent. Only this machine: nobody else's server is loaded by a benchmark."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx

from glass_core.errors import ConfigurationError
from glass_core.offline.bench.load.exchange import post

_PATH = "/v1/completions"
_OWNER = "glass"  # of our server's models
# Frequent words, one token each for most vocabularies
_WORDS = tuple(
    """
    the of and to in is that for it as was with be by on not he his but at are this have from or had an they which
    one you were all her she there would their we him been has when who will no more if out so up said what about
    than into them can only other time new some could these two may first then do any like my now over such our
    man me even most made after also did many off before must well back through years much where your way down
    should long
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class Target:
    """An OpenAI-compatible server on this machine. `path` is the endpoint's; `is_ours` says that it knows our request
    fields and has a default sparsity of its own."""

    host: str
    port: int
    model: str
    path: str = _PATH
    is_ours: bool = False

    def request(self, prompt: str, *, max_tokens: int, seed: int, extra: Mapping[str, Any]) -> bytes:
        """A streamed completion of exactly `max_tokens` tokens at temperature 0; `extra` fields go into the body."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            **extra,
        }
        return post(self.host, self.port, self.path, json.dumps(body).encode())


def target_of(url: str, model: str | None = None) -> Target:
    """The server behind a base URL such as http://127.0.0.1:8080; its first model unless one is named.

    Raises ConfigurationError when the URL is not plain HTTP on a loopback address or the server does not answer.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http" or not _is_loopback(host):
        raise ConfigurationError(f"--url must be http on a loopback address such as http://127.0.0.1:8000, got {url!r}")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    port = parts.port or 80
    try:
        first = _first_model(f"http://{parts.netloc}{prefix}/v1/models")
    except ConfigurationError:
        if model is None:
            raise
        first = {}
    name = str(first["id"]) if model is None else model
    return Target(
        "127.0.0.1" if host == "localhost" else host, port, name, prefix + _PATH, first.get("owned_by") == _OWNER
    )


def word_prompts(count: int, num_words: int, seed: int) -> list[str]:
    """Prompts of frequent words, about a token each, all different: no server can reuse another's work."""
    random = Random(seed)  # noqa: S311  a benchmark's input, not a secret
    return [" ".join(random.choices(_WORDS, k=num_words)) for _ in range(count)]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _first_model(url: str) -> Mapping[str, Any]:
    """What the server says of it: an object with an id."""
    try:
        with httpx.Client(trust_env=False, timeout=10.0) as client:
            model = client.get(url).raise_for_status().json()["data"][0]
        return {**model, "id": model["id"]}
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(f"{url} does not name a model ({error}); give one with --served-model") from error
