"""Stand-ins for llama.cpp's programs: executable scripts that print or serve what the real ones would.

`python -m tests.core.fake_llama_cpp --port N …` is the server: OpenAI completions, and `/completion` with uniform
log-probabilities.
"""

import argparse
import json
import math
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.core.fake_completions_server import FakeServer, Handler

ROOT = Path(__file__).resolve().parents[2]
_BENCH = """#!{python}
import json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open({log!r}, "a") as log:
    log.write(json.dumps(flags) + "\\n")
entries = []
for n_prompt in map(int, flags.get("-p", "512").split(",")):
    if n_prompt:
        entries.append({{"n_prompt": n_prompt, "n_gen": 0, "avg_ts": 1000.0}})
n_gen = int(flags.get("-n", "0"))
if n_gen:
    entries.append({{"n_prompt": 0, "n_gen": n_gen, "avg_ts": 100.0, "model_type": "llama Q4_0", "cpu_info": "a CPU"}})
print({output})
sys.exit({status})
"""
_SERVER = """#!{python}
import os, sys
os.chdir({root!r})
os.execv(sys.executable, [sys.executable, "-m", "tests.core.fake_llama_cpp", *sys.argv[1:]])
"""


def write_llama_bench(folder: Path, *, output: str = "json.dumps(entries)", status: int = 0) -> tuple[Path, Path]:
    """The script, and the file in which it notes the flags of every call. `output` is a Python expression."""
    path, log = folder / "llama-bench", folder / "llama-bench.log"
    return _script(path, _BENCH.format(python=sys.executable, log=str(log), output=output, status=status)), log


def write_llama_server(folder: Path) -> Path:
    return _script(folder / "llama-server", _SERVER.format(python=sys.executable, root=str(ROOT)))


def _script(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


class _LlamaHandler(Handler):
    """Adds llama-server's own completion endpoint."""

    server_state = FakeServer(seconds_per_token=0.02)  # else an answer arrives in one piece

    def do_POST(self) -> None:
        if self.path != "/completion":
            super().do_POST()
            return
        count = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["n_probs"]
        entries = [{"id": index, "logprob": -math.log(count)} for index in reversed(range(count))]
        self.send_json(200, {"completion_probabilities": [{"top_logprobs": entries}]})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    arguments, _ = parser.parse_known_args()
    ThreadingHTTPServer(("127.0.0.1", arguments.port), _LlamaHandler).serve_forever()


if __name__ == "__main__":
    main()
