"""Progress bars of the long commands: on a terminal they move, in a log they say nothing but the last line."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """Where a long computation reports how far it is."""

    def task(self, description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """A context whose value is called once per unit of work done."""
        ...


class ConsoleProgress:
    """Bars on stderr, so that a command's result can be piped."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self._console) as bars:
            bar = bars.add_task(description, total=total)
            yield lambda: bars.advance(bar)
            # sequences that stop early leave steps undone
            bars.update(bar, completed=total)


class SilentProgress:
    """No output."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        yield lambda: None
