"""Results of a benchmark as a table on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_table(result: Mapping[str, Any], console: Console) -> None:
    """One line per sparsity: median speed and its spread, ratio to the first line, bytes, bandwidth."""
    conditions = result["conditions"]
    title = (
        f"decode · {conditions['model']} · {conditions['runner']} {conditions['dtype']} · batch "
        f"{conditions['batch_size']} · {conditions['num_tokens']} tokens after {conditions['prompt_tokens']}"
    )
    table = Table("sparsity", title=title)
    for name in ("tokens/s", "min - max", "ratio", "MB/token", "GB/s"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        table.add_row(
            f"{row['sparsity']:g}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['tokens_per_second_min']:.1f} - {row['tokens_per_second_max']:.1f}",
            f"{row['ratio_to_first']:.2f}",
            f"{row['bytes_per_token'] / 1e6:.1f}",
            f"{row['gb_per_second']:.1f}",
        )
    console.print(table)
