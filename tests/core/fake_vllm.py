"""A stand-in for an environment with vLLM: an interpreter that finds, under vLLM's name, an engine that draws zeros."""

import sys
from pathlib import Path

_VLLM = """
__version__ = "0.0-fake"


class SamplingParams:
    def __init__(self, *, temperature, max_tokens, ignore_eos, detokenize):
        assert temperature == 0.0 and ignore_eos and not detokenize
        self.max_tokens = max_tokens


class Output:
    def __init__(self, token_ids, finished):
        self.outputs, self.finished = [self], finished
        self.token_ids = token_ids


class Engine:
    def __init__(self, max_num_seqs):
        self.max_num_seqs, self.running = max_num_seqs, {}

    def add_request(self, request_id, prompt, params):
        if not prompt["prompt_token_ids"]:
            raise ValueError("an empty prompt")
        print("noise on standard output")
        self.running[request_id] = ([], params.max_tokens)
        assert len(self.running) <= self.max_num_seqs, "more in flight than asked for"

    def has_unfinished_requests(self):
        return bool(self.running)

    def step(self):
        outputs = []
        for request_id, (tokens, wanted) in list(self.running.items()):
            tokens.append(0)
            outputs.append(Output(list(tokens), len(tokens) == wanted))
            if len(tokens) == wanted:
                del self.running[request_id]
        return outputs


class LLM:
    def __init__(self, *, model, dtype, max_model_len, max_num_seqs, enable_prefix_caching, disable_log_stats, seed):
        assert dtype == "bfloat16" and not enable_prefix_caching
        self.llm_engine = Engine(max_num_seqs)
"""


def write_vllm_python(folder: Path) -> Path:
    """The interpreter's path."""
    packages = folder / "packages"
    packages.mkdir()
    (packages / "vllm.py").write_text(_VLLM, encoding="utf-8")
    (packages / "torch.py").write_text('__version__ = "0.0-fake"\n', encoding="utf-8")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return python
