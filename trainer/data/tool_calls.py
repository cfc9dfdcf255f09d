"""Tool calls and definitions of any dialect, in OpenAI's structure, so that the chat template decides their text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from trainer.data.values import RejectedRecordError, kind_of


def calls_of(turn: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The calls of an assistant turn, from `tool_calls` or OpenAI's earlier `function_call`; empty when it makes none.

    Raises:
        RejectedRecordError: a call without a function's name, or with arguments that are no object.
    """
    calls = turn.get("tool_calls") or turn.get("function_call") or []
    if isinstance(calls, str):
        calls = _read_json(calls)
        if not isinstance(calls, dict | list):
            raise RejectedRecordError(f"the tool calls of {where} are text, but not JSON")
    calls = calls if isinstance(calls, list) else [calls]
    return [_call(call, f"tool call {number} of {where}") for number, call in enumerate(calls, 1)]


def calls_in_content(content: Any) -> list[dict[str, Any]]:
    """The calls that a ShareGPT `function_call` turn holds as JSON, one or a list; empty when it holds other text."""
    value = _read_json(content) if isinstance(content, str) else content
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return []
    return [_call(call, f"tool call {number}") for number, call in enumerate(calls, 1)]


def canonical_tools(value: Any, column: str) -> list[dict[str, Any]]:
    """Tool definitions as OpenAI writes them, from a list, JSON text, or functions without the object around them.

    Raises:
        RejectedRecordError: what is there defines no functions.
    """
    tools = _definitions(value, f"{column!r}")
    tools = tools if isinstance(tools, list) else [tools]
    return [_tool(tool, f"tool {number} of {column!r}") for number, tool in enumerate(tools, 1)]


def settle_ids(messages: list[dict[str, Any]]) -> None:
    """Keep the ids that tie results to calls, and no others: a template may write them out to be learned.

    Raises:
        RejectedRecordError: a result names a call that the turn it answers does not make.
    """
    named = {message.get("tool_call_id") for message in messages}
    ids: set[str] = set()
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            calls = message.get("tool_calls", [])
            ids = {call["id"] for call in calls if "id" in call}
            for call in calls:
                if call.get("id") not in named:
                    call.pop("id", None)
        elif "tool_call_id" in message and not ids:
            del message["tool_call_id"]
        elif "tool_call_id" in message and message["tool_call_id"] not in ids:
            raise RejectedRecordError(f"message {number} answers a tool call that was not made: its id is of none")


def strings_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value, the keys of its objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RejectedRecordError(f"{where} has no function name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        parsed = _read_json(arguments) if arguments.strip() else {}
        if not isinstance(parsed, dict):
            raise RejectedRecordError(f"the arguments of {where} are {kind_of(arguments)}, not an object as JSON")
        arguments = parsed
    elif arguments is None:
        arguments = {}
    elif not isinstance(arguments, dict):
        raise RejectedRecordError(f"the arguments of {where} are {kind_of(arguments)}, not an object")
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) and call["id"] else made


def _tool(tool: Any, where: str) -> dict[str, Any]:
    tool = _definitions(tool, where)
    kind = tool.get("type", "function") if isinstance(tool, dict) else None
    if kind is None:
        raise RejectedRecordError(f"{where} is {kind_of(tool)}, not an object that defines a function")
    if kind != "function":
        raise RejectedRecordError(f"{where} is of type {kind!r}; only functions can be trained on")
    function = tool.get("function", {key: value for key, value in tool.items() if key != "type"})
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RejectedRecordError(f"{where} has no function name")
    return {"type": "function", "function": function}


def _definitions(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    parsed = _read_json(value)
    if not isinstance(parsed, dict | list):
        raise RejectedRecordError(f"{where} is {kind_of(value)}, not a list of tools or one as JSON")
    return parsed


def _read_json(text: str) -> Any:
    """The value of a JSON text; None when it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
