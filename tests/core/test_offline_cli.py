"""The `glass` command imports what it was asked for, and no more."""

import subprocess
import sys

from glass_core.offline.cli import load_commands


def test_all_commands_without_words_and_for_unknown_ones() -> None:
    assert {"serve", "bench", "doctor"} <= set(load_commands())
    assert set(load_commands(["bogus"])) == set(load_commands(["--help"])) == set(load_commands())


def test_serving_waits_for_no_other_command() -> None:
    code = (
        "import sys; from glass_core.offline.cli import load_commands; "
        "print(list(load_commands(['serve', 'model'])), 'numpy' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split("\n")[0] == "['serve'] False"
