"""Latencies, throughput and goodput of one load."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from glass_core.errors import ConfigurationError
from glass_core.offline.bench.load.answer import Answer, read_answer
from glass_core.offline.bench.load.generator import LoadRun
from glass_core.offline.bench.spread import percentiles

_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Slo:
    """Service level objectives in milliseconds; None = not part of the goal. Goodput counts answers that meet all."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise ConfigurationError(f"slo_{name} must be positive, got {value}")

    def is_met(self, answer: Answer) -> bool:
        """An answer of one token has no time per output token and meets any goal for it."""
        measured = (answer.ttft, answer.tpot or 0.0, answer.end)
        return all(
            limit is None or seconds * _MS <= limit
            for seconds, limit in zip(measured, (self.ttft_ms, self.tpot_ms, self.e2e_ms), strict=True)
        )


def summarize(run: LoadRun, slo: Slo) -> dict[str, Any]:
    """A result row: percentiles in milliseconds, rates per second of wall time, and what the generator cost."""
    answers = [read_answer(exchange) for exchange in run.exchanges]
    good = [answer for answer in answers if answer.error is None]
    num_tokens = sum(answer.num_tokens for answer in good)
    return {
        **_counts(answers, good, run),
        "seconds": run.seconds,
        "prompt_tokens": sum(answer.num_prompt_tokens for answer in good),
        "completion_tokens": num_tokens,
        "requests_per_second": len(good) / run.seconds,
        "tokens_per_second": num_tokens / run.seconds,
        "goodput_requests_per_second": sum(map(slo.is_met, good)) / run.seconds,
        "decode_tokens_per_second": _decode_speed(good),
        "ttft_ms": percentiles([answer.ttft * _MS for answer in good]),
        "itl_ms": percentiles([gap * _MS for answer in good for gap in answer.gaps]),
        "tpot_ms": percentiles([tpot * _MS for tpot in _present(good, lambda answer: answer.tpot)]),
        "e2e_ms": percentiles([answer.end * _MS for answer in good]),
        "effective_sparsity": _mean(_present(good, lambda answer: answer.effective_sparsity)),
        **_own_cost(run, answers, num_tokens),
    }


def _counts(answers: Sequence[Answer], good: Sequence[Answer], run: LoadRun) -> dict[str, Any]:
    """How many answers came; the first error says why others did not."""
    errors = [answer.error for answer in answers if answer.error is not None]
    return {
        "num_completed": len(good),
        "num_failed": len(errors),
        "num_unsent": run.num_unsent,
        "first_error": errors[0] if errors else None,
    }


def _decode_speed(good: Sequence[Answer]) -> float | None:
    """Tokens per second of one stream while it streams: the inverse of the mean time per output token."""
    mean = _mean(_present(good, lambda answer: answer.tpot))
    return 1 / mean if mean else None


def _own_cost(run: LoadRun, answers: Sequence[Answer], num_tokens: int) -> dict[str, Any]:
    """The generator's processor time, and how late it sent what was due."""
    lags = [answer.lag * _MS for answer in answers if answer.error is None]
    return {
        "generator_cpu_share": run.cpu_seconds / run.seconds,
        "generator_cpu_us_per_token": run.cpu_seconds / num_tokens * 1e6 if num_tokens else None,
        "generator_lag_ms": percentiles(lags),
    }


def _present(answers: Sequence[Answer], value: Callable[[Answer], float | None]) -> list[float]:
    return [found for answer in answers if (found := value(answer)) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
