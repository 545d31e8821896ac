"""An artifact on the terminal: its manifest, one line of numbers and bars per layer, what it can serve."""

from rich.console import Console
from rich.table import Table

from glass_core.offline.inspection.comparison import Comparison
from glass_core.offline.inspection.spectra import TOP_SHARES, bar, mean, top_share
from glass_core.sparsity.artifact import GlobalStatistics


def print_report(statistics: GlobalStatistics, comparison: Comparison | None, console: Console) -> None:
    """Everything, top to bottom."""
    console.print(_manifest_table(statistics))
    console.print(_layer_table(statistics, comparison))
    console.print(_summary(statistics, comparison))


def _manifest_table(statistics: GlobalStatistics) -> Table:
    manifest = statistics.manifest
    table = Table("what", "value", title=f"artifact of {manifest.model_name}", show_header=False)
    table.add_row("fingerprint", manifest.fingerprint)
    table.add_row("size", f"{manifest.num_layers} layers of {manifest.intermediate_size} neurons")
    table.add_row("tensors", ", ".join(name for name, _ in statistics.tensors()))
    table.add_row("profiles", ", ".join(statistics.profiles) or "none")
    table.add_row("refinement", _refinement(statistics))
    for name, value in manifest.corpus.items():
        table.add_row(f"corpus {name}", str(value))
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    table.add_row("command", manifest.command)
    return table


def _refinement(statistics: GlobalStatistics) -> str:
    ranges = [f"{name} up to sparsity {table.max_sparsity:g}" for name, table in statistics.refinement.items()]
    return ", ".join(ranges) or "not measured"


def _layer_table(statistics: GlobalStatistics, comparison: Comparison | None) -> Table:
    """Importance spectra: the share of a layer's activation that its best neurons hold."""
    shares = [top_share(statistics.activation_l1, share) for share in TOP_SHARES]
    sensitivity = statistics.sensitivity
    table = Table("layer", title="share of a layer's importance held by its best neurons")
    for share in TOP_SHARES:
        table.add_column(f"top {share:.0%}", justify="right")
    table.add_column("top 50%")
    if sensitivity is not None:
        table.add_column("KL", justify="right")
        table.add_column("")
    if comparison is not None:
        table.add_column("overlap", justify="right")
    for layer in range(statistics.manifest.num_layers):
        cells = [str(layer), *(f"{held[layer]:.1%}" for held in shares), bar(float(shares[-1][layer]))]
        if sensitivity is not None:
            cells += [f"{sensitivity[layer]:.4f}", bar(float(sensitivity[layer]), full=float(sensitivity.max()))]
        if comparison is not None:
            cells.append(f"{comparison.overlaps[layer]:.1%}")
        table.add_row(*cells)
    return table


def _summary(statistics: GlobalStatistics, comparison: Comparison | None) -> str:
    held = mean(top_share(statistics.activation_l1, 0.5))
    lines = ["KL: sensitivity, the damage of pruning that layer alone to density 0.5 (nats per token)."]
    if comparison is not None:
        lines.append(f"overlap: {comparison.label}, neurons that both rankings keep at density 0.5.")
    lines.append(f"The better half of the neurons holds {held:.1%} of the importance on average.")
    if comparison is not None:
        lines.append(f"{comparison.label} at density 0.5: {mean(comparison.overlaps):.1%} (chance: 50 %).")
    return "\n".join(lines)
