"""The quality beside the speed: KL(fp32 || side) of next-token predictions on answers of the fp32 model.

The fp32 model answers a few instructions; every side is teacher-forced on these answers: our native runner under each
sparsity's plan (chosen from the prompt alone), and llama.cpp's server, which is asked for the log-probabilities of the
whole vocabulary. The first token of an answer comes from the prompt pass and is not scored.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from glass_core.api import SparsityParams
from glass_core.errors import ConfigurationError
from glass_core.offline.bench.llama_cpp import LlamaBench, llama_server_command
from glass_core.offline.bench.load.process import LOOPBACK, ServerProcess, free_port
from glass_core.offline.bench.session import Session
from glass_core.offline.evaluate.answers import Answer, encode_instruction, max_steps, sample_answers
from glass_core.offline.evaluate.bootstrap import Bootstrap, Interval
from glass_core.offline.evaluate.longform import DenseAnswer, run_dense
from glass_core.offline.evaluate.scores import Divergence
from glass_core.offline.progress import Progress
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.scoring import NativeScorer
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.text import load_text_processor

INSTRUCTIONS = (
    "Explain why the sky is blue.",
    "Give three tips for staying healthy.",
    "What is the capital of France, and what is it known for?",
    "Describe how a bill becomes a law.",
    "Write a short story about a lost key.",
    "How does a refrigerator work?",
    "Compare cats and dogs as pets.",
    "Write a Python function that reverses a list.",
)


@dataclass(frozen=True, slots=True)
class Score:
    """Mean KL in nats and share of equal best tokens over the scored tokens, with bootstrap intervals over answers."""

    kl: float
    agreement: float
    num_tokens: int
    kl_interval: Interval | None
    agreement_interval: Interval | None

    @classmethod
    def of(cls, references: Sequence[Tensor], others: Sequence[Tensor], *, seed: int = 0) -> "Score":
        """Of log-probabilities (n, vocab) per answer."""
        pairs = zip(references, others, strict=True)
        return cls.over([Divergence.of(mine, theirs) for mine, theirs in pairs], seed=seed)

    @classmethod
    def over(cls, found: Sequence[Divergence], *, seed: int = 0) -> "Score":
        """Of one divergence per answer."""
        kl, same = [one.kl for one in found], [one.num_agreeing for one in found]
        num_tokens = [len(one.agrees) for one in found]
        bootstrap, total = Bootstrap.over(len(found), seed), sum(num_tokens)
        intervals = bootstrap.interval(kl, num_tokens), bootstrap.interval(same, num_tokens)
        return cls(sum(kl) / total, sum(same) / total, total, *intervals)


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """About `num_tokens` tokens are scored, at every sparsity. The peers' files are served by
    `llama_server`; without peers only our side is scored."""

    sparsities: tuple[float, ...]
    method: str
    num_tokens: int = 160
    seed: int = 0
    llama_server: Path | None = None
    peers: tuple[LlamaBench, ...] = ()

    @property
    def answer_tokens(self) -> int:
        """The longest answer."""
        return max(2, -(-self.num_tokens // len(INSTRUCTIONS)) + 1)


def measure_quality(session: Session, settings: QualitySettings, progress: Progress) -> list[dict[str, Any]]:
    """Rows {"side": "ours" with "sparsity", or the peer's label, and a Score's fields}.

    Raises ConfigurationError for a runner other than native: what the others compute is not this table's question.
    """
    if session.image is None:
        raise ConfigurationError("--quality measures the native runner; use --runner native")
    answers, references = _references(session, settings, progress)
    log_probs = [reference.log_probs for reference in references]
    rows = []
    with progress.task("scoring", len(settings.sparsities) + len(settings.peers)) as advance:
        for sparsity in settings.sparsities:
            score = Score.of(log_probs, _our_log_probs(session, session.image, settings, answers, sparsity))
            rows.append({"side": "ours", "sparsity": sparsity, **asdict(score)})
            advance()
        for peer in settings.peers:
            assert settings.llama_server is not None
            theirs = peer_log_probs(settings.llama_server, peer, answers, session.spec.vocab_size)
            score = Score.of(log_probs, theirs)
            rows.append({"side": peer.label, **asdict(score)})
            advance()
    return rows


def add_quality(rows: Iterable[dict[str, Any]], quality: Iterable[dict[str, Any]]) -> None:
    """Put KL and agreement of both sides into the rows of a comparison that have a sparsity: `kl_ours`, `kl_theirs`,
    `agreement_ours`, `agreement_theirs`, None where a side was not measured."""
    measured = list(quality)
    ours = {row["sparsity"]: row for row in measured if row["side"] == "ours"}
    theirs = {row["side"]: row for row in measured if row["side"] != "ours"}
    if 0.0 in ours:
        theirs["own dense"] = ours[0.0]
    for row in rows:
        if "sparsity" in row:
            peer = row["peer"].removeprefix("llama-server ")
            for name in ("kl", "agreement"):
                row[f"{name}_ours"] = ours.get(row["sparsity"], {}).get(name)
                row[f"{name}_theirs"] = theirs.get(peer, {}).get(name)


def print_quality(quality: Sequence[Mapping[str, Any]], console: Console) -> None:
    """One line per side and sparsity."""
    table = Table("side", title=f"quality · {quality[0]['num_tokens']} answer tokens, against float32")
    for name in ("KL", "95 % interval", "top-1", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in quality:
        side = f"ours, {row['sparsity']:g}" if row["side"] == "ours" else row["side"]
        table.add_row(side, *_with_interval(row, "kl", "{:.4f}"), *_with_interval(row, "agreement", "{:.1%}"))
    console.print(table)


def _with_interval(row: Mapping[str, Any], name: str, form: str) -> tuple[str, str]:
    interval = row[f"{name}_interval"]
    return form.format(row[name]), "" if interval is None else " - ".join(map(form.format, interval))


def _references(
    session: Session, settings: QualitySettings, progress: Progress
) -> tuple[list[Answer], list[DenseAnswer]]:
    """Answers of the checkpoint in float32 that have something to score, and its predictions on them."""
    model_dir = session.config.model_path
    model = TorchModel.load(model_dir, dtype=torch.float32, device="cpu")
    tokens, text = settings.answer_tokens, load_text_processor(model_dir)
    with progress.task("answering", max_steps(len(INSTRUCTIONS), tokens)) as advance:
        answers = sample_answers(
            model,
            text,
            [encode_instruction(text, instruction) for instruction in INSTRUCTIONS],
            max_new_tokens=tokens,
            seed=settings.seed,
            on_step=advance,
        )
    scored = [answer for answer in answers if len(answer.token_ids) > 1]
    return scored, [run_dense(model, answer) for answer in scored]


def _our_log_probs(
    session: Session, image: ImageHeader, settings: QualitySettings, answers: Sequence[Answer], sparsity: float
) -> list[Tensor]:
    """Log-probabilities (n, vocab) per answer, under the prompt's own plan."""
    longest = max(len(answer.prompt) + len(answer.token_ids) for answer in answers)
    params = SparsityParams(sparsity=sparsity, method=settings.method, seed=settings.seed)
    found = []
    with _scorer(session, image, longest) as scorer:
        for answer in answers:
            plan = session.selector.select(params, scorer.read_prompt(answer.prompt))
            logits = torch.from_numpy(scorer.force(answer.token_ids[:-1], plan))
            found.append(torch.log_softmax(logits, dim=-1))
    return found


