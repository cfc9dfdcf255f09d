"""What is refused before anything is built, started or downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import ENVIRONMENT, model_version

from tasks.config import ModelConfig, PipelineConfig
from tasks.platforms.errors import ConfigError, NotFoundError
from tasks.platforms.local import preflight
from tasks.platforms.local.local_platform import LocalPlatform
from tasks.platforms.local.state import Home


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


def test_a_registered_model_is_started_from_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version's digest names the base, and its location is the folder with weights and tokenizer; or one line."""
    package = tmp_path / "artifacts"
    (package / "model").mkdir(parents=True)
    (package / "model" / "config.json").write_text("{}")
    platform = LocalPlatform(Home.open(str(tmp_path / "home")))

    def read(name: str, version: str) -> object:
        if version != "2":
            raise NotFoundError(f"There is no version {version} of model {name} in the registry.")
        return model_version("2", location=str(package))

    monkeypatch.setattr(platform.models, "read", read)
    base = platform.resolve_base_model(ModelConfig(base="models:/support/2"), ENVIRONMENT)
    assert (base.base, base.digest, base.location) == ("models:/support/2", "2" * 64, str(package / "model"))
    with pytest.raises(ConfigError, match=r"model\.base models:/support/3: There is no version 3"):
        platform.resolve_base_model(ModelConfig(base="models:/support/3"), ENVIRONMENT)
