"""What the front knows of the model it serves: chat template, tokens, context length, generation defaults.

Prompts are rendered here and nowhere else: the engine is given the text, and its tokens are the tokens counted here.
Nothing here loads weights or torch.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import RequestRefusedError, StartError

# Put inside a control token that a person typed, so that it stays text: <|end|> becomes < |end|>, as in training.
BREAK = " "
# What people and models write on purpose: <think>, </tool_call>. Such tokens steer no turn; the trainer says the same.
MARKUP = re.compile(r"</?\w+>")
# Above this, a tokenizer's model_max_length means "not set".
NO_LIMIT_TOKENS = 10**9
# What a checkpoint's generation_config.json carries beside generation parameters.
NOT_PARAMETERS = ("_from_model_config", "transformers_version")


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A token that steers the model, and so must not come from a message's text."""

    id: int
    text: str


@dataclass(frozen=True)
class ModelFolder:
    """A Hugging Face model folder, read for serving."""

    path: Path
    config: dict[str, Any]
    chat_template: str
    special_tokens: dict[str, str]
    control_tokens: tuple[ControlToken, ...]
    generation_defaults: dict[str, Any]
    context_tokens: int | None
    unknown_token_id: int | None = field(default=None)

    @classmethod
    def read(cls, path: Path) -> ModelFolder:
        """Read a model folder, or the model inside an MLflow model folder.

        Raises:
            StartError: one line saying which file is missing or unreadable.
        """
        path = find_model(path)
        config = _read_json(path / "config.json")
        tokenizer_config = _read_json(path / "tokenizer_config.json")
        tokenizer = _read_json(path / "tokenizer.json")
        template = _read_template(path, tokenizer_config)
        special = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in tokenizer_config.items()
            if name.endswith("_token") and isinstance(value, str | dict)
        }
        added = tokenizer.get("added_tokens") or []
        control = tuple(
            ControlToken(token["id"], token["content"])
            for token in added
            if len(token["content"].strip()) > 1 and (token.get("special") or _is_written(token["content"], template))
        )
        unknown = next((token["id"] for token in added if token["content"] == special.get("unk_token")), None)
        return cls(
            path=path,
            config=config,
            chat_template=template,
            special_tokens=special,
            control_tokens=control,
            generation_defaults=_read_generation_defaults(path, config),
            context_tokens=_find_context(config, tokenizer_config),
            unknown_token_id=unknown,
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the folder; the file is read on first use."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.path / "tokenizer.json"))

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        texts = sorted({token.text for token in self.control_tokens}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def warm_up(self) -> None:
        """Load what `render` and `encode` need."""
        self.encode(self.render([{"role": "user", "content": "hi"}]))

    def neutralise(self, text: str) -> str:
        """Return the text with control tokens broken up, so that they are read as the letters they are.

        Raises:
            RequestRefusedError: the text still yields a control token.
        """
        while self._control_pattern.search(text):
            text = self._control_pattern.sub(lambda m: m[0][0] + BREAK + m[0][1:], text)
        control_ids = {token.id for token in self.control_tokens} - {self.unknown_token_id}
        if found := control_ids.intersection(self.encode(text)):
            names = ", ".join(repr(token.text) for token in self.control_tokens if token.id in found)
            raise RequestRefusedError(
                400, f"the text of a message contains the control token {names}; remove it", param="messages"
            )
        return text

    def neutralise_value(self, value: Any) -> Any:
        """Return a JSON value with every text in it neutralised, names of keys too."""
        if isinstance(value, str):
            return self.neutralise(value)
        if isinstance(value, dict):
            return {self.neutralise(key): self.neutralise_value(item) for key, item in value.items()}
        return [self.neutralise_value(item) for item in value] if isinstance(value, list) else value

    def encode(self, text: str) -> list[int]:
        """Return the text's token ids, nothing added."""
        try:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestRefusedError(
                400, "the text of a message is not valid Unicode (a lone surrogate)", param="messages"
            ) from error

    def unmarked(self, prompt: str) -> str | None:
        """Return the text that becomes the prompt's tokens where the tokenizer adds its own, or None.

        An engine adds them to a plain text: of a template that writes <s> itself, there would be two.
        """
        wanted = self.encode(prompt)
        for text in (prompt, prompt.removeprefix(self.special_tokens.get("bos_token", ""))):
            if self.tokenizer.encode(text).ids == wanted:
                return text
        return None

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """Return the prompt for an answer to the messages.

        Raises:
            RequestRefusedError: the model's chat template does not take such a conversation.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, _ = render_jinja_template(
                [messages],
                tools=tools or None,
                chat_template=self.chat_template,
                add_generation_prompt=True,
                **self.special_tokens,
            )
        except (TemplateError, TypeError) as error:
            raise RequestRefusedError(
                400, f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        _require_calls(rendered[0], messages, tools or [])
        return rendered[0]


def _require_calls(prompt: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> None:
    wanted = [(tool["function"]["name"], "tools") for tool in tools]
    wanted += [(call["function"]["name"], "messages") for each in messages for call in each.get("tool_calls", ())]
    for name, param in wanted:
        if name not in prompt:
            raise RequestRefusedError(
                400, f"the model's chat template leaves out the tool {name[:80]!r}; it knows no tools", param=param
            )


def _is_written(token: str, template: str) -> bool:
    return token in template and not MARKUP.fullmatch(token)


def find_model(path: Path) -> Path:
    """Return the folder that holds the weights.

    It is the folder itself, `model/` in an MLflow model, or in the one folder below that is either: a container finds
    a registered model in a folder below the one it is told.
    """
    if not path.exists():
        raise StartError(f"The model folder {path} does not exist. Give --model-dir a Hugging Face model folder.")
    if not path.is_dir():
        raise StartError(f"{path} is a file, not a model folder. Give --model-dir a Hugging Face model folder.")
    below = [each for each in sorted(path.iterdir()) if _is_model(each)] if not _is_model(path) else []
    if len(below) == 1:
        path = below[0]
    if not (path / "config.json").exists() and (path / "MLmodel").exists():
        path = path / "model"
    missing = [
        name for name in ("config.json", "tokenizer.json", "tokenizer_config.json") if not (path / name).exists()
    ]
    if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
        missing.append("*.safetensors")
    if missing:
        raise StartError(
            f"{path} is not a complete model folder: {', '.join(missing)} missing. Package the model again."
        )
    return path.resolve()


def _is_model(path: Path) -> bool:
    return (path / "config.json").exists() or (path / "MLmodel").exists()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StartError(f"Cannot read {path}: {error}. Package the model again.") from error
    if not isinstance(value, dict):
        raise StartError(f"{path} holds {type(value).__name__}, not an object. Package the model again.")
    return value


def _read_template(path: Path, tokenizer_config: dict[str, Any]) -> str:
    if (path / "chat_template.jinja").exists():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        template = next((each["template"] for each in template if each.get("name") == "default"), None)
    if not template:
        raise StartError(f"The tokenizer in {path} has no chat template. Set one before packaging the model.")
    return template


def _read_generation_defaults(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    file = path / "generation_config.json"
    defaults = _read_json(file) if file.exists() else {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if defaults.get(name) is None and config.get(name) is not None:
            defaults[name] = config[name]
    return {name: value for name, value in defaults.items() if name not in NOT_PARAMETERS}


def _find_context(config: dict[str, Any], tokenizer_config: dict[str, Any]) -> int | None:
    text_config = config.get("text_config") or {}
    positions = config.get("max_position_embeddings") or text_config.get("max_position_embeddings")
    if positions:
        return int(positions)
    limit = tokenizer_config.get("model_max_length") or NO_LIMIT_TOKENS
    return int(limit) if limit < NO_LIMIT_TOKENS else None
