"""What is refused before anything is built, started or downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.config import ModelConfig, PipelineConfig
from tasks.platforms.errors import ConfigError
from tasks.platforms.local import preflight


def config(tmp_path: Path, **train: str) -> PipelineConfig:
    """A configuration whose data is there."""
    data = tmp_path / "chats.jsonl"
    data.write_text('{"messages": []}\n')
    platform = {"kind": "local", "home": str(tmp_path / "home")}
    return PipelineConfig.model_validate(
        {"name": "bot", "data": {"source": str(data)}, "train": train, "platform": platform}
    )


def test_qlora_without_a_driver_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QLoRA on a machine without an NVIDIA driver is refused, and leaves nothing behind; with one it goes on."""
    monkeypatch.setattr(preflight, "_has_nvidia", lambda: False)
    with pytest.raises(ConfigError, match="4-bit weights need an NVIDIA GPU, and this machine has none"):
        preflight.require_runnable(config(tmp_path, method="qlora"))
    assert not (tmp_path / "home").exists()
    preflight.require_runnable(config(tmp_path, method="lora"))
    monkeypatch.setattr(preflight, "_has_nvidia", lambda: True)
    preflight.require_runnable(config(tmp_path, method="qlora"))


def test_a_registered_model_is_named_with_its_version() -> None:
    """models:/NAME/VERSION is a base model; an alias or a name alone, another model tomorrow, is not."""
    assert preflight.registered_version("models:/support-bot/12") == ("support-bot", "12")
    assert preflight.registered_version("microsoft/Phi-3.5-mini-instruct") is None
    preflight.require_base_model(ModelConfig(base="models:/support-bot/12"))
    for base in ("models:/support-bot", "models:/support-bot@champion", "models:/support-bot/latest"):
        with pytest.raises(ConfigError, match="does not name one version") as raised:
            preflight.require_base_model(ModelConfig(base=base))
        assert "model.start_from to champion" in raised.value.fix
