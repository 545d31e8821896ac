"""Settings: from flags, environment and defaults; contradictions and nonsense are refused by name."""

from pathlib import Path
from typing import Any

import pytest

from glass_core.config import PREPARED_MANIFEST
from glass_core.errors import ConfigurationError, ModelNotFoundError
from server.config import Settings, load_settings


def test_defaults_bind_to_this_machine_only() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 8000, "smollm2-135m")
    assert not settings.is_public


@pytest.mark.parametrize(
    ("host", "public"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True), ("box.local", True)],
)
def test_public_addresses_are_told_apart(host: str, public: bool) -> None:
    assert Settings(host=host).is_public is public


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASS_PORT", "9000")
    monkeypatch.setenv("GLASS_MAX_N", "3")
    monkeypatch.setenv("GLASS_HOME", "elsewhere")
    monkeypatch.setenv("GLASS_MODEL_ALIASES", "a, b,,c")
    settings = load_settings(port="9001")
    assert (settings.port, settings.max_n) == (9001, 3)
    assert settings.model_aliases == ("a", "b", "c")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"port": 0}, r"port \(GLASS_PORT\).*got 0"),
        ({"port": "x"}, "GLASS_PORT"),
        ({"default_sparsity": 0.96}, "GLASS_DEFAULT_SPARSITY"),
        ({"default_lambda": float("nan")}, "GLASS_DEFAULT_LAMBDA"),
        ({"keepalive_seconds": 0}, "GLASS_KEEPALIVE_SECONDS"),
        ({"drain_timeout_seconds": float("inf")}, "GLASS_DRAIN_TIMEOUT_SECONDS"),
        ({"max_body_bytes": 0}, "GLASS_MAX_BODY_BYTES"),
        ({"no_such_setting": 1}, "no_such_setting"),
        ({"default_method": "dense", "default_sparsity": 0.5}, "contradicts"),
        ({"accept_any_model": True, "model_aliases": "a"}, "no effect"),
        ({"max_step_tokens": 4, "max_num_sequences": 8}, "max_step_tokens"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        load_settings(**values)


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.__setattr__("port", 1)


def test_the_engine_is_configured_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models" / "my-model"
    folder.mkdir(parents=True)
    (folder / PREPARED_MANIFEST).write_text("{}")
    monkeypatch.setenv("GLASS_HOME", str(tmp_path))
    config = Settings(
        model="my-model", num_threads=2, max_num_sequences=3, block_size=8, dtype="bfloat16"
    ).engine_config()
    assert (config.model_path, config.model_name) == (folder, "my-model")
    assert (config.num_threads, config.scheduler.max_num_sequences, config.cache.block_size) == (2, 3, 8)
    assert config.dtype == "bfloat16"
    assert Settings(model=str(folder), served_model_name="x").engine_config().model_name == "x"


def test_a_missing_model_says_how_to_get_it() -> None:
    with pytest.raises(ModelNotFoundError, match="glass pull"):
        Settings(model="no-such-model").engine_config()
