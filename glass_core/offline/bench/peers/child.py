"""A peer in a process of its own: loads a Hugging Face folder in bfloat16 and times what it is told to.

Run by its path with the peer's interpreter, in which `glass_core` need not be installed: it imports nothing of ours.
One JSON object a line, requests on standard input, answers on standard output, where nothing else may be printed. The
first answer says that the model is loaded. Requests are {"task": "prefill", "prompt"}, {"task": "decode", "prompt",
"num_tokens"} and {"task": "streams", "prompts", "num_tokens", "concurrency"}, prompts as token ids; answers have
"seconds", or "error".
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

Prompt = Sequence[int]


class Side(Protocol):
    """What a peer can be asked. Every answer is greedy and exactly so long as asked for; times are in seconds."""

    def prefill(self, prompt: Prompt) -> float:
        """From the prompt to its first token."""

    def decode(self, prompt: Prompt, num_tokens: int) -> float:
        """From the first token to `num_tokens` more, batch 1."""

    def streams(self, prompts: Sequence[Prompt], num_tokens: int, concurrency: int) -> float:
        """All prompts, `concurrency` at a time, `num_tokens` each."""

    def versions(self) -> dict[str, str]:
        """Of what computes."""


class TransformersSide:
    """transformers, eager, without its generation loop: the model's own forward with its cache, and an argmax."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._transformers: Any = importlib.import_module("transformers")
        self._torch.set_num_threads(arguments.threads)
        self._model = self._transformers.AutoModelForCausalLM.from_pretrained(
            arguments.model, dtype=self._torch.bfloat16, local_files_only=True
        ).eval()

    def versions(self) -> dict[str, str]:
        return {"transformers": self._transformers.__version__, "torch": self._torch.__version__}

    def prefill(self, prompt: Prompt) -> float:
        start = time.perf_counter()
        self._first([prompt])
        return time.perf_counter() - start

    def decode(self, prompt: Prompt, num_tokens: int) -> float:
        state = self._first([prompt])
        start = time.perf_counter()
        self._continue(state, num_tokens)
        return time.perf_counter() - start

    def streams(self, prompts: Sequence[Prompt], num_tokens: int, concurrency: int) -> float:
        """Batches of `concurrency` prompts, one after the other: it cannot replace one that is done."""
        start = time.perf_counter()
        for first in range(0, len(prompts), concurrency):
            self._continue(self._first(prompts[first : first + concurrency]), num_tokens - 1)
        return time.perf_counter() - start

    def _first(self, prompts: Sequence[Prompt]) -> tuple[Any, Any, Any]:
        """First tokens (batch, 1), mask (batch, length) and cache of left-padded prompts."""
        torch, longest = self._torch, max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        return self._step(ids, mask, positions, None)

    def _continue(self, state: tuple[Any, Any, Any], num_tokens: int) -> None:
        tokens, mask, cache = state
        for _ in range(num_tokens):
            mask = self._torch.cat([mask, self._torch.ones_like(tokens)], dim=-1)
            tokens, mask, cache = self._step(tokens, mask, mask.sum(dim=-1, keepdim=True) - 1, cache)

    def _step(self, ids: Any, mask: Any, positions: Any, cache: Any) -> tuple[Any, Any, Any]:
        padded = None if bool(mask.all()) else mask  # without padding its attention needs no mask
        with self._torch.inference_mode():
            out = self._model(
                input_ids=ids,
                attention_mask=padded,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1].argmax(dim=-1, keepdim=True), mask, out.past_key_values


class VllmSide:
    """vLLM's engine in this process, without its HTTP server and without prefix caching."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._vllm: Any = importlib.import_module("vllm")
        model = self._vllm.LLM(
            model=arguments.model,
            dtype="bfloat16",
            max_model_len=arguments.max_tokens,
            max_num_seqs=arguments.max_sequences,
            enable_prefix_caching=False,
            disable_log_stats=True,
            seed=0,
        )
        self._engine = model.llm_engine
        self._num_requests = 0

    def versions(self) -> dict[str, str]:
        return {"vllm": self._vllm.__version__, "torch": str(importlib.import_module("torch").__version__)}

    def prefill(self, prompt: Prompt) -> float:
        start = time.perf_counter()
        self._add(prompt, 1)
        self._drain()
        return time.perf_counter() - start

    def decode(self, prompt: Prompt, num_tokens: int) -> float:
        self._add(prompt, num_tokens + 1)
        while not any(output.outputs[0].token_ids for output in self._engine.step()):
            pass
        start = time.perf_counter()
        self._drain()
        return time.perf_counter() - start

    def streams(self, prompts: Sequence[Prompt], num_tokens: int, concurrency: int) -> float:
        start = time.perf_counter()
        waiting = list(reversed(prompts))
        running = 0
        while running or waiting:
            while waiting and running < concurrency:
                self._add(waiting.pop(), num_tokens)
                running += 1
            running -= sum(bool(output.finished) for output in self._engine.step())
        return time.perf_counter() - start

    def _add(self, prompt: Prompt, num_tokens: int) -> None:
        params = self._vllm.SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        self._num_requests += 1
        self._engine.add_request(str(self._num_requests), {"prompt_token_ids": list(prompt)}, params)

    def _drain(self) -> None:
        while self._engine.has_unfinished_requests():
            self._engine.step()


SIDES: dict[str, Callable[[argparse.Namespace], Side]] = {"transformers": TransformersSide, "vllm": VllmSide}


def answer(side: Side, request: dict[str, Any]) -> dict[str, Any]:
    """What one request brought; an error of the peer is an answer too."""
    arguments = {name: value for name, value in request.items() if name != "task"}
    try:
        return {"seconds": getattr(side, request["task"])(**arguments)}
    except Exception as error:  # whatever a peer raises must reach the one who asked
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Serve requests until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--max-sequences", type=int, required=True)
    arguments = parser.parse_args()
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # peers print to standard output
        side = SIDES[arguments.side](arguments)
        print(json.dumps({"versions": side.versions()}), file=answers)
        for line in sys.stdin:
            print(json.dumps(answer(side, json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
