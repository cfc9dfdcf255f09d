"""Chats to tokens and labels: only what the assistant says, with its stop token, is learned - and verified.

Works for every model with a chat template, by rendering the conversation up to each answer: what comes
before an answer in training is, token for token, what generation is given for it.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.chats import Chat, Message
from trainer.errors import TrainerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """One conversation as tokens.

    Args:
        input_ids: the conversation, cut at the maximum length.
        labels: the same length; -100 where nothing is learned.
        prompt_ids: what generation is given for the last answer, not cut.
        prompt: the messages before the last answer.
        expected: the last answer.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_ids: list[int]
    prompt: tuple[Message, ...]
    expected: str

    @property
    def question(self) -> str:
        """The last message before the last answer."""
        return self.prompt[-1]["content"] if self.prompt else ""

    @property
    def num_learned_tokens(self) -> int:
        """Labels that count; the first token predicts nothing, so its label never does."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer in the rendered text: characters start to end, the stop token from stop_start on.

    Args:
        learned: False for an answer that is context only.
    """

    start: int
    stop_start: int
    end: int
    learned: bool = True


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """One conversation as the template writes it, up to its last answer.

    Args:
        messages: what was rendered, its texts cleaned.
        turns: the answers that begin where their prompt ends, in order.
    """

    messages: tuple[Message, ...]
    text: str
    turns: tuple[Turn, ...]


class ChatEncoder:
    """Encodes conversations with a tokenizer's own chat template.

    Raises:
        TrainerError: the tokenizer has no chat template or gives no offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise TrainerError(
                f"The tokenizer of {tokenizer.name_or_path} has no chat template.",
                "Choose an instruct model, which has one.",
                "configuration",
            )
        if not tokenizer.is_fast:
            raise TrainerError(
                f"The tokenizer of {tokenizer.name_or_path} gives no offsets (it has no tokenizer.json).",
                "Choose a model with a tokenizer.json.",
                "configuration",
            )
        self.tokenizer = tokenizer
        specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        specials |= set(tokenizer.all_special_tokens)
        self._first_characters = {token[0] for token in specials}
        self._special = re.compile("|".join(re.escape(token) for token in sorted(specials, key=len, reverse=True)))
        self.stop_token_ids: set[int] = set()

    def render(self, chat: Chat) -> RenderedChat:
        """Render one conversation and find its answers; no tokens yet.

        Raises:
            TrainerError: names the row; the template refused it, or the answers are not where their prompts end.
        """
        messages = [self._cleaned(message) for message in chat.messages]
        last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
        messages = messages[: last + 1]
        text = self._render(messages, chat, prompt=False)
        return RenderedChat(tuple(messages), text, tuple(self._turns(messages, text, chat)))

    def encode(self, chat: Chat, max_length: int) -> EncodedChat:
        """Encode one conversation and verify its labels.

        Raises:
            TrainerError: names the row; the template refused it, or the labels are not the answers.
        """
        rendered = self.render(chat)
        messages, text, turns = rendered.messages, rendered.text, rendered.turns
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoding["input_ids"]), encoding["offset_mapping"]
        labels = [IGNORED] * len(ids)
        for turn in turns:
            learned = [i for i, (start, _) in enumerate(offsets) if turn.start <= start < turn.end]
            self._verify(text, turn, [ids[i] for i in learned], chat)
            if turn.learned:
                self.stop_token_ids.add(ids[learned[-1]])
                for i in learned:
                    labels[i] = ids[i]
        prompt_ids = self._verified_prompt(text, turns[-1], ids, offsets, chat)
        return EncodedChat(
            input_ids=ids[:max_length],
            labels=labels[:max_length],
            prompt_ids=prompt_ids,
            prompt=messages[:-1],
            expected=messages[-1]["content"],
        )

    def _cleaned(self, message: Message) -> Message:
        # White space at the edge of an answer would merge with the template's own into tokens that
        # generation never sees. Template tokens inside a text stay text: a space breaks them.
        content = message["content"].strip() if message["role"] == "assistant" else message["content"]
        if any(character in content for character in self._first_characters):  # far faster than the expression
            content = self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", content)
        return {"role": message["role"], "content": content}

    def _render(self, messages: list[Message], chat: Chat, prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template raises what its author chose
            raise TrainerError(
                f"{chat.where}: the chat template refused the conversation: {error}.",
                "Remove the row, or choose a model whose template accepts its roles.",
            ) from error

    def _turns(self, messages: list[Message], text: str, chat: Chat) -> list[Turn]:
        for message in messages:
            if message["content"].strip() not in text:
                raise TrainerError(
                    f"{chat.where}: the chat template leaves out the {message['role']} message.",
                    "Remove the row, or choose a model whose template has that role.",
                )
        turns = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], chat, prompt=True) if index else ""
            # Some templates render an answer differently once it is history; such an answer is context only.
            if text.startswith(prompt):
                turns.append(self._turn(text, len(prompt), message["content"], chat))
            elif index == len(messages) - 1:
                raise _broken(chat, "the prompt of an answer is not the beginning of the conversation with it")
        stops = {text[turn.stop_start : turn.end] for turn in turns}
        if len(stops) > 1:  # one of them begins the next message and ends nothing
            raise _broken(chat, f"answers have no stop token of their own; they are followed by {sorted(stops)}")
        return turns

    def _turn(self, text: str, start: int, content: str, chat: Chat) -> Turn:
        found = text.find(content, start)
        if found < 0:
            raise _broken(chat, "an answer does not follow its prompt")
        stop = self._special.search(text, found + len(content))
        if stop is None or text[found + len(content) : stop.start()].strip():
            raise _broken(chat, "an answer is not followed by a stop token")
        if text[start:found].strip() and self._special.search(text, start, found):
            raise _broken(chat, "the template puts control tokens between a prompt and its answer")
        return Turn(start, stop.start(), stop.end())

    def _verify(self, text: str, turn: Turn, learned: list[int], chat: Chat) -> None:
        if not learned:
            raise _broken(chat, "an answer has no token of its own")
        wanted = text[turn.start : turn.end]
        decoded = self.tokenizer.decode(learned, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if decoded != wanted and _folded(decoded) != _folded(wanted):
            raise _broken(chat, f"the learned tokens read {decoded[-60:]!r} and not {wanted[-60:]!r}")
        stop = self.tokenizer.convert_tokens_to_ids(text[turn.stop_start : turn.end])
        if learned[-1] != stop:
            raise _broken(chat, f"the answer's last learned token is {learned[-1]} and not the stop token {stop}")

    def _verified_prompt(
        self, text: str, turn: Turn, ids: list[int], offsets: list[tuple[int, int]], chat: Chat
    ) -> list[int]:
        prompt_ids = list(self.tokenizer(text[: turn.start], add_special_tokens=False)["input_ids"])
        first = next(i for i, (start, _) in enumerate(offsets) if start >= turn.start)
        if prompt_ids != ids[:first]:
            raise _broken(chat, "the prompt has other tokens in training than in generation")
        return prompt_ids


def _folded(text: str) -> str:
    # Tokenizers may normalise Unicode and put a space in front; neither changes what is learned.
    return unicodedata.normalize("NFKC", text).strip()


def _broken(chat: Chat, what: str) -> TrainerError:
    return TrainerError(
        f"{chat.where}: the chat template cannot be trained on: {what}.",
        "Correct the model's chat template, or choose another base model.",
        "configuration",
    )
