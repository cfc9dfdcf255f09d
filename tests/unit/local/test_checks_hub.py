"""What the doctor says of a base model: on a hub, which here is a stand-in on loopback, and in a folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.config import ModelConfig, PipelineConfig
from tasks.platforms.local import checks_hub
from tasks.platforms.upkeep import Check, Outcome


def outcomes(found: Iterator[Check]) -> list[tuple[str, str]]:
    """What a reader sees first."""
    return [(str(check.outcome), check.name) for check in found]


def configured(home: Path, **sections: Any) -> PipelineConfig:
    """A local configuration in a state folder."""
    data = home.parent / "chats.jsonl"
    data.write_text("{}\n")
    values = {"name": "support", "platform": {"home": str(home)}, "data": {"source": str(data)}}
    return PipelineConfig.model_validate({**values, **sections})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, Any, dict[str, str]]]]:
    """A hub on loopback that answers as told: status, body and headers by path."""
    answers: dict[str, tuple[int, Any, dict[str, str]]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, headers = answers.get(self.path.partition("?")[0], (404, {}, {}))
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    from huggingface_hub import constants, file_download, hf_api

    url = f"http://127.0.0.1:{server.server_port}"
    for module in (constants, hf_api, file_download):
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            if hasattr(module, name):
                value = url if name == "ENDPOINT" else url + "/{repo_id}/resolve/{revision}/{filename}"
                monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield answers
    server.shutdown()


SHA = "0123456789abcdef0123456789abcdef01234567"


def model_of(answers: dict[str, Any], *files: str, **more: Any) -> ModelConfig:
    """Have the hub know a model."""
    siblings = [{"rfilename": name} for name in ("config.json", *files)]
    body = {"id": "org/model", "sha": SHA, "siblings": siblings, "cardData": {"license": "mit"}, **more}
    answers["/api/models/org/model"] = (200, body, {})
    return ModelConfig(base="org/model")


def test_model_on_the_hub_is_told_with_licence_and_template(hub: dict[str, Any]) -> None:
    """A template file, or one in the tokenizer's configuration, will do; none will not."""
    model = model_of(hub, "chat_template.jinja")
    (found,) = checks_hub.check_base_model(model)
    assert (found.outcome, found.found) == (
        Outcome.PASS,
        "org/model at 0123456789ab, licence mit, with a chat template",
    )
    model = model_of(hub, "tokenizer_config.json")
    hub[f"/org/model/resolve/{SHA}/tokenizer_config.json"] = (200, {"chat_template": "{{ x }}"}, {})
    assert outcomes(checks_hub.check_base_model(model)) == [("pass", "base model")]
    hub[f"/org/model/resolve/{SHA}/tokenizer_config.json"] = (200, {}, {})
    (found,) = checks_hub.check_base_model(model)
    assert found.outcome == Outcome.FAIL and "has no chat template" in found.found


@pytest.mark.parametrize(
    ("secret", "words"),
    [(None, "and set HF_TOKEN"), ("", "and platform.hub_token_secret: hub-token"), ("mine", "--name mine --file FILE")],
)
def test_gated_model_is_told_with_its_page(hub: dict[str, Any], secret: str | None, words: str) -> None:
    """What the hub keeps closed names the page that opens it, and where the token belongs."""
    model = model_of(hub, "chat_template.jinja", gated="manual")
    hub[f"/org/model/resolve/{SHA}/config.json"] = (403, {}, {"X-Error-Code": "GatedRepo"})
    (found,) = checks_hub.check_base_model(model, secret)
    assert found.outcome == Outcome.FAIL and "gated" in found.found
    assert "/org/model" in found.fix and found.fix.endswith(words)


def test_folder_without_chat_template_is_told(tmp_path: Path) -> None:
    """A model folder is looked at as the hub is."""
    (tmp_path / "config.json").write_text("{}")
    (found,) = checks_hub.check_base_model(ModelConfig(base=str(tmp_path)))
    assert found.outcome == Outcome.FAIL
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')
    assert outcomes(checks_hub.check_base_model(ModelConfig(base=str(tmp_path)))) == [("pass", "base model")]


def test_model_too_large_for_this_machine_is_told(hub: dict[str, Any], tmp_path: Path) -> None:
    """Sixteen bytes a parameter, of which the hub knows the number."""
    model_of(hub, safetensors={"parameters": {"BF16": 10**12}, "total": 10**12})
    (found,) = checks_hub.check_memory(configured(tmp_path / "home", model={"base": "org/model"}))
    assert found.outcome == Outcome.WARN and "1000.0 billion parameters take about 16000 GB" in found.found
