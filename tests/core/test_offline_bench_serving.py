"""`glass bench serving` against a fake server: what is sent, how answers are read, what is counted."""

import asyncio
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_core.errors import ConfigurationError
from glass_core.offline.bench.load.answer import read_answer
from glass_core.offline.bench.load.exchange import Exchange
from glass_core.offline.bench.load.generator import ClosedLoop, LoadRun, OpenLoop, apply_load
from glass_core.offline.bench.load.metrics import Slo, summarize
from glass_core.offline.bench.load.process import ServerProcess, free_port
from glass_core.offline.bench.load.target import target_of, word_prompts
from glass_core.offline.bench.serving import ServingSettings, served_conditions
from glass_core.offline.bench.spread import percentile, percentiles
from glass_core.offline.cli import main
from tests.core.fake_completions_server import PROMPT_TOKENS, fake_server

EVENTS = (
    b'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\n',
    b": a comment\n\n",
    b'data: {"choices": [{"delta": {"content": "\xc3\xa9"}, "finish_reason": null}]}\n\n',
    b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": null}\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}\n\n',
    b"data: [DONE]\n\n",
)


def chunked(events: tuple[bytes, ...]) -> bytes:
    body = b"".join(f"{len(event):X};x=y\r\n".encode() + event + b"\r\n" for event in events)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def received(data: bytes, cuts: list[int]) -> Exchange:
    """The data in pieces cut at these places, the i-th piece one second after the one before."""
    places = [0, *sorted({cut % len(data) for cut in cuts}), len(data)]
    pieces = [data[start:stop] for start, stop in pairwise(places) if stop > start]
    return Exchange(due=10.0, sent=10.5, pieces=[(11.0 + index, piece) for index, piece in enumerate(pieces)])


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_an_answer_is_read_wherever_its_bytes_are_cut(cuts: list[int]) -> None:
    answer = read_answer(received(chunked(EVENTS), cuts))
    assert answer.error is None
    assert (answer.num_prompt_tokens, answer.num_tokens, len(answer.text_times)) == (3, 5, 2)
    assert answer.lag == 0.5
    assert 1.0 <= answer.text_times[0] <= answer.text_times[1] <= answer.end


def test_times_are_those_of_the_pieces_that_complete_an_event() -> None:
    plain = b"HTTP/1.0 200 OK\r\n\r\n"
    pieces = [(11.0, plain + EVENTS[0][:9]), (12.0, EVENTS[0][9:]), (15.0, EVENTS[2] + EVENTS[3] + EVENTS[4])]
    answer = read_answer(Exchange(due=10.0, sent=10.0, pieces=pieces))
    assert answer.text_times == [2.0, 5.0]
    assert (answer.ttft, answer.gaps, answer.tpot, answer.end) == (2.0, [3.0], 3.0 / 4, 5.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", "HTTP 503: busy"),
        (chunked(EVENTS[:1]), "without a finish reason"),
        (chunked(EVENTS[3:]), "no text"),
        (chunked((b'data: {"error": {"message": "died"}}\n\n',)), "died"),
        (chunked((b"data: {]\n\n",)), "JSONDecodeError"),
        (b"", "without a finish reason"),
        (b"garbage\r\n\r\n", "IndexError"),
    ],
)
def test_bad_answers_are_errors(data: bytes, message: str) -> None:
    pieces = [(1.0, data)] if data else []
    error = read_answer(Exchange(due=0.0, sent=0.0, pieces=pieces)).error
    assert error is not None and message in error


