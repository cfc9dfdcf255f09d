"""A tokenizer as trainer.chat_template needs one, without transformers: a process that only tokenises starts at once.

It renders and encodes as the transformers tokenizer it was described from does, with the same libraries below.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class TokenizerSpec:
    """All of a tokenizer that decides a conversation's tokens.

    Args:
        backend: tokenizer.json as text, without truncation and padding.
        special_tokens_map: what the template is given besides the messages, such as eos_token.
        added_tokens: id, text and whether it is special, of each token besides the vocabulary.
        special_tokens: the texts of those in special_tokens_map.
    """

    name: str
    backend: str
    chat_template: str
    special_tokens_map: dict[str, Any]
    added_tokens: tuple[tuple[int, str, bool], ...]
    special_tokens: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> TokenizerSpec:
        """Describe a fast tokenizer of transformers."""
        added = [(number, token.content, token.special) for number, token in tokenizer.added_tokens_decoder.items()]
        backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        return cls(
            name=str(tokenizer.name_or_path),
            backend=json.dumps(backend, ensure_ascii=False),
            chat_template=tokenizer.get_chat_template(),
            special_tokens_map={key: _plain(value) for key, value in tokenizer.special_tokens_map.items()},
            added_tokens=tuple(added),
            special_tokens=tuple(tokenizer.all_special_tokens),
        )


@dataclass(frozen=True, slots=True)
class _AddedToken:
    content: str
    special: bool

    def __str__(self) -> str:
        return self.content


def _plain(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, list | tuple) else str(value)


class LightTokenizer:
    """The members of a transformers tokenizer that ChatEncoder uses."""

    is_fast = True

    def __init__(self, spec: TokenizerSpec) -> None:
        from tokenizers import Tokenizer

        self.name_or_path = spec.name
        self.chat_template = spec.chat_template
        self.all_special_tokens = list(spec.special_tokens)
        self.added_tokens_decoder = {number: _AddedToken(text, special) for number, text, special in spec.added_tokens}
        self.special_tokens_map = spec.special_tokens_map
        self.backend = Tokenizer.from_str(spec.backend)
        self._render = compiled_template(spec.chat_template)
        # What stands for text outside the vocabulary, when that does not cover all text.
        unknown = json.loads(spec.backend)["model"].get("unk_token")
        self.unknown_token_id = self.backend.token_to_id(unknown) if unknown else None

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        tools: Any = None,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of the conversation."""
        assert not tokenize
        return self._render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.special_tokens_map,
        )

    def __call__(
        self, text: str, *, add_special_tokens: bool = False, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        """Ids of the text, and where in it each token stands."""
        encoding = self.backend.encode(text, add_special_tokens=add_special_tokens)
        found = {"input_ids": encoding.ids}
        return found | {"offset_mapping": encoding.offsets} if return_offsets_mapping else found

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        """The text of the tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of one token."""
        return self.backend.token_to_id(token)


def compiled_template(source: str) -> Callable[..., str]:
    """A chat template as a function of its variables, in the environment that transformers gives it."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_extension(), jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda wanted: datetime.now().strftime(wanted)
    template = environment.from_string(source)
    template.globals = dict(template.globals)  # each rendering copies them, and a chain of dictionaries is slow to copy
    return template.render


def _generation_extension() -> Any:
    import jinja2
    from jinja2.ext import Extension

    class Generation(Extension):
        """Reads {% generation %}, which marks answers for other trainers, as if it were not there."""

        tags = {"generation"}  # noqa: RUF012 - so jinja declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    return Generation


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> str:
    import jinja2

    raise jinja2.exceptions.TemplateError(message)
