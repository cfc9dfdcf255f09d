"""Makes a model's chat template fit to train with and to serve: once, after loading, and packaged as it is then.

What a template does is asked of the template itself, by rendering conversations with marked texts. One that knows
system messages, tools and calls is left alone; what it ignores is turned into what it knows (trainer.tool_template).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.chats import Message
from trainer.errors import TrainerError
from trainer.rendering import try_render
from trainer.tool_template import Extension, prelude, split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
# No template writes or alters these.
_SYSTEM, _ASK, _ANSWER, _ASK_MORE, _ANSWER_MORE, _RESULT, _NAME, _VALUE, _TOOL = (
    f"Xq{word}z" for word in ("system", "ask", "answer", "more", "again", "result", "name", "value", "tool")
)
_CALL = {"type": "function", "function": {"name": _NAME, "arguments": {"key": _VALUE}}}
_TOOLS = ({"type": "function", "function": {"name": _TOOL, "description": _VALUE, "parameters": {"type": "object"}}},)


def adapt_template(tokenizer: PreTrainedTokenizerBase, system_message: str | None) -> list[str]:
    """Extend the tokenizer's chat template where it must be; return what was done and why, one line each.

    A template that was extended before stays as it is, unless another system message is wanted.

    Args:
        system_message: put before conversations that have none; None for nothing, "" for an empty turn.
    Raises:
        TrainerError: the tokenizer has no chat template.
    """
    reasons: list[str] = []
    template = _only_template(tokenizer, reasons)
    before, own = split(template)
    if before and (system_message is None or before == prelude(_extension(tokenizer, own, system_message))):
        return reasons
    own = _without_generation(own)
    own = _stable(tokenizer, own, reasons)
    extension = _extension(tokenizer, own, system_message)
    tokenizer.chat_template = prelude(extension) + own if extension else own
    return reasons + _reasons(extension)


def is_adapted(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template was extended before, as a packaged model's is."""
    return isinstance(tokenizer.chat_template, str) and bool(split(tokenizer.chat_template)[0])


def _only_template(tokenizer: PreTrainedTokenizerBase, reasons: list[str]) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        reasons.append(f"chat_template=default (of {', '.join(sorted(template))}; one must do for all requests)")
        template = template.get("default")
        tokenizer.chat_template = template
    if not template:
        raise TrainerError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template.",
            "Choose an instruct model, which has one.",
            "configuration",
        )
    return template


def _without_generation(template: str) -> str:
    """Marks of what the assistant says mean nothing to a server; an `if` in their place strips the same space."""
    return _GENERATION.sub(lambda match: f"{{%{match[1]} {'endif' if match[2] else 'if true'} {match[3]}%}}", template)


def _stable(tokenizer: PreTrainedTokenizerBase, own: str, reasons: list[str]) -> str:
    """The template itself, or TRL's of the same family when answers change once they are history."""
    if _keeps_answers(tokenizer, own):
        return own
    for original, training in _trl_templates():
        replacement = _without_generation(training)
        if own == original and _keeps_answers(tokenizer, replacement):
            reasons.append("chat_template=TRL's of the same family (the model's own rewrites answers in the history)")
            return replacement
    reasons.append("learned=last answers only (the chat template rewrites earlier ones)")
    return own


def _keeps_answers(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    talk = _talk((_ASK, _ANSWER, _ASK_MORE, _ANSWER_MORE))
    alone = try_render(tokenizer, talk[:2], template=template)
    until = alone.find(_ANSWER) + len(_ANSWER)
    return try_render(tokenizer, talk, template=template).startswith(alone[:until])


def _trl_templates() -> list[tuple[str, str]]:
    """Pairs of a model's template and the one TRL trains it with."""
    from importlib.util import find_spec

    found = find_spec("trl")  # reading the files saves importing it
    folder = Path(found.origin or "").parent / "chat_templates" if found else Path()
    pairs = []
    for training in sorted(folder.glob("*_training.jinja")):
        original = training.with_name(training.name.replace("_training", ""))
        if original.is_file():
            pairs.append((original.read_text(encoding="utf-8"), training.read_text(encoding="utf-8")))
    return pairs


def _extension(tokenizer: PreTrainedTokenizerBase, own: str, system_message: str | None) -> Extension:
    def shows(messages: Sequence[Message], wanted: Sequence[str], **options: Any) -> bool:
        text = try_render(tokenizer, messages, template=own, **options)
        return all(each in text for each in wanted)

    talk = _talk((_ASK, _ANSWER))
    with_system = [{"role": "system", "content": _SYSTEM}, *talk]
    knows_system = shows(with_system, (_SYSTEM, _ASK))
    return Extension(
        system_message=system_message,
        tools=_form_of_tools(shows, talk, with_system),
        calls=not shows([*_called(), *talk], (_NAME, _VALUE)),
        responses=not shows([*_called(), *talk], (_RESULT,)) and not shows([*_told(), *talk[1:]], (_RESULT,)),
        join_system=not knows_system,
    )


def _form_of_tools(shows: Callable[..., bool], talk: list[Message], with_system: list[Message]) -> str:
    if shows(talk, (_TOOL, _VALUE), tools=_TOOLS) or shows(with_system, (_TOOL, _VALUE), tools=_TOOLS):
        return ""
    keyed = [{**with_system[0], "tools": _VALUE}, *talk]
    return "key" if shows(keyed, (_VALUE,)) else "text"


def _talk(texts: Sequence[str]) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _called() -> list[Message]:
    """A question, a call, its result and an answer."""
    call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    return [*_talk((_ASK,)), call, {"role": "tool", "content": _RESULT, "name": _NAME}, _talk(("", _ANSWER))[1]]


def _told() -> list[Message]:
    """A question, a call written as text, its result."""
    return [*_talk((_ASK_MORE, _ANSWER_MORE)), {"role": "tool", "content": _RESULT, "name": _NAME}]


def _reasons(extension: Extension) -> list[str]:
    parts = (
        (extension.tools == "text", "tools"),
        (extension.tools == "key", "tools, as the system message's key"),
        (extension.calls, "tool calls"),
        (extension.responses, "tool responses"),
        (extension.join_system, "system messages, joined to the first user turn"),
    )
    ignored = ", ".join(name for wanted, name in parts if wanted)
    reasons = [f"chat_template=extended (the model's own ignores {ignored})"] if ignored else []
    if extension.system_message is not None:
        reasons.append(f"system_message={extension.system_message[:60]!r} (train.system_message)")
    return reasons
