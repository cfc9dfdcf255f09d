"""What a chat completion may ask for: checks a body and turns it into a `ChatRequest`.

A field that would change the answer in a way this server cannot honour is refused; a field that changes nothing
here (`user`, `metadata`, ...) is dropped; a field nobody knows is refused with the nearest known name.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any

from .errors import RequestRefusedError
from .model_folder import ModelFolder

DEFAULT_MAX_TOKENS = 512
ROLES = ("system", "user", "assistant", "tool")
READ_FIELDS = {
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream",
    "tools", "tool_choice",
}  # fmt: skip
DROPPED_FIELDS = {
    "user", "metadata", "store", "service_tier", "stream_options", "parallel_tool_calls", "safety_identifier",
    "prompt_cache_key",
}  # fmt: skip
# Fields of the API that this server does not do, and the value that asks for nothing special.
REFUSED_UNLESS = {
    "n": 1, "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {},
    "response_format": {"type": "text"}, "functions": [], "function_call": "none",
    "modalities": ["text"], "audio": None, "prediction": None, "reasoning_effort": None, "web_search_options": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A request that passed every check; `num_prompt_tokens + max_tokens` fits the context."""

    prompt: str
    prompt_ids: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    stream: bool

    @property
    def num_prompt_tokens(self) -> int:
        """How much of the context the messages take."""
        return len(self.prompt_ids)


def parse_request(raw: bytes, *, model_name: str, folder: ModelFolder) -> ChatRequest:
    """Check a request's body.

    Raises:
        RequestRefusedError: 400 naming the field and the value seen, or 404 for another model's name.
    """
    body = _parse_json(raw)
    _check_fields(body)
    model = body.get("model")
    if model is not None and model != model_name:
        raise RequestRefusedError(
            404, f"the model {model!r} does not exist here; this server has {model_name!r}",
            param="model", code="model_not_found",
        )  # fmt: skip
    messages = _read_messages(body.get("messages"), folder)
    prompt = folder.render(messages, _read_tools(body, folder))
    prompt_ids = folder.encode(prompt)
    return ChatRequest(
        prompt=prompt,
        prompt_ids=prompt_ids,
        max_tokens=_fit_max_tokens(_read_max_tokens(body), len(prompt_ids), folder.context_tokens),
        temperature=_read_number(body, "temperature", 0.0, low=0, high=2),
        top_p=_read_number(body, "top_p", 1.0, low=0, high=1),
        seed=_read_integer(body, "seed", low=-(2**63), high=2**63 - 1),
        stop=_read_stop(body.get("stop")),
        stream=_read_stream(body.get("stream")),
    )


