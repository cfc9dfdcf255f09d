"""What a run on Azure is refused for before anything is built, uploaded or begun."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tasks.config import AzurePlatformConfig, PipelineConfig
from tasks.platforms.azure.checks import place as checks_place
from tasks.platforms.azure.client import Workspace
from tasks.platforms.azure.preflight import require_runnable
from tasks.platforms.errors import ConfigError, DataError, NotFoundError, PermissionDeniedError, PhiflowError

REMOTE = "azureml://datastores/workspaceblobstore/paths/raw/chats.jsonl"


def configured(home: Path, **sections: dict[str, Any]) -> PipelineConfig:
    """A configuration that could run, but for the sections given."""
    data = home.parent / "chats.jsonl"
    data.write_text("{}\n")
    values: dict[str, Any] = {
        "name": "support",
        "platform": {"kind": "azure", "subscription_id": "s", "resource_group": "g", "workspace": "w"},
        "data": {"source": str(data)},
        "compute": {"size": "Standard_E16s_v3"},
    }
    values["platform"]["home"] = str(home)
    return PipelineConfig.model_validate({**values, **sections})


class Offline:
    """A workspace that must not be asked anything."""

    config = None

    def token(self, scope: str) -> str:
        raise AssertionError("signed in before what needs no network was looked at")


@pytest.mark.parametrize(
    ("sections", "kind", "told"),
    [
        ({"compute": {}}, ConfigError, "compute.size is empty"),
        ({"data": {"source": "/nonexistent.jsonl"}}, DataError, "does not exist"),
        ({"data": {"source": REMOTE, "split": "train[:1%]"}}, DataError, "is for hub data sets"),
        ({"model": {"base": "azureml://registries/azureml/models/phi/labels/latest"}}, ConfigError, "no version"),
        ({"model": {"base": "/nonexistent"}}, ConfigError, "does not exist"),
        ({"train": {"method": "qlora"}}, ConfigError, "compute.size Standard_E16s_v3 has none"),
        ({"environment": {"serving": "promptflow"}}, ConfigError, "no environment 'promptflow' for Azure"),
        ({"serving": {"request_timeout_seconds": 181}}, ConfigError, "181, and managed online endpoints allow 180"),
        ({"environment": {"chat": "none"}}, ConfigError, "no environment 'none'"),
    ],
)
def test_mistake_is_told_without_the_network(
    tmp_path: Path, sections: dict[str, Any], kind: type[PhiflowError], told: str
) -> None:
    """What can be seen in the configuration is told before anybody signs in."""
    with pytest.raises(kind, match=told):
        require_runnable(configured(tmp_path / "home", **sections), Offline())  # type: ignore[arg-type]


def test_taken_chat_port_is_told(tmp_path: Path) -> None:
    """A port that another program has is refused with its setting."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"{port}"):
            require_runnable(configured(tmp_path / "home", chat={"port": port}), Offline())  # type: ignore[arg-type]


class Online:
    """A workspace that answers, or refuses as told."""

    def __init__(self, storage: Any, refusal: PhiflowError | None = None) -> None:
        self.config = AzurePlatformConfig(subscription_id="s", resource_group="g", workspace="w")
        self.name, self.resource_id = "w", "/subscriptions/s/w"
        self.storage = storage
        self.refusal = refusal

    def token(self, scope: str) -> str:
        return "token"

    def send(self, method: str, url: str, **_: Any) -> Any:
        """Refuse what a role on the workspace alone does not allow: to look at rights and quota."""
        raise PermissionDeniedError(f"{url} was refused to the caller.")

    @property
    def properties(self) -> dict[str, Any]:
        if self.refusal:
            raise self.refusal
        return {"location": "westeurope"}


def test_run_that_could_work_is_let_through(tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration whose parts are there passes, and what it cannot see yet is left to the run."""
    monkeypatch.setattr(checks_place, "is_name_taken", lambda name, location: None)
    workspace: Any = Online(storage)
    require_runnable(configured(tmp_path / "home"), workspace)
    storage.write("raw/chats.jsonl", b"{}\n")
    require_runnable(configured(tmp_path / "home", data={"source": REMOTE}), workspace)
    storage.delete("raw/chats.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        require_runnable(configured(tmp_path / "home", data={"source": REMOTE}), workspace)


def test_workspace_that_cannot_be_seen_stops_the_run(tmp_path: Path) -> None:
    """A workspace that is not there, or not for this caller, is told as it is."""
    for refusal in (NotFoundError("Workspace w was not found."), PermissionDeniedError("Workspace w was refused.")):
        workspace: Any = Online(None, refusal)
        with pytest.raises(type(refusal)) as caught:
            require_runnable(configured(tmp_path / "home"), workspace)
        assert caught.value is refusal


def test_nobody_signed_in_is_told_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a login the run ends with the command that signs in, before anything is made."""
    monkeypatch.setenv("PATH", "/nonexistent")
    config = configured(tmp_path / "home")
    platform = config.platform.model_copy(update={"credential": "cli"})
    with pytest.raises(PermissionDeniedError, match="az login"):
        require_runnable(config, Workspace(platform))  # type: ignore[arg-type]
