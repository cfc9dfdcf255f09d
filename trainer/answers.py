"""Finds what the assistant says in a rendered conversation: from where generation begins through the stop token.

Proved by rendering prefixes: what stands before an answer is, character for character, the prompt that generation is
given for it, and the conversation that ends with it begins the same way. That takes two renderings an answer, so it is
done once for every shape of conversation; others of the shape are read off their one rendering, at the control tokens
that the template puts before an answer and behind it, which no text contains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.chats import Chat, Message
from trainer.control_tokens import ControlTokens
from trainer.errors import TrainerError

_PROBE = ("Xqaskz", "Xqanswerz", "Xqmorez", "Xqagainz")


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer in the rendered text: characters start to end, the stop token from stop_start on.

    Args:
        message: which message of the conversation it is.
        learned: False for an answer that is context only.
    """

    start: int
    stop_start: int
    end: int
    message: int
    learned: bool = True


class AnswerFinder:
    """Finds answers in what one chat template renders.

    Args:
        render: of messages, tools and whether a prompt ends it.
        control: the tokens that no text of a conversation contains.
    """

    def __init__(self, render: Callable[[Sequence[Message], Sequence[Any], bool], str], control: ControlTokens) -> None:
        self._render = render
        self._control = control
        self._opening, self._stop = self._read_landmarks()
        self._proved: dict[Any, bool] = {}

    def find(self, text: str, messages: Sequence[Message], tools: Sequence[Any], chat: Chat) -> list[Turn]:
        """The answers that can be learned, in order; the conversation ends with one.

        Raises:
            TrainerError: names the row and what about the template makes it unfit.
        """
        shape = (bool(tools), *((message["role"], message["content"] == "", *message) for message in messages))
        quick = self._by_landmarks(text, messages)
        if quick is not None and self._proved.get(shape):
            return quick
        proved = self._by_prefixes(text, messages, tools, chat)
        self._proved.setdefault(shape, quick == proved)
        return proved

    def _read_landmarks(self) -> tuple[str, str]:
        """What stands before every answer and what behind it, empty where that is not told by control tokens."""
        talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(_PROBE)]
        try:
            text, prompt = self._render(talk, (), False), self._render(talk[:3], (), True)
            first = self._render(talk[:2], (), False)
        except Exception:  # a template that refuses this is asked about every conversation by itself
            return "", ""
        stop = self._control.pattern.search(text, text.find(_PROBE[3]) + len(_PROBE[3]))
        if stop is None:
            return "", ""
        keeps_answers = text.startswith(first[: first.find(_PROBE[1]) + len(_PROBE[1])])
        if not (keeps_answers and text.startswith(prompt)):  # then each conversation is asked by itself
            return "", stop[0]
        between = prompt[prompt.find(_PROBE[2]) + len(_PROBE[2]) :]
        opening = between.removeprefix(stop[0]).lstrip()
        return (opening, stop[0]) if self._control.pattern.search(opening) else ("", stop[0])

    def _by_landmarks(self, text: str, messages: Sequence[Message]) -> list[Turn] | None:
        wanted = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not self._opening or text.count(self._opening) != len(wanted):
            return None
        answers, start = [], 0
        for index in wanted:
            opened = text.find(self._opening, start)
            start = opened + len(self._opening)
            stop = text.find(self._stop, start)
            if min(opened, stop) < 0 or text.find(messages[index]["content"], start, stop) < 0:
                return None
            answers.append(Turn(start, stop, stop + len(self._stop), index))
            start = stop
        return answers

    def _by_prefixes(self, text: str, messages: Sequence[Message], tools: Sequence[Any], chat: Chat) -> list[Turn]:
        _require_every_message(text, messages, tools, chat)
        answers, last = [], len(messages) - 1
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], tools, True) if index else ""
            until = text if index == last else self._render(messages[: index + 1], tools, False)
            if not (text.startswith(prompt) and until.startswith(prompt)):
                if index == last:
                    raise broken(chat, "the prompt of an answer is not the beginning of the conversation with it")
                continue
            answer = self._answer(until, len(prompt), index, message, chat)
            # Some templates render an answer differently once it is history; such an answer is context only.
            if text.startswith(until[: answer.end]):
                answers.append(answer)
            elif text.startswith(until[: answer.stop_start]):  # what ends it here begins the next message there
                raise broken(chat, "answers have no stop token of their own")
        return answers

    def _answer(self, text: str, start: int, index: int, message: Message, chat: Chat) -> Turn:
        found = text.find(message["content"], start)
        if found < 0:
            raise broken(chat, "an answer does not follow its prompt")
        behind = found + len(message["content"])
        if message.get("tool_calls"):  # a call may hold control tokens of its own
            begin = text.find(self._stop, behind) if self._stop else -1
            if begin < 0:
                raise broken(chat, "a tool call is not followed by a stop token")
            return Turn(start, begin, begin + len(self._stop), index)
        stop = self._control.pattern.search(text, behind)
        if stop is None or text[behind : stop.start()].strip():
            raise broken(chat, "an answer is not followed by a stop token")
        if text[start:found].strip() and self._control.pattern.search(text, start, found):
            raise broken(chat, "the template puts control tokens between a prompt and its answer")
        return Turn(start, stop.start(), stop.end(), index)


def broken(chat: Chat, what: str) -> TrainerError:
    """The chat template cannot be trained on, shown by this conversation."""
    return TrainerError(
        f"{chat.where}: the chat template cannot be trained on: {what}.",
        "Correct the model's chat template, or choose another base model.",
        "configuration",
    )


def _require_every_message(text: str, messages: Sequence[Message], tools: Sequence[Any], chat: Chat) -> None:
    def require(wanted: str, what: str) -> None:
        # Some templates write a tool's response as a JSON string.
        if not any(
            form in text for form in (wanted, json.dumps(wanted)[1:-1], json.dumps(wanted, ensure_ascii=False)[1:-1])
        ):
            raise TrainerError(
                f"{chat.where}: the chat template leaves out {what}.",
                "Remove the row, or choose a model whose template has a place for it.",
            )

    for message in messages:
        if message["role"] != "assistant" or message is messages[-1]:  # earlier answers may be rewritten
            require(message["content"].strip(), f"the {message['role']} message")
        for call in message.get("tool_calls", ()):
            require(call["function"]["name"], "a tool call")
    for tool in tools:
        require(tool["function"]["name"], "a tool")
