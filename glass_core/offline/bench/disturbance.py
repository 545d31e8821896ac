"""How much of the machine other processes used during a measurement, and repeating what they disturbed.

Runtimes that wait at spinning barriers lose far more to a neighbor than their share of the processor, so a comparison
on a shared machine is unfair to whom the neighbor hits. Repeats during which others used too much are discarded and
measured again, a bounded number of times; a result says how many were.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE_COLUMNS = (3, 4)  # idle, waiting for disks
_COLUMNS = 8  # those behind are parts of the first ones
RETRIES_PER_REPEAT = 2


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds so far: of the whole machine, busy and in all, and of the processes that measure."""

    busy: float
    total: float
    own: float


def usage(pids: Sequence[int] = ()) -> Usage | None:
    """Of this process, its ended children and `pids`; None on systems without /proc/stat."""
    if not _STAT.is_file():
        return None
    ticks = [int(value) for value in _STAT.read_text(encoding="ascii").splitlines()[0].split()[1 : _COLUMNS + 1]]
    hertz = os.sysconf("SC_CLK_TCK")
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    total, idle = sum(ticks), sum(ticks[column] for column in _IDLE_COLUMNS)
    return Usage((total - idle) / hertz, total / hertz, own + sum(_process_ticks(pid) for pid in pids) / hertz)


def others_share(before: Usage | None, after: Usage | None) -> float:
    """Share of the machine's processor time others used in between; 0 where it cannot be known."""
    if before is None or after is None or after.total <= before.total:
        return 0.0
    others = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, others / (after.total - before.total))


def _process_ticks(pid: int) -> int:
    """User and system time of a running process (proc(5), fields 14 and 15)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


@dataclass(slots=True)
class QuietRepeats:
    """Runs repeats until enough of them were undisturbed. `limit` is the share others may use."""

    limit: float
    num_discarded: int = 0
    largest_kept: float = 0.0

    def run(
        self,
        repeats: int,
        measure: Callable[[int], None],
        discard: Callable[[], None],
        *,
        pids: Sequence[int] = (),
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """`measure(repeat)` records one repeat; `discard()` forgets the last one. When the retries are used up, the
        remaining repeats are kept as they are."""
        retries = RETRIES_PER_REPEAT * repeats
        repeat = 0
        while repeat < repeats:
            before = usage(pids)
            measure(repeat)
            share = others_share(before, usage(pids))
            if share > self.limit and retries:
                retries -= 1
                self.num_discarded += 1
                discard()
                continue
            self.largest_kept = max(self.largest_kept, share)
            repeat += 1
            advance()

    def as_json(self) -> dict[str, float | int]:
        return {
            "max_others_share": self.limit,
            "num_discarded": self.num_discarded,
            "largest_kept_others_share": self.largest_kept,
        }
