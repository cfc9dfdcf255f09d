"""Prepared data and base models are in the workspace once, by content; with a real blob store and the trainer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.config import AzurePlatformConfig, DataConfig, ModelConfig
from tasks.platforms.azure import preparation as module
from tasks.platforms.azure.preparation import Preparation
from tasks.platforms.azure.sources import is_remote, open_remote, registered_model, workspace_model
from tasks.platforms.errors import ConfigError, DataError, PermissionDeniedError
from tasks.platforms.local.local_platform import LocalPlatform
from tasks.platforms.local.state import Home
from tasks.platforms.refs import BaseModelRef, EnvironmentRef, Origin

MADE = Origin(reused=False, reason="made in a test")
ENVIRONMENT = EnvironmentRef(name="training", version="e" * 16, location="azureml:phiflow-training:e", origin=MADE)
REGISTRY = "azureml://registries/azureml/models/Phi-3.5-mini-instruct/versions/6"
CHATS = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}) + "\n"
    for n in range(20)
)


class ThisMachine(LocalPlatform):
    """This machine, whose training environment is this Python; counts how often one was needed."""

    num_environments = 0

    def ensure_environment(self, name: str) -> EnvironmentRef:
        self.num_environments += 1
        location = self.home.folder("python")
        (location / "bin").mkdir(exist_ok=True)
        if not (location / "bin" / "python").exists():
            (location / "bin" / "python").symlink_to(sys.executable)
        return EnvironmentRef(name=name, version="l" * 16, location=str(location), origin=MADE)

    def resolve_base_model(self, model: ModelConfig, environment: EnvironmentRef) -> BaseModelRef:
        if model.base != "builtin/tiny-phi3":
            return super().resolve_base_model(model, environment)
        folder = self.home.folder("built")  # building it takes torch
        (folder / "config.json").write_text("{}")
        return BaseModelRef(base=model.base, revision="", digest="d" * 64, location=str(folder), origin=MADE)


@pytest.fixture
def workspace(storage: Any, config: AzurePlatformConfig) -> Any:
    """A workspace whose storage is real."""
    from tasks.platforms.azure.client import Workspace

    workspace = Workspace(config)
    workspace.__dict__["storage"] = storage
    return workspace


@pytest.fixture
def fresh(workspace: Any, tmp_path: Path) -> Callable[[], tuple[Preparation, ThisMachine]]:
    """Return a function that gives a machine with an empty state folder, as a container starts."""

    def start() -> tuple[Preparation, ThisMachine]:
        home = Home.open(str(tmp_path / f"home-{len(list(tmp_path.iterdir()))}"))
        machine = ThisMachine(home)
        return Preparation(workspace, machine), machine

    return start


def base(location: str = REGISTRY) -> BaseModelRef:
    """A base model without a tokenizer that this Python could load."""
    return BaseModelRef(base=location, revision="", digest="b" * 64, location=location, origin=MADE)


def test_data_is_uploaded_once_and_adopted_by_a_fresh_machine(
    fresh: Callable[[], Any], workspace: Any, tmp_path: Path
) -> None:
    """What one machine prepared another adopts by the input's identity, without building an environment."""
    source = tmp_path / "chats.jsonl"
    source.write_text(CHATS)
    data = DataConfig(source=str(source))
    first, machine = fresh()
    made = first.data(data, base(), ENVIRONMENT, 256)
    assert (made.origin.reused, machine.num_environments) == (False, 1)
    assert made.num_train + made.num_test == 20
    assert workspace.storage.read(workspace.storage.path_of(made.train_file)).count(b"\n") == made.num_train
    second, empty = fresh()
    adopted = second.data(data, base(), ENVIRONMENT, 256)
    assert adopted.origin.reused
    assert empty.num_environments == 0
    assert (adopted.digest, adopted.train_file, adopted.num_test) == (made.digest, made.train_file, made.num_test)
    assert json.loads(Path(adopted.manifest_file).read_text())["digest"] == made.digest
    source.write_text(CHATS.replace("a7", "another answer"))
    changed = second.data(data, base(), ENVIRONMENT, 256)
    assert not changed.origin.reused
    assert changed.digest != made.digest


def test_half_an_upload_is_not_adopted(fresh: Callable[[], Any], workspace: Any, tmp_path: Path) -> None:
    """Data of which a file is missing in the workspace is uploaded again."""
    source = tmp_path / "chats.jsonl"
    source.write_text(CHATS)
    data = DataConfig(source=str(source))
    made = fresh()[0].data(data, base(), ENVIRONMENT, 256)
    workspace.storage.delete(workspace.storage.path_of(made.test_file))
    workspace.storage.delete(f"{module.DATA}/{made.digest}/manifest.json")
    again = fresh()[0].data(data, base(), ENVIRONMENT, 256)
    assert not again.origin.reused
    assert workspace.storage.exists(workspace.storage.path_of(again.test_file))


