"""Conditions against a baseline, answer by answer: what two methods differ by, whatever the answers have in common.

Answers differ from each other far more than methods do on the same answer, so the intervals of two means overlap where
their difference is certain. Whole answers are drawn (see bootstrap.py), each with both of its scores.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from glass_core.errors import ConfigurationError
from glass_core.offline.evaluate.bootstrap import Bootstrap
from glass_core.offline.evaluate.report import condition_labels, with_interval

Row = Mapping[str, Any]


def read_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Results of `glass eval longform`. Raises ConfigurationError for files that are none or lack scores per answer."""
    found = []
    for path in paths:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            complete = all("answers" in row for _, rows in _groups(result) for row in rows)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigurationError(f"{path}: not a result of `glass eval longform` ({error!r})") from error
        if not complete:
            raise ConfigurationError(f"{path}: has no scores per answer, made by an older version; run it again")
        found.append(result)
    return found


def compare(results: Sequence[Mapping[str, Any]], names: Sequence[str], to: str | None) -> list[dict[str, Any]]:
    """Every row against its baseline in the first result: the method `to` at the same sparsity, static; without it, the
    same condition. Rows without a baseline are left out.

    `kl_ratio` and `ppl_ratio` are relative changes, -0.2 = a fifth lower. Raises ConfigurationError where the answers
    are not the same or nothing can be compared.
    """
    bases = dict(_groups(results[0]))
    bootstrap_seed = int(results[0]["bootstrap"]["seed"])
    found = []
    for result, name in zip(results, names, strict=True):
        for length, rows in _groups(result):
            for row, label in zip(rows, condition_labels(rows), strict=True):
                base = _baseline(bases.get(length, ()), row, to)
                if base is not None:
                    described = {"file": name, "prompt_tokens": length, "condition": label, "kl": row["kl"]}
                    found.append({**described, **_change(row, base, bootstrap_seed, name)})
    if not found:
        raise ConfigurationError(f"no condition has a baseline{'' if to is None else f' {to}'} at its sparsity")
    return found


def _groups(result: Mapping[str, Any]) -> Iterator[tuple[int | None, Sequence[Row]]]:
    """The rows of the prompts as they are (None), and of each prompt length."""
    yield None, result["rows"]
    for group in result.get("prompt_lengths", ()):
        yield group["prompt_tokens"], group["rows"]


def _baseline(rows: Sequence[Row], row: Row, to: str | None) -> Row | None:
    """The most similar of the rows that may be this row's baseline, unless that is itself."""
    wanted = (to, False) if to is not None else (row["method"], row["refine"])
    same = [base for base in rows if (base["method"], base["refine"]) == wanted and base["sparsity"] == row["sparsity"]]
    if to is None:
        same = [base for base in same if (base["lambda"], base["profile"]) == (row["lambda"], row["profile"])]
    best = max(
        same, key=lambda base: [base[name] == row[name] for name in ("dtype", "profile", "lambda")], default=None
    )
    return None if best is row else best


def _change(row: Row, base: Row, seed: int, name: str) -> dict[str, Any]:
    mine, theirs = row["answers"], base["answers"]
    num_tokens = mine["num_tokens"]
    if num_tokens != theirs["num_tokens"]:
        raise ConfigurationError(f"{name}: made with other answers than the baseline; share them with --answers")
    bootstrap = Bootstrap.over(len(num_tokens), seed)
    nll = [one - other for one, other in zip(mine["nll"], theirs["nll"], strict=True)]
    kl_interval, nll_interval = bootstrap.interval(mine["kl"], theirs["kl"]), bootstrap.interval(nll, num_tokens)
    return {
        "baseline_kl": base["kl"],
        "kl_ratio": sum(mine["kl"]) / sum(theirs["kl"]) - 1,
        "kl_ratio_interval": None if kl_interval is None else [bound - 1 for bound in kl_interval],
        "ppl_ratio": math.expm1(sum(nll) / sum(num_tokens)),
        "ppl_ratio_interval": None if nll_interval is None else [math.expm1(bound) for bound in nll_interval],
    }


def print_comparison(rows: Sequence[Row], to: str | None, console: Console) -> None:
    """One line per condition."""
    table = Table("condition", title="paired · against " + ("the same in the first file" if to is None else to))
    for name in ("KL", "baseline", "KL changes by", "ppl changes by"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        length = "" if row["prompt_tokens"] is None else f"\nprompts of {row['prompt_tokens']} tokens"
        table.add_row(
            f"{row['condition']}\n{row['file']}{length}",
            f"{row['kl']:.4f}",
            f"{row['baseline_kl']:.4f}",
            with_interval(row, "kl_ratio", "{:+.1%}"),
            with_interval(row, "ppl_ratio", "{:+.1%}"),
        )
    console.print(table)