def _scorer(session: Session, image: ImageHeader, max_tokens: int) -> NativeScorer:
    config = session.config
    cache = config.cache.kv_cache_dtype
    return NativeScorer(image, max_tokens=max_tokens, num_threads=config.num_threads, kv_cache_dtype=cache)


def peer_log_probs(llama_server: Path, peer: LlamaBench, answers: Sequence[Answer], vocab_size: int) -> list[Tensor]:
    """As `_our_log_probs`, from a llama-server that keeps the prompt's keys and values between the requests."""
    longest = max(len(answer.prompt) + len(answer.token_ids) for answer in answers)
    port = free_port()
    command = llama_server_command(
        llama_server, peer.gguf, port, num_threads=peer.num_threads, num_slots=1, num_tokens=longest + 8
    )
    with ServerProcess(command, port, "/health"), httpx.Client(trust_env=False, timeout=120.0) as client:
        url = f"http://{LOOPBACK}:{port}/completion"
        return [_score_answer(answer, lambda ids: _next_log_probs(client, url, ids, vocab_size)) for answer in answers]


def _score_answer(answer: Answer, predict: Callable[[list[int]], Tensor]) -> Tensor:
    """Predictions (n, vocab) of every answer token but the first."""
    ids = [*answer.prompt, *answer.token_ids]
    ends = range(len(answer.prompt) + 1, len(ids))
    return torch.stack([predict(ids[:end]) for end in ends])


def _next_log_probs(client: httpx.Client, url: str, token_ids: list[int], vocab_size: int) -> Tensor:
    """llama-server's log-probabilities of all next tokens, (vocab,)."""
    body = {"prompt": token_ids, "n_predict": 1, "n_probs": vocab_size, "temperature": 1.0, "cache_prompt": True}
    try:
        answer = client.post(url, json=body).raise_for_status().json()
        entries = answer["completion_probabilities"][0]["top_logprobs"]
        ids, values = [entry["id"] for entry in entries], [entry["logprob"] for entry in entries]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(f"llama-server gave no log-probabilities: {error}") from error
    if len(ids) != vocab_size or sorted(ids) != list(range(vocab_size)):
        raise ConfigurationError(f"llama-server gave {len(ids)} log-probabilities, the vocabulary has {vocab_size}")
    log_probs = torch.empty(vocab_size)
    log_probs[torch.tensor(ids)] = torch.tensor(values, dtype=torch.float32)
    return log_probs