def test_data_of_the_workspace_is_prepared_by_its_content(fresh: Callable[[], Any], workspace: Any) -> None:
    """A file in a datastore is the same data until it is written again; one that is not there is named."""
    workspace.storage.write("raw/chats.jsonl", CHATS.encode())
    data = DataConfig(source="azureml://datastores/workspaceblobstore/paths/raw/chats.jsonl")
    made = fresh()[0].data(data, base(), ENVIRONMENT, 256)
    assert not made.origin.reused
    assert fresh()[0].data(data, base(), ENVIRONMENT, 256).origin.reused
    workspace.storage.write("raw/chats.jsonl", CHATS.replace("a3", "better").encode())
    assert fresh()[0].data(data, base(), ENVIRONMENT, 256).digest != made.digest
    for path, told in (("raw/none.jsonl", "does not exist"), ("raw", "is a folder")):
        missing = DataConfig(source=f"azureml://datastores/workspaceblobstore/paths/{path}")
        with pytest.raises(DataError, match=told):
            fresh()[0].data(missing, base(), ENVIRONMENT, 256)


def test_sources_here_and_in_the_workspace_are_mixed(fresh: Callable[[], Any], workspace: Any, tmp_path: Path) -> None:
    """In the order of the configuration, each with its weight; either changing makes other data."""
    here, there = tmp_path / "chats.jsonl", "raw/more.jsonl"
    here.write_text(CHATS)
    workspace.storage.write(there, CHATS.replace('"q', '"r').encode())
    address = f"azureml://datastores/workspaceblobstore/paths/{there}"
    data = DataConfig(source=[{"source": address, "weight": 2}, str(here)])
    made = fresh()[0].data(data, base(), ENVIRONMENT, 256)
    sources = json.loads(Path(made.manifest_file).read_text())["sources"]
    assert [(Path(one["name"]).name, one["weight"]) for one in sources] == [("more.jsonl", 2), ("chats.jsonl", 1)]
    assert fresh()[0].data(data, base(), ENVIRONMENT, 256).origin.reused
    lighter = DataConfig(source=[{"source": address, "weight": 1}, str(here)])
    assert not fresh()[0].data(lighter, base(), ENVIRONMENT, 256).origin.reused
    workspace.storage.write(there, CHATS.replace('"q', '"s').encode())
    assert not fresh()[0].data(data, base(), ENVIRONMENT, 256).origin.reused


def test_bad_data_says_which_record(fresh: Callable[[], Any], workspace: Any, tmp_path: Path) -> None:
    """A rejected record is named as on this machine, and nothing is uploaded."""
    source = tmp_path / "chats.jsonl"
    source.write_text(CHATS + '{"messages": []}\n')
    with pytest.raises(DataError) as caught:
        fresh()[0].data(DataConfig(source=str(source)), base(), ENVIRONMENT, 256)
    assert any("chats.jsonl:21" in line for line in caught.value.detail)
    assert workspace.storage.names("phiflow/data") == []


def test_folder_is_uploaded_once(fresh: Callable[[], Any], workspace: Any, folder_of: Callable[..., Path]) -> None:
    """A base model's folder goes to the workspace under its digest, and a second run finds it there."""
    folder = folder_of({"config.json": "{}", "model.safetensors": "weights"})
    model = ModelConfig(base=str(folder))
    made = fresh()[0].base_model(model, ENVIRONMENT)
    assert not made.origin.reused
    prefix = workspace.storage.path_of(made.location)
    assert workspace.storage.read(f"{prefix}/model.safetensors") == b"weights"
    adopted = fresh()[0].base_model(model, ENVIRONMENT)
    assert adopted.origin.reused
    assert adopted == made
    labelled = fresh()[0].base_model(model.model_copy(update={"revision": "v2"}), ENVIRONMENT)
    assert labelled.location == made.location
    assert labelled.digest != made.digest


