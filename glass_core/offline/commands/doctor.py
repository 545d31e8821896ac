"""Check this machine: Python, packages, processor, memory, runners, pulled models and their artifacts.

The exit status is 1 when `glass serve` with its defaults would not start.
"""

import argparse

HELP = "check whether this machine can serve"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--measure`: renew what is kept of this machine's speed."""
    parser.add_argument(
        "--measure", action="store_true", help="measure the costs of the models' FFNs again; the box should be idle"
    )


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from glass_core.offline.diagnosis import Status, diagnose, has_failed
    from glass_core.offline.ffn_cost_report import measure_all

    if args.measure:
        measure_all()
    colors = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}
    findings = diagnose()
    table = Table("check", "", "detail")
    for finding in findings:
        table.add_row(finding.subject, f"[{colors[finding.status]}]{finding.status}[/]", finding.detail)
    Console().print(table)
    return 1 if has_failed(findings) else 0