def test_summary_counts_goodput_by_all_goals() -> None:
    def answered(first: float, last: float) -> Exchange:
        head = b"HTTP/1.1 200 OK\r\n\r\n"
        return Exchange(0.0, 0.0, [(first, head + EVENTS[0]), (last, EVENTS[2] + EVENTS[3] + EVENTS[4])])

    run = LoadRun(
        (answered(0.1, 0.5), answered(0.3, 0.7), Exchange(0.0, error="refused")),
        seconds=2.0,
        cpu_seconds=0.02,
        num_unsent=1,
    )
    row = summarize(run, Slo(ttft_ms=200, tpot_ms=150))
    assert (row["num_completed"], row["num_failed"], row["num_unsent"]) == (2, 1, 1)
    assert row["first_error"] == "refused"
    assert row["tokens_per_second"] == pytest.approx(5.0)
    assert row["goodput_requests_per_second"] == 0.5
    assert row["ttft_ms"]["p50"] == pytest.approx(100.0) and row["ttft_ms"]["p99"] == pytest.approx(300.0)
    assert row["decode_tokens_per_second"] == pytest.approx(10.0)
    assert row["generator_cpu_share"] == pytest.approx(0.01)
    assert row["generator_cpu_us_per_token"] == pytest.approx(2000.0)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ({"engine": {"isa": "avx2", "num_threads": 3, "notes": []}}, {"isa": "avx2", "threads": 3}),
        ({"engine": None}, {}),
        (["not ours"], {}),
    ],
)
def test_a_result_says_what_our_server_says_of_its_engine(version: object, expected: dict[str, object]) -> None:
    with fake_server() as server:
        assert served_conditions(target_of(server.url)) == {}
        server.version = version
        assert served_conditions(target_of(server.url)) == {"server": version, **expected}


