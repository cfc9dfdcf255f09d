"""Chat templates, extended where they must be, and what of their text is learned."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

import chat_families as families
from chat_families import FAMILIES, WITHOUT_SYSTEM, Family, dressed, trl_template
from conftest import chat
from transformers import AutoTokenizer

from trainer.chat_template import IGNORED, ChatEncoder
from trainer.chats import Chat
from trainer.rendering import render
from trainer.templates import adapt_template, is_adapted
from trainer.tool_template import split

TALK = chat("What do bees make?", "Bees make honey.", "And cows?", "\n Cows eat grass.\n\n- 草 🐄 ")["messages"]
SYSTEM = {"role": "system", "content": "Be brief; {{ braces }} and 'quotes' \\ stay, 简短。"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": 'Köln "x"', "days": [1, 2]}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells <it>", "parameters": {}}}
TOOL_TALK = [
    {"role": "user", "content": "How is the weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": '{"degrees": 12}', "name": "weather"},
    {"role": "tool", "content": "rain", "name": "weather"},
    {"role": "assistant", "content": "12 degrees."},
]
by_name = {"ids": lambda family: family.name}


@pytest.fixture(scope="module")
def plain(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(params=FAMILIES, **by_name)
def family(request) -> Family:
    return request.param


@pytest.fixture
def tokenizer(plain, family):
    return dressed(copy.deepcopy(plain), family)


def expected_labels(tokenizer, family: Family, messages: list[dict]) -> tuple[list[int], list[int]]:
    """Tokens and labels told from the family's pieces, not from its template."""
    pieces = family.pieces(messages)
    encoding = tokenizer("".join(text for text, _ in pieces), add_special_tokens=False, return_offsets_mapping=True)
    learned = [flag for text, flag in pieces for _ in text]
    offsets = encoding["offset_mapping"]
    ids = encoding["input_ids"]
    return ids, [token if learned[start] else IGNORED for token, (start, _) in zip(ids, offsets, strict=True)]


@pytest.mark.parametrize("adapted", [False, True])
def test_the_answers_and_their_stop_tokens_are_learned(tokenizer, family, adapted):
    """In every family, before and after adapting, exactly what the assistant says and its stop token is learned."""
    if adapted:
        adapt_template(tokenizer, None)
    talks = [TALK, TALK[:2], [*TALK[:1], TALK[1] | {"train": False}, *TALK[2:]]]
    if family not in WITHOUT_SYSTEM:
        talks += [[SYSTEM, *talk] for talk in talks]
    encoder = ChatEncoder(tokenizer)
    for messages in talks + talks:  # the second time read off, the first proved by prefixes
        encoded = encoder.encode(Chat(tuple(messages), "row"), 4096)
        assert (encoded.input_ids, encoded.labels) == expected_labels(tokenizer, family, messages)
    stops = tokenizer.convert_ids_to_tokens(list(encoder.stop_token_ids))
    assert stops == [family.closing_of("assistant")[0]]


def test_adapting_changes_no_plain_conversation(tokenizer, family):
    """What the model's own template renders, the extended one renders alike, prompt or not; twice is once."""
    own = tokenizer.chat_template
    adapt_template(tokenizer, None)
    once = tokenizer.chat_template
    assert split(once)[1] == own
    assert not adapt_template(tokenizer, None)
    assert tokenizer.chat_template == once
    talks = [TALK, TALK[:3]] + ([[SYSTEM, *TALK]] if family not in WITHOUT_SYSTEM else [])
    for messages in talks:
        for prompt in (False, True):
            assert render(tokenizer, messages, prompt=prompt) == render(
                tokenizer, messages, prompt=prompt, template=own
            )


