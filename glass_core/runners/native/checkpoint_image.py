"""The images of one model folder: which there are, which one serves, and making the one that is missing."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glass_core.checkpoint.manifest import read_manifest
from glass_core.checkpoint.prepared import PreparedCheckpoint, open_prepared
from glass_core.config import AUTO, PREPARED_MANIFEST
from glass_core.errors import CheckpointError, ConfigurationError
from glass_core.runners.native.build_image import Report, ignore_progress, write_image
from glass_core.runners.native.image import FORMATS, ImageHeader, check_image, image_path, read_image
from glass_core.runners.native.sources import CheckpointSource

# when no image is exact: the most precise one that is still small
_PREFERENCE = ("int8", "bf16", "int4")

logger = logging.getLogger(__name__)


def available_formats(model_dir: Path) -> tuple[str, ...]:
    """Formats the folder has an image of, intact or not."""
    return tuple(name for name in FORMATS if image_path(model_dir, name).is_file())


def default_format(model_dir: Path) -> str:
    """The format an image of this model is made in: 4 bits where the weights came with 4 bits, else 8."""
    if not (model_dir / PREPARED_MANIFEST).is_file():
        return "int8"
    return format_for(read_manifest(model_dir).quantization)


def format_for(quantization: str | None) -> str:
    """The format for weights that were stored in a GGML type (None: not quantized)."""
    return "int4" if quantization is not None and quantization.startswith(("Q4", "IQ4")) else "int8"


def chosen_format(model_dir: Path, dtype: str) -> str:
    """The format that serves: the one asked for; for `auto` an exact image, else the most precise small one, else the
    format in which one would be made.

    Raises ConfigurationError for a dtype that is not a format, CheckpointError for a damaged image.
    """
    if dtype in FORMATS:
        return dtype
    if dtype != AUTO:
        raise ConfigurationError(f"dtype must be {AUTO} or one of {', '.join(FORMATS)} for native, got {dtype!r}")
    available = available_formats(model_dir)
    if len(available) == 1:
        return available[0]
    exact = [name for name in available if read_image(image_path(model_dir, name)).exact]
    return next(iter(exact or [name for name in _PREFERENCE if name in available]), None) or default_format(model_dir)


def open_image(checkpoint: PreparedCheckpoint, image_format: str) -> ImageHeader:
    """The folder's image of that format, checked against the checkpoint.

    Raises CheckpointError when it is missing, damaged or made of other weights.
    """
    path = image_path(checkpoint.model_dir, image_format)
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; make it with `glass quantize {checkpoint.model_dir.name} --format {image_format}`"
        )
    header = read_image(path)
    check_image(header, fingerprint=checkpoint.fingerprint, spec=checkpoint.spec)
    return header


def open_or_make_image(model_dir: Path, dtype: str) -> ImageHeader:
    """The image that serves the folder, made first when a prepared checkpoint has none: once, and logged.

    Raises as `open_image` and `chosen_format`.
    """
    checkpoint, image_format = open_prepared(model_dir), chosen_format(model_dir, dtype)
    if why_not_makeable(model_dir, image_format) is None and not image_path(model_dir, image_format).is_file():
        logger.info("no %s image in %s yet: making it, once", image_format, model_dir)
        return make_image(checkpoint, image_format)
    return open_image(checkpoint, image_format)


def why_not_makeable(model_dir: Path, image_format: str) -> str | None:
    """Why a first start would not make that image by itself. None when it would, or when it is there."""
    if image_path(model_dir, image_format).is_file():
        return None
    if not (model_dir / PREPARED_MANIFEST).is_file():
        return f"{model_dir} has no {image_format} weight image (`glass quantize {model_dir}` makes one)"
    if not os.access(model_dir, os.W_OK):
        return f"{model_dir} has no {image_format} weight image and is not writable"
    return None


def make_image(checkpoint: PreparedCheckpoint, image_format: str, report: Report = ignore_progress) -> ImageHeader:
    """Make the image of a folder from its tensors, replacing one of that format.

    Raises as `write_image`; an OSError when the folder cannot be written.
    """
    path = image_path(checkpoint.model_dir, image_format)
    with _locked(checkpoint.model_dir):
        source = CheckpointSource(checkpoint)
        write_image(path, source, image_format=image_format, fingerprint=checkpoint.fingerprint, report=report)
    return open_image(checkpoint, image_format)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer per folder: servers that start together would each need the memory and the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