def test_percentiles_are_measured_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (1, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([3.0], 99) == 3.0
    assert percentiles([]) == {"p50": None, "p90": None, "p99": None, "mean": None}
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_result_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "serving.json"
    with fake_server() as server:
        flags = ["--concurrency", "2", "--rates", "500", "--sparsities", "0,0.5", "--method", "griffin"]
        counts = ["--num-requests", "3", "--num-tokens", "4", "--prompt-words", "5", "--slo-ttft-ms", "60000"]
        assert main(["bench", "serving", "--url", server.url, *flags, *counts, "--json", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["conditions"]["model"] == "fake"
    assert result["conditions"]["url"] == server.url
    rows = result["rows"]
    assert [row["load"] for row in rows] == ["closed", "closed", "open", "open"]
    assert [row["sparsity"] for row in rows] == [0.0, 0.5, 0.0, 0.5]
    for row in rows:
        assert (row["num_completed"], row["num_failed"], row["num_unsent"]) == (3, 0, 0)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (3 * PROMPT_TOKENS, 12)
        assert row["goodput_requests_per_second"] == pytest.approx(row["requests_per_second"])
        assert row["effective_sparsity"] == (0.51 if row["sparsity"] else None)
    assert "the load generator used" in capsys.readouterr().out
    timed = server.bodies[4:]  # two requests of warm-up per sparsity
    assert len({body["prompt"] for body in timed}) == len(timed) == 12
    assert all(body["ignore_eos"] and body["stream"] and body["temperature"] == 0 for body in timed)
    assert ["glass_sparsity" in body for body in timed] == ([False] * 3 + [True] * 3) * 2


@pytest.mark.parametrize("named", [[], ["--served-model", "fake"]])
def test_our_server_is_asked_for_dense_answers_whatever_its_default(named: list[str]) -> None:
    with fake_server(owner="glass") as server:
        flags = ["--concurrency", "1", "--num-requests", "1", "--num-tokens", "2", "--sparsities", "0,0.5"]
        assert main(["bench", "serving", "--url", server.url, *flags, *named]) == 0
    warm_up = [0.0, 0.0, 0.5, 0.5]
    assert [body["glass_sparsity"] for body in server.bodies] == [*warm_up, 0.0, 0.5]


def test_a_server_that_refuses_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(status=429) as server:
        assert main(["bench", "serving", "--url", server.url, "--concurrency", "1", "--num-requests", "1"]) == 1
    assert "HTTP 429" in capsys.readouterr().err


def test_the_time_limit_cuts_off_what_runs() -> None:
    with fake_server(seconds_per_token=0.05) as server:
        target = target_of(server.url)
        requests = [target.request("a", max_tokens=100, seed=0, extra={})] * 3
        # an open loop sends all three at once, if the machine lets it within the limit
        for load, limit, unsent in ((ClosedLoop(1), 0.2, 2), (OpenLoop(1000.0), 2.0, 0)):
            run = asyncio.run(apply_load(target.host, target.port, requests, load, max_seconds=limit, seed=0))
            assert [exchange.error for exchange in run.exchanges] == ["unfinished at the time limit"] * (3 - unsent)
            assert run.num_unsent == unsent


def test_a_server_that_is_gone_is_an_error_per_request() -> None:
    run = asyncio.run(apply_load("127.0.0.1", free_port(), [b"x"], ClosedLoop(1), max_seconds=5, seed=0))
    assert [str(exchange.error).startswith("cannot connect") for exchange in run.exchanges] == [True]


@pytest.mark.parametrize("url", ["http://example.com", "https://127.0.0.1:1", "ftp://localhost", "127.0.0.1:8000", ""])
def test_only_loopback_is_loaded(url: str) -> None:
    with pytest.raises(ConfigurationError, match="--url must be http on a loopback address"):
        target_of(url)


def test_targets() -> None:
    with fake_server() as server:
        assert target_of(server.url + "/v1/").path == "/v1/completions"
        assert target_of(server.url.replace("127.0.0.1", "localhost"), "mine").model == "mine"
        with pytest.raises(ConfigurationError, match="does not name a model"):
            target_of(server.url + "/elsewhere")


def test_prompts_differ_and_repeat_with_their_seed() -> None:
    prompts = word_prompts(20, 6, seed=1)
    assert len(set(prompts)) == 20 and all(len(prompt.split()) == 6 for prompt in prompts)
    assert word_prompts(20, 6, seed=1) == prompts != word_prompts(20, 6, seed=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either MODEL or --url"),
        (["--url", "http://127.0.0.1:1", "--concurrency", "", "--rates", ""], "no load"),
        (["--url", "http://127.0.0.1:1", "--rates", "-1"], "a rate must lie in"),
        (["--url", "http://127.0.0.1:1", "--concurrency", "5000"], "concurrency must lie in"),
        (["--url", "http://127.0.0.1:1", "--num-requests", "0"], "num_requests must be at least 1"),
        (["--url", "http://127.0.0.1:1", "--max-seconds", "0"], "max_seconds must lie in"),
        (["--url", "http://127.0.0.1:1", "--slo-ttft-ms", "0"], "slo_ttft_ms must be positive"),
    ],
)
def test_bad_flags_name_the_field(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serving", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_requests_follow_the_load() -> None:
    chosen = ServingSettings(loads=(ClosedLoop(16), OpenLoop(2.0)))
    assert [chosen.requests_of(load) for load in chosen.loads] == [64, 32]
    assert chosen.max_concurrency == 16


SERVER = """
import http.server, sys
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def test_a_server_process_is_ready_on_entry_and_gone_after(tmp_path: Path) -> None:
    port = free_port()
    with ServerProcess([sys.executable, "-c", SERVER, str(port)], port, "/") as process:
        assert process.start_seconds > 0
        assert (process.peak_rss_bytes() or 1) > 0
    run = asyncio.run(apply_load("127.0.0.1", port, [b"x"], ClosedLoop(1), max_seconds=5, seed=0))
    assert run.exchanges[0].error is not None


def test_a_server_that_does_not_start_shows_its_log() -> None:
    with (
        pytest.raises(ConfigurationError, match="exited with 3: oh no"),
        ServerProcess([sys.executable, "-c", "print('oh no'); raise SystemExit(3)"], free_port(), "/ready"),
    ):
        pass
    with pytest.raises(ConfigurationError, match="cannot run /nowhere"), ServerProcess(["/nowhere"], 1, "/ready"):
        pass
