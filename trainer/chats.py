"""Reads prepared chats: canonical JSONL, one conversation a line, every refusal by file and line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import TrainerError

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation and where it stands.

    Args:
        where: file and line, for messages to a person.
    """

    messages: tuple[Message, ...]
    where: str


def read_chats(path: Path) -> list[Chat]:
    """Read every conversation of a canonical JSONL file.

    Raises:
        TrainerError: the file cannot be read, holds no chat, or a line is not a chat.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            chats = [
                Chat(_messages(line, f"{path.name} line {number}"), f"{path.name} line {number}")
                for number, line in enumerate(file, start=1)
                if line.strip()
            ]
    except UnicodeDecodeError as error:
        raise TrainerError(f"{path} is not UTF-8: {error.reason}.", "Prepare it with trainer.data.") from error
    except OSError as error:
        raise TrainerError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    if not chats:
        raise TrainerError(f"{path} holds no chat.", "Give a file with at least one conversation.")
    return chats


def _messages(line: str, where: str) -> tuple[Message, ...]:
    fix = 'Each line is {"messages": [{"role": ..., "content": ...}, ...]}; trainer.data writes it.'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise TrainerError(f"{where} is not JSON: {error}.", fix) from error
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages:
        raise TrainerError(f"{where} has no list of messages.", fix)
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise TrainerError(f"{where} has a message without a text role and content.", fix)
    if not any(message["role"] == "assistant" for message in messages):
        raise TrainerError(f"{where} has no assistant message, so there is nothing to learn from it.", fix)
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)