def test_tool_conversations_are_learned_in_every_family(tokenizer, family):
    """Tools, calls and responses are in the text; calls are learned like answers, responses are not."""
    adapt_template(tokenizer, None)
    encoder = ChatEncoder(tokenizer)
    encoded = encoder.encode(Chat(tuple(TOOL_TALK), "row", (TOOL,)), 4096)
    text = tokenizer.decode(encoded.input_ids)
    learned = tokenizer.decode([label for label in encoded.labels if label != IGNORED])
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln \\"x\\"", "days": [1, 2]}}\n</tool_call>'
    stop = family.closing_of("assistant")[0]
    lead = family.thinking
    assert learned == f"{lead}{call}\n{call}{stop}{lead}12 degrees.{stop}"
    assert '"description": "Tells <it>"' in text
    assert '{"degrees": 12}' in text
    assert encoded.expected == "12 degrees."


def test_the_form_of_tools_is_hermes(plain):
    """The whole text of a conversation with tools, for a template that knows none, letter for letter."""
    tokenizer = dressed(copy.deepcopy(plain), families.PHI_3)
    adapt_template(tokenizer, None)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln \\"x\\"", "days": [1, 2]}}\n</tool_call>'
    tool = '{"type": "function", "function": {"name": "weather", "description": "Tells <it>", "parameters": {}}}'
    system, rest = render(tokenizer, [SYSTEM, *TOOL_TALK], tools=[TOOL, TOOL]).split("<|user|>\n", 1)
    assert system.startswith(f"<|system|>\n{SYSTEM['content']}\n\n")
    assert f"<tools>\n{tool}\n{tool}\n</tools>" in system
    assert '<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call><|end|>\n' in system
    assert rest == (
        f"How is the weather?<|end|>\n<|assistant|>\n{call}\n{call}<|end|>\n<|user|>\n"
        '<tool_response>\n{"degrees": 12}\n</tool_response>\n<tool_response>\nrain\n</tool_response><|end|>\n'
        "<|assistant|>\n12 degrees.<|end|>\n<|endoftext|>"
    )


def test_a_shape_once_proved_is_rendered_once(tokenizer, family):
    """Where control tokens stand before answers, the second conversation of a shape costs one rendering."""
    encoder, rendered = ChatEncoder(tokenizer), []
    of_template = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda *arguments, **options: (
        rendered.append(1) or of_template(*arguments, **options)
    )
    for _ in range(2):
        rendered.clear()
        encoder.render(Chat(tuple(TALK), "row"))
    told_by_tokens = family not in (families.MISTRAL, families.ODD)
    assert len(rendered) == (1 if told_by_tokens else 4)


def test_a_system_message_is_inserted_where_there_is_none(tokenizer, family):
    """train.system_message stands before a conversation without one, as if it had been written there."""
    adapt_template(tokenizer, None)
    wanted = render(tokenizer, [SYSTEM, *TALK])
    adapt_template(tokenizer, SYSTEM["content"])
    assert is_adapted(tokenizer)
    assert render(tokenizer, TALK) == wanted
    assert SYSTEM["content"] in wanted
    other = {"role": "system", "content": "Other."}
    assert SYSTEM["content"] not in render(tokenizer, [other, *TALK])
    once = tokenizer.chat_template
    assert not adapt_template(tokenizer, SYSTEM["content"])
    assert not adapt_template(tokenizer, None), "a packaged model keeps its own"
    assert tokenizer.chat_template == once


def test_an_empty_system_turn_can_be_asked_for(plain):
    """train.system_message: "" gives the empty turn that the tutorial trained with."""
    tokenizer = dressed(copy.deepcopy(plain), families.PHI_3)
    adapt_template(tokenizer, "")
    assert (
        render(tokenizer, TALK[:1], prompt=True)
        == "<|system|>\n<|end|>\n<|user|>\nWhat do bees make?<|end|>\n<|assistant|>\n"
    )


