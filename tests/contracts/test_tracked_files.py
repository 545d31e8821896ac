"""No tracked file names a package registry's host or a path of somebody's machine: both rot, and neither is ours."""

import re

import pytest

from tests.contracts.repository import ROOT, tracked_files

# Put together here, so that this file does not match itself.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("deb", "debian", "org"),
    )
)
MACHINE_PATHS = tuple(f"/{name}/" for name in ("work", "root", "home", "Users"))
FORBIDDEN = re.compile(
    "|".join(
        [rf"(?<!\w){re.escape(host)}" for host in REGISTRY_HOSTS]
        + [rf"(?<![\w.}}-]){re.escape(path)}" for path in MACHINE_PATHS]
    )
)


def text_files() -> dict[str, str]:
    """Path -> content of every tracked text file."""
    contents = {}
    for path in tracked_files():
        try:
            contents[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return contents


def test_no_registry_host_or_machine_path() -> None:
    contents = text_files()
    if not contents:
        pytest.skip("not a git checkout")
    found = {
        f"{path}:{number}": line.strip()
        for path, text in contents.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if FORBIDDEN.search(line)
    }
    assert found == {}


@pytest.mark.parametrize(
    "text", [f"https://{REGISTRY_HOSTS[0]}/simple", f"files.{REGISTRY_HOSTS[1]}", MACHINE_PATHS[1]]
)
def test_pattern_finds(text: str) -> None:
    assert FORBIDDEN.search(text) is not None


@pytest.mark.parametrize("text", ["network/", "framework/", "deploy/home/x", "pypi package"])
def test_pattern_leaves_alone(text: str) -> None:
    assert FORBIDDEN.search(text) is None
