"""Flags that hold several values, separated by commas."""

from glass_core.errors import ConfigurationError


def parse_floats(text: str, flag: str) -> tuple[float, ...]:
    """Comma-separated numbers of a flag. Raises ConfigurationError naming the flag."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigurationError(f"{flag} must be numbers separated by commas, got {text!r}") from error
    return values


def parse_names(text: str, flag: str) -> tuple[str, ...]:
    """Comma-separated names of a flag. Raises ConfigurationError naming the flag."""
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise ConfigurationError(f"{flag} must be names separated by commas, got {text!r}")
    return tuple(names)


def parse_counts(text: str, flag: str) -> tuple[int, ...]:
    """Comma-separated whole numbers of a flag, each at least 1. Raises ConfigurationError naming the flag."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigurationError(f"{flag} must be whole numbers separated by commas, got {text!r}") from error
    if min(values) < 1:
        raise ConfigurationError(f"{flag} must be at least 1, got {text!r}")
    return values