def test_builtin_model_is_built_once_for_the_workspace(fresh: Callable[[], Any], workspace: Any) -> None:
    """A fresh machine adopts the uploaded built-in model by its recipe and builds nothing."""
    made = fresh()[0].base_model(ModelConfig(), ENVIRONMENT)
    second, empty = fresh()
    adopted = second.base_model(ModelConfig(), ENVIRONMENT)
    assert (adopted.digest, adopted.location) == (made.digest, made.location)
    assert adopted.origin.reused
    assert empty.num_environments == 0
    other = EnvironmentRef(name="training", version="f" * 16, location="azureml:phiflow-training:f", origin=MADE)
    second.base_model(ModelConfig(), other)
    assert empty.num_environments == 1


def test_model_in_a_datastore_is_named_by_what_is_in_it(fresh: Callable[[], Any], workspace: Any) -> None:
    """A folder in a datastore is used as it is; its digest is another when a file of it is written again."""
    address = "azureml://datastores/workspaceblobstore/paths/models/phi"
    model = ModelConfig(base=address)
    with pytest.raises(ConfigError, match="does not exist"):
        fresh()[0].base_model(model, ENVIRONMENT)
    workspace.storage.write("models/phi/model/config.json", b"{}")
    workspace.storage.write("models/phi/model/tokenizer_config.json", b"{}")
    workspace.storage.write("models/phi/model/model.safetensors", b"weights")
    workspace.storage.write("models/phi-other/config.json", b"{}")
    preparation, _ = fresh()
    made = preparation.base_model(model, ENVIRONMENT)
    assert made.location == address
    tokenizer = Path(preparation._tokenizer(made, ENVIRONMENT))
    assert {path.name for path in tokenizer.iterdir()} == {"config.json", "tokenizer_config.json"}
    workspace.storage.write("models/phi-other/config.json", b"{ }")
    assert preparation.base_model(model, ENVIRONMENT).digest == made.digest
    workspace.storage.write("models/phi/model/model.safetensors", b"others")
    assert preparation.base_model(model, ENVIRONMENT).digest != made.digest


def test_registered_model_needs_its_version(fresh: Callable[[], Any]) -> None:
    """A registry's model goes to the job as it is; without a version it is refused."""
    assert fresh()[0].base_model(ModelConfig(base=REGISTRY), ENVIRONMENT).location == REGISTRY
    for address in ("azureml://registries/azureml/models/Phi/labels/latest", "azureml:phi", "azureml:phi@latest"):
        with pytest.raises(ConfigError, match="names no version"):
            fresh()[0].base_model(ModelConfig(base=address), ENVIRONMENT)
    assert registered_model("azureml:phi:3")
    assert workspace_model("azureml:phi:3") == ("phi", "3")
    assert workspace_model(REGISTRY) is None


@pytest.mark.parametrize(
    "address",
    [
        "azureml://datastores/other/paths/",
        "azureml://subscriptions/s/resourcegroups/g/workspaces/elsewhere/datastores/d/paths/p",
        "abfss://container@account/path",
        "azureml:chats:1",
    ],
)
def test_address_that_cannot_be_opened_is_refused(workspace: Any, address: str) -> None:
    """What is in another workspace, or no path, is a mistake in the configuration, told with its key."""
    assert is_remote(address)
    with pytest.raises(ConfigError, match=r"data\.source"):
        open_remote(workspace, address, "data.source")


def test_hub_token_is_there_for_the_block_alone(
    fresh: Callable[[], Any], workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key vault's token is in the environment while the hub is asked, and gone after; a person's own stays."""
    workspace.config = workspace.config.model_copy(update={"hub_token_secret": "hub"})
    workspace.__dict__["properties"] = {"properties": {"keyVault": "/subscriptions/s/providers/v/vaults/kv"}}
    monkeypatch.setattr(type(workspace), "_cloud", {"name": "AzureCloud"})
    asked: list[str] = []

    def send(method: str, url: str, **_: Any) -> Any:
        asked.append(url)
        return SimpleNamespace(json=lambda: {"value": "hf_canary"})

    workspace.send = send
    monkeypatch.delenv("HF_TOKEN", raising=False)
    preparation, _ = fresh()
    with preparation._hub_token():
        assert os.environ["HF_TOKEN"] == "hf_canary"
    assert "HF_TOKEN" not in os.environ
    assert asked == ["https://kv.vault.azure.net/secrets/hub"]
    monkeypatch.setenv("HF_TOKEN", "own")
    with preparation._hub_token():
        assert os.environ["HF_TOKEN"] == "own"
    assert os.environ["HF_TOKEN"] == "own"
    monkeypatch.delenv("HF_TOKEN")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionDeniedError("Secret hub was refused.")

    workspace.send = refuse
    with fresh()[0]._hub_token():
        assert "HF_TOKEN" not in os.environ