def _parse_json(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestRefusedError(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestRefusedError(400, f"the body must be a JSON object, not {_kind(body)}")
    return body


def _check_fields(body: dict[str, Any]) -> None:
    known = READ_FIELDS | DROPPED_FIELDS | set(REFUSED_UNLESS)
    for name, value in body.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise RequestRefusedError(
                400, f"unknown field {name[:80]!r}{hint}", param=name[:80], code="unknown_parameter"
            )
        if name in REFUSED_UNLESS and value is not None and value != REFUSED_UNLESS[name]:
            raise RequestRefusedError(
                400,
                f"this server does not do {name!r}; leave it out",
                param=name,
                code="unsupported_parameter",
            )


def _read_messages(value: Any, folder: ModelFolder) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise _refuse("messages", f"must be a list of at least one message, not {_kind(value)}")
    messages = [_read_message(message, f"messages[{index}]", folder) for index, message in enumerate(value)]
    if messages[-1]["role"] not in ("user", "tool"):
        raise _refuse(f"messages[{len(messages) - 1}].role", "the last message must be from 'user' or 'tool'")
    return messages


def _read_message(message: Any, where: str, folder: ModelFolder) -> dict[str, Any]:
    """Read a message into the form in which the trainer renders it."""
    if not isinstance(message, dict):
        raise _refuse(where, f"must be an object with role and content, not {_kind(message)}")
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ROLES:
        raise _refuse(f"{where}.role", f"must be one of {', '.join(ROLES)}, not {str(role)[:80]!r}")
    if message.get("function_call"):
        raise _refuse(f"{where}.function_call", "is not served here; use tool_calls")
    calls = message.get("tool_calls")
    if calls and role != "assistant":
        raise _refuse(f"{where}.tool_calls", "only a message from 'assistant' calls tools")
    content = "" if calls and message.get("content") is None else _read_content(message.get("content"), where)
    # The trainer learned answers without white space at their edges, and so without it in the history.
    read = {"role": role, "content": folder.neutralise(content.strip() if role == "assistant" else content)}
    if calls:
        read["tool_calls"] = folder.neutralise_value(_read_calls(calls, f"{where}.tool_calls"))
    for name in ("name", "tool_call_id"):
        if role == "tool" and isinstance(message.get(name), str):
            read[name] = folder.neutralise(message[name])
    return read


def _read_content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise _refuse(f"{where}.content", f"must be text or a list of text parts, not {_kind(content)}")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _refuse(f"{where}.content[{index}]", "only parts of type 'text' are served here")
    return "\n".join(part["text"] for part in content)  # as the training data's parts are joined


def _read_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise _refuse(where, f"must be a list of calls, not {_kind(calls)}")
    read = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise _refuse(where, "every call must have a function with a name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, dict):
            raise _refuse(where, f"the arguments of {function['name'][:80]!r} must be a JSON object")
        kept = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        read.append(kept | ({"id": call["id"]} if isinstance(call.get("id"), str) else {}))
    return read


def _read_tools(body: dict[str, Any], folder: ModelFolder) -> list[dict[str, Any]]:
    """Read what the prompt offers the model; a call comes back as the text that the model writes."""
    choice, tools = body.get("tool_choice"), body.get("tools") or []
    if choice not in (None, "none", "auto"):
        raise _refuse("tool_choice", f"must be 'none' or 'auto', not {str(choice)[:80]!r}: no call can be forced here")
    if not isinstance(tools, list):
        raise _refuse("tools", f"must be a list of tools, not {_kind(tools)}")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise _refuse("tools", "every tool must have a function with a name")
    return [] if choice == "none" else folder.neutralise_value(tools)


def _read_max_tokens(body: dict[str, Any]) -> int | None:
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return _read_integer(body, name, low=1, high=2**31 - 1)


def _fit_max_tokens(asked: int | None, num_prompt_tokens: int, context: int | None) -> int:
    if context is None:
        return asked or DEFAULT_MAX_TOKENS
    room = context - num_prompt_tokens
    if room < (asked or 1):
        wanted = f" and {asked} tokens of answer were asked for" if asked else ""
        raise RequestRefusedError(
            400,
            f"the context of this model is {context} tokens; the messages have {num_prompt_tokens}{wanted}; "
            "shorten the messages or ask for fewer tokens",
            param="messages", code="context_length_exceeded",
        )  # fmt: skip
    return asked or min(DEFAULT_MAX_TOKENS, room)


def _read_integer(body: dict[str, Any], name: str, *, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _refuse(name, f"must be a whole number from {low} to {high}, not {str(value)[:80]!r}")
    return value


def _read_number(body: dict[str, Any], name: str, default: float, *, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _refuse(name, f"must be a number from {low} to {high}, not {str(value)[:80]!r}")
    return float(value)


def _read_stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or len(texts) > 4 or not all(isinstance(text, str) and text for text in texts):
        raise _refuse("stop", "must be a text or a list of at most 4 texts, none of them empty")
    return tuple(texts)


def _read_stream(value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _refuse("stream", f"must be true or false, not {str(value)[:80]!r}")
    return bool(value)


def _refuse(param: str, message: str) -> RequestRefusedError:
    return RequestRefusedError(400, f"{param}: {message}", param=param, code="invalid_value")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return "an empty list" if value == [] else kinds.get(type(value), "a number")
