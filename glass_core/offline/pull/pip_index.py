"""Asks the user's pip where a package file is, so that index URLs, mirrors, find-links, proxies and certificates are
those of their pip configuration; and lets pip download where we cannot."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from glass_core.errors import ModelError

_NO_DEPENDENCIES = ("--no-deps", "--only-binary", ":all:")
_SETTING = re.compile(r"(?P<section>[^\s=]+)\.(?P<name>cert|proxy)=(?P<value>.+)")
_SECTIONS_BY_PRIORITY = (":env:", "download", "install", "global")


def find_wheel_url(requirement: str) -> str:
    """URL (https:, http: or file:) of the wheel pip would download for `name==version`.

    Raises ModelError with pip's own words when it finds none.
    """
    options = ("--dry-run", "--ignore-installed", "--quiet", "--report", "-", *_NO_DEPENDENCIES)
    output = _run_pip("install", *options, requirement)
    try:
        return str(json.loads(output)["install"][0]["download_info"]["url"])
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(f"pip's report for {requirement} has no download URL; is pip older than 23?") from error


def download_with_pip(requirement: str, folder: Path) -> Path:
    """Let pip download the wheel into `folder` (not resumable). Raises ModelError with pip's own words."""
    _run_pip("download", "--quiet", "--dest", str(folder), *_NO_DEPENDENCIES, requirement)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ModelError(f"pip downloaded no wheel for {requirement}")
    return wheels[0]


def network_settings() -> dict[str, str]:
    """pip's `cert` and `proxy`, as far as they are set; the environment wins over the configuration files."""
    return parse_settings(_run_pip("config", "list"))


def parse_settings(listing: str) -> dict[str, str]:
    """`cert` and `proxy` out of the lines of `pip config list`, e.g. `global.cert='/etc/ca.pem'`."""
    found: dict[str, Mapping[str, str]] = {}
    for match in filter(None, map(_SETTING.fullmatch, listing.splitlines())):
        value = str(ast.literal_eval(match["value"]))
        found[match["section"]] = {**found.get(match["section"], {}), match["name"]: value}
    settings: dict[str, str] = {}
    for section in reversed(_SECTIONS_BY_PRIORITY):
        settings.update(found.get(section, {}))
    return settings


def _run_pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed program
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no message"]
        raise ModelError(f"pip {arguments[0]} failed: {' '.join(errors)}")
    return result.stdout
