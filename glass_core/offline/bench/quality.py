"""The quality beside the speed: KL(fp32 || side) of next-token predictions on answers of the fp32 model.

The fp32 model answers a few instructions; every side is teacher-forced on these answers: our native runner under each
sparsity's plan (chosen from the prompt alone), and llama.cpp's server, which is asked for the log-probabilities of the
whole vocabulary. The first token of an answer comes from the prompt pass and is not scored.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor

from glass_core.api import SparsityParams
from glass_core.errors import ConfigurationError
from glass_core.offline.bench.llama_cpp import LlamaBench, llama_server_command
from glass_core.offline.bench.load.process import LOOPBACK, ServerProcess, free_port
from glass_core.offline.bench.session import Session
from glass_core.offline.divergence import token_kl
from glass_core.offline.evaluate.answers import Answer, max_steps, sample_answers
from glass_core.offline.evaluate.longform import DenseAnswer, run_dense
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
)


@dataclass(frozen=True, slots=True)
class Score:
    """Mean KL in nats and share of equal best tokens over the scored tokens."""

    kl: float
    agreement: float
    num_tokens: int

    @classmethod
    def of(cls, references: Sequence[Tensor], others: Sequence[Tensor]) -> "Score":
        """Of log-probabilities (n, vocab) per answer."""
        reference, other = torch.cat(list(references)), torch.cat(list(others))
        same = reference.argmax(dim=-1) == other.argmax(dim=-1)
        return cls(float(token_kl(reference, other).mean()), float(same.float().mean()), len(reference))

    def row(self) -> dict[str, float | int]:
        return {"kl": self.kl, "agreement": self.agreement, "num_tokens": self.num_tokens}


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """About `num_tokens` tokens are scored, at every sparsity. The peers' files are served by
    `llama_server`; without peers only our side is scored."""

    sparsities: tuple[float, ...]
    method: str
    num_tokens: int = 128
    seed: int = 0
    llama_server: Path | None = None
    peers: tuple[LlamaBench, ...] = ()

    @property
    def answer_tokens(self) -> int:
        """The longest answer."""
        return max(2, -(-self.num_tokens // len(INSTRUCTIONS)) + 1)


def measure_quality(session: Session, settings: QualitySettings, progress: Progress) -> list[dict[str, Any]]:
    """Rows {"side": "ours" with "sparsity", or the peer's label, "kl", "agreement", "num_tokens"}.

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
            rows.append({"side": "ours", "sparsity": sparsity, **score.row()})
            advance()
        for peer in settings.peers:
            score = Score.of(log_probs, _their_log_probs(settings, peer, answers, session.spec.vocab_size))
            rows.append({"side": peer.label, **score.row()})
            advance()
    return rows


def add_quality(rows: Iterable[dict[str, Any]], quality: Iterable[dict[str, Any]]) -> None:
    """Put `kl_ours` and `kl_theirs` into the rows of a comparison that have a sparsity."""
    ours = {row["sparsity"]: row["kl"] for row in quality if row["side"] == "ours"}
    theirs = {row["side"]: row["kl"] for row in quality if row["side"] != "ours"}
    for row in rows:
        if "sparsity" in row:
            row["kl_ours"] = ours.get(row["sparsity"])
            row["kl_theirs"] = theirs.get(row["peer"].removeprefix("llama-server "))


def _references(
    session: Session, settings: QualitySettings, progress: Progress
) -> tuple[list[Answer], list[DenseAnswer]]:
    """Answers of the checkpoint in float32 that have something to score, and its predictions on them."""
    model_dir = session.config.model_path
    model = TorchModel.load(model_dir, dtype=torch.float32, device="cpu")
    tokens = settings.answer_tokens
    with progress.task("answering", max_steps(len(INSTRUCTIONS), tokens)) as advance:
        answers = sample_answers(
            model,
            load_text_processor(model_dir),
            INSTRUCTIONS,
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
    with NativeScorer(image, max_tokens=longest, num_threads=session.config.num_threads) as scorer:
        for answer in answers:
            plan = session.selector.select(params, scorer.read_prompt(answer.prompt))
            logits = torch.from_numpy(scorer.force(answer.token_ids[:-1], plan))
            found.append(torch.log_softmax(logits, dim=-1))
    return found


def _their_log_probs(
    settings: QualitySettings, peer: LlamaBench, answers: Sequence[Answer], vocab_size: int
) -> list[Tensor]:
    """As `_our_log_probs`, from a llama-server that keeps the prompt's keys and values between the requests."""
    assert settings.llama_server is not None
    longest = max(len(answer.prompt) + len(answer.token_ids) for answer in answers)
    port = free_port()
    command = llama_server_command(
        settings.llama_server, peer.gguf, port, num_threads=peer.num_threads, num_slots=1, num_tokens=longest + 8
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
