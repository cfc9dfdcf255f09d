"""Chat templates in the form of the common families, each with what it must print, said a second time without Jinja."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Family:
    """A template and its text, piece by piece.

    Args:
        opening, closing: around a message, by role ("" is any other); closing as (stop token, what follows it).
        begin, end: before the first and behind the last message.
        thinking: what the model writes before an answer.
    """

    name: str
    template: str
    opening: dict[str, str]
    closing: dict[str, tuple[str, str]]
    begin: str = ""
    end: str = ""
    thinking: str = ""
    special: tuple[str, ...] = ()
    tokens: dict[str, str] = field(default_factory=dict)

    def closing_of(self, role: str) -> tuple[str, str]:
        """The stop token of a message and what follows it."""
        return self.closing[role] if role in self.closing else self.closing[""]

    def pieces(self, messages: list[dict]) -> list[tuple[str, bool]]:
        """The rendered text in pieces, and whether each is learned."""
        pieces = [(self.begin, False)]
        for message in messages:
            role = message["role"]
            stop, behind = self.closing_of(role)
            opening = (self.opening[role] if role in self.opening else self.opening[""]).replace("ROLE", role)
            said = role == "assistant"
            text = (self.thinking if said else "") + message["content"].strip() + stop
            pieces += [(opening, False), (text, said and message.get("train", True)), (behind, False)]
        return [*pieces, (self.end, False)]


def _phi_3(system: str) -> str:
    return (
        "{% for message in messages %}{% if message['role'] == 'system'" + system + " %}{{ '<|system|>\n' + "
        "message['content'] + '<|end|>\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] "
        "+ '<|end|>\n' }}{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + "
        "'<|end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}"
        "{{ eos_token }}{% endif %}"
    )


_PHI = {"eos_token": "<|endoftext|>", "bos_token": "<s>"}
_CHATML = ("<|im_start|>", "<|im_end|>")
PHI_3 = Family(
    "phi-3", _phi_3(""), {"": "<|ROLE|>\n"}, {"": ("<|end|>", "\n")}, end="<|endoftext|>", tokens=_PHI
)  # fmt: skip
PHI_3_5 = Family(
    "phi-3.5", _phi_3(" and message['content']"), {"": "<|ROLE|>\n"}, {"": ("<|end|>", "\n")}, end="<|endoftext|>",
    tokens=_PHI,
)  # fmt: skip
PHI_4_MINI = Family(
    "phi-4-mini",
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not "
    "none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + "
    "'<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
    {"": "<|ROLE|>"},
    {"": ("<|end|>", "")},
    end="<|endoftext|>",
    special=("<|tool|>", "<|/tool|>"),
    tokens=_PHI,
)
CHATML = Family(
    "chatml",
    "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' "
    "}}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    {"": "<|im_start|>ROLE\n"},
    {"": ("<|im_end|>", "\n")},
    special=_CHATML,
    tokens={"eos_token": "<|im_end|>"},
)
LLAMA_3 = Family(
    "llama-3",
    "{% for message in messages %}{% set text = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set text = bos_token + text %}{% endif %}"
    "{{ text }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    {"": "<|start_header_id|>ROLE<|end_header_id|>\n\n"},
    {"": ("<|eot_id|>", "")},
    begin="<|begin_of_text|>",
    special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    tokens={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
)
GEMMA = Family(
    "gemma",
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% set role = 'model' if message['role'] == 'assistant' "
    "else message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    {"assistant": "<start_of_turn>model\n", "": "<start_of_turn>ROLE\n"},
    {"": ("<end_of_turn>", "\n")},
    begin="<bos>",
    special=("<bos>", "<start_of_turn>", "<end_of_turn>"),
    tokens={"bos_token": "<bos>", "eos_token": "<end_of_turn>"},
)
MISTRAL = Family(
    "mistral",
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + "
    "' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}",
    {"user": "[INST] ", "assistant": ""},
    {"user": (" [/INST]", ""), "": ("</s>", "")},
    begin="<s>",
    thinking=" ",  # the space in front of an answer is the model's to write
    tokens={"bos_token": "<s>", "eos_token": "</s>"},
)
ODD = Family(
    "odd",
    "{% if messages | length > 0 %}== {{ messages[0].role }} begins ==\n\n{% endif %}{% for message in messages %}"
    "{% if message.role == 'assistant' %}~> {{ message.content }}<stop>\n---\n{% else %}{{ message.role | upper }}: "
    "{{ message.content | replace('\t', ' ') }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}~> {% endif %}",
    {"user": "USER: ", "system": "SYSTEM: ", "assistant": "~> "},
    {"assistant": ("<stop>", "\n---\n"), "": ("\n", "")},
    begin="== user begins ==\n\n",
    special=("<stop>",),
    tokens={"eos_token": "<stop>"},
)
# With a system message they begin otherwise; the tests leave it out for these.
WITHOUT_SYSTEM = (GEMMA, MISTRAL, ODD)
FAMILIES = (PHI_3, PHI_3_5, PHI_4_MINI, CHATML, LLAMA_3, GEMMA, MISTRAL, ODD)


def trl_template(name: str) -> str:
    """A template that TRL is installed with."""
    found = find_spec("trl")
    if found is None or not found.origin:
        pytest.skip("TRL is not installed")
    return (Path(found.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def dressed(tokenizer, family: Family):
    """The tokenizer with a family's tokens and template."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)}, False)
    for name, token in family.tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.chat_template = family.template
    return tokenizer
