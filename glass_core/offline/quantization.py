"""`glass quantize` and the last step of `glass pull`: weight images with a progress bar."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from glass_core.checkpoint.gguf_file import open_gguf
from glass_core.checkpoint.manifest import read_manifest
from glass_core.checkpoint.prepared import PreparedCheckpoint, open_prepared
from glass_core.errors import CheckpointError
from glass_core.runners.native.build_image import Report, write_image
from glass_core.runners.native.checkpoint_image import default_format, format_for, make_image
from glass_core.runners.native.gguf_source import GgufSource
from glass_core.runners.native.image import ImageHeader, image_path


def quantize_model(model_dir: Path, image_format: str | None) -> ImageHeader:
    """Make the folder's image of a format, by default the one that suits its weights.

    Raises CheckpointError and UnsupportedModelError for a folder that cannot be read.
    """
    checkpoint = open_prepared(model_dir)
    chosen = default_format(model_dir) if image_format is None else image_format
    with _progress() as progress:
        return make_image(checkpoint, chosen, _reporter(progress, f"quantize to {chosen}"))


def add_pulled_image(folder: Path, gguf: Path | None) -> None:
    """Add the default image to a freshly prepared folder: from the blocks of the GGUF file it was made of, or from its
    own tensors. A model whose weights no image can hold is still served by torch_runner; a line says so."""
    checkpoint = open_prepared(folder)
    with _progress() as progress:
        try:
            if gguf is None:
                chosen = default_format(folder)
                make_image(checkpoint, chosen, _reporter(progress, f"quantize to {chosen}"))
            else:
                _from_blocks(checkpoint, gguf, progress)
        except CheckpointError as error:
            print(f"no weight image for the native runner: {error}")


def _from_blocks(checkpoint: PreparedCheckpoint, gguf: Path, progress: Progress) -> None:
    chosen = format_for(read_manifest(checkpoint.model_dir).quantization)
    write_image(
        image_path(checkpoint.model_dir, chosen),
        GgufSource(open_gguf(gguf), checkpoint.spec),
        image_format=chosen,
        fingerprint=checkpoint.fingerprint,
        report=_reporter(progress, f"take over {gguf.name} as {chosen}"),
    )


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), console=Console(stderr=True))


def _reporter(progress: Progress, title: str) -> Report:
    task = progress.add_task(title, total=None)

    def report(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    return report