def test_phi_4_minis_tools_stand_where_it_wants_them(plain):
    """Tools become the system message's key, which this template reads."""
    tokenizer = dressed(copy.deepcopy(plain), families.PHI_4_MINI)
    adapt_template(tokenizer, None)
    text = render(tokenizer, TOOL_TALK[:1], tools=[TOOL], prompt=True)
    assert text.startswith('<|system|><|tool|>[{"type": "function"')
    assert "}]<|/tool|><|end|><|user|>How is" in text


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "phi3", "phi3_5", "gemma", "llama3"])
def test_published_templates_are_learned_from_alike(plain, name):
    """Of templates that TRL ships, known tools are left alone; our mask is TRL's but for what is behind the stop."""
    special = ("<|im_start|>", "<|im_end|>", *families.LLAMA_3.special, *families.GEMMA.special)
    stop = {"q": "<|im_end|>", "l": "<|eot_id|>", "p": "<|end|>", "g": "<end_of_turn>"}[name[0]]
    tokens = {"bos_token": "<bos>" if name == "gemma" else "<s>", "eos_token": "<|endoftext|>"}
    family = Family(name, trl_template(name), {}, {}, special=special, tokens=tokens)
    tokenizer = dressed(copy.deepcopy(plain), family)
    adapt_template(tokenizer, None)
    assert (split(tokenizer.chat_template)[0] == "") == (name in ("qwen2_5", "llama3_1"))
    encoded = ChatEncoder(tokenizer).encode(Chat((*TALK[:3], TALK[1]), "row"), 4096)
    runs = tokenizer.decode([label for label in encoded.labels if label != IGNORED])
    assert runs == f"Bees make honey.{stop}" * 2
    if name == "llama3_1":
        return  # TRL has no marks for it
    tokenizer.chat_template = trl_template(f"{name}_training")
    marked = tokenizer.apply_chat_template([*TALK[:3], TALK[1]], return_assistant_tokens_mask=True, return_dict=True)
    assert marked["input_ids"] == encoded.input_ids
    theirs = {i for i, mask in enumerate(marked["assistant_masks"]) if mask}
    ours = {i for i, label in enumerate(encoded.labels) if label != IGNORED}
    more = tokenizer.decode([encoded.input_ids[i] for i in sorted(theirs - ours)])
    assert ours <= theirs
    assert not more.replace("<|endoftext|>", "").strip()


def test_a_template_that_rewrites_its_answers_is_replaced(plain):
    """Qwen3 drops the thinking of earlier answers; TRL's template of the family keeps it, is packaged and learned."""
    family = Family(
        "qwen3", trl_template("qwen3"), {}, {}, special=families._CHATML, tokens={"eos_token": "<|im_end|>"}
    )
    tokenizer = dressed(copy.deepcopy(plain), family)
    assert any("TRL" in reason for reason in adapt_template(tokenizer, None))
    assert "generation" not in tokenizer.chat_template.replace("add_generation_prompt", "")
    once = tokenizer.chat_template
    assert not adapt_template(tokenizer, None)
    assert tokenizer.chat_template == once
    thought = [*TALK[:3], {"role": "assistant", "content": "<think>\nCows.\n</think>\n\nGrass."}]
    encoded = ChatEncoder(tokenizer).encode(Chat(tuple(thought), "row"), 4096)
    assert tokenizer.decode([label for label in encoded.labels if label != IGNORED]) == (
        "<think>\n\n</think>\n\nBees make honey.<|im_end|><think>\nCows.\n</think>\n\nGrass.<|im_end|>"
    )


def test_answers_that_become_other_text_in_the_history_are_context_only(plain):
    """Of a template that rewrites earlier answers, and that nobody can replace, only the last answer is learned."""
    rewriting = families.CHATML.template.replace(
        "message.content +", "(message.content if loop.last or message.role != 'assistant' else message.content[:5]) +"
    )
    tokenizer = dressed(copy.deepcopy(plain), families.CHATML)
    tokenizer.chat_template = rewriting
    assert any("last answers only" in reason for reason in adapt_template(tokenizer, None))
    encoder = ChatEncoder(tokenizer)
    for _ in range(2):
        record = chat("a", "Bees", "b", "Grass is green.", "c", "Cows eat grass.")
        encoded = encoder.encode(Chat(tuple(record["messages"]), "row"), 4096)
        learned = tokenizer.decode([label for label in encoded.labels if label != IGNORED])
        assert learned.endswith("Cows eat grass.<|im_end|>")
        assert "Grass is" not in learned
