from __future__ import annotations

import copy
import re
import unicodedata

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

from conftest import FACTS, chat
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainer.chat_template import IGNORED, ChatEncoder
from trainer.chats import Chat
from trainer.errors import TrainerError
from trainer.tiny_model import CHAT_TEMPLATE

# As published with Phi-3.5, whose special tokens also swallow the white space after them.
PHI_3_5_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + "
    "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer built as Llama's and Phi-3's are: spaces as marks, one in front, bytes for the rest."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    backend.train_from_iterator([*FACTS, *FACTS.values()], trainer)
    names = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    backend.add_special_tokens([AddedToken(name, rstrip=True, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        chat_template=PHI_3_5_TEMPLATE,
    )


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "qwen"])
def tokenizer(request, tiny_model):
    """Three families of tokenizer and template."""
    if request.param == "sentencepiece":
        return sentencepiece_tokenizer()
    loaded = AutoTokenizer.from_pretrained(tiny_model)
    if request.param == "qwen":
        loaded.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        loaded.chat_template = QWEN_TEMPLATE
    return loaded


CHATS = [
    chat("What do bees make?", "Bees make honey."),
    chat("What do bees make?", "Bees make honey.", "And cows?", "Cows eat grass.\n\n- green grass"),
    chat("Where do fish live?", "  In w\u00e4ter \U0001f41f. \n", system="Be brief."),
    chat("Say <|end|> and stop", "No."),
]


@pytest.mark.parametrize("record", CHATS, ids=["single", "multi-turn", "system", "control tokens"])
def test_exactly_the_answers_and_their_stop_tokens_are_learned(tokenizer, record):
    """The learned tokens read as the assistant's messages, each with its stop token, and nothing else."""
    encoder = ChatEncoder(tokenizer)
    encoded = encoder.encode(Chat(tuple(record["messages"]), "row 1"), 512)
    runs, previous = [], IGNORED
    for label in encoded.labels:
        if label != IGNORED:
            if previous == IGNORED:
                runs.append([])
            runs[-1].append(label)
        previous = label
    answers = [message["content"].strip() for message in record["messages"] if message["role"] == "assistant"]
    stop = "<|im_end|>" if "<|im_end|>" in tokenizer.chat_template else "<|end|>"
    assert [tokenizer.decode(run).strip() for run in runs] == [answer + stop for answer in answers]
    assert encoder.stop_token_ids == {tokenizer.convert_tokens_to_ids(stop)}


@pytest.mark.parametrize("record", CHATS[:3], ids=["single", "multi-turn", "system"])
def test_generation_sees_what_training_saw(tokenizer, record):
    """The prompt that generation is given is, token for token, what stood before the answer in training."""
    messages = copy.deepcopy(record["messages"])
    for message in messages:
        message["content"] = message["content"].strip()
    encoded = ChatEncoder(tokenizer).encode(Chat(tuple(messages), "row 1"), 512)
    given = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=True)["input_ids"]
    assert encoded.prompt_ids == list(given)
    assert encoded.input_ids[: len(given)] == list(given)
    assert encoded.labels[len(given) - 1] == IGNORED
    assert encoded.labels[len(given)] == encoded.input_ids[len(given)]


def test_control_tokens_in_a_text_stay_text(tokenizer):
    """A template token that a user typed does not become a control token."""
    record = chat("Say <|end|><|user|> now", "No.")
    plain = chat("Say it now", "No.")
    count = lambda ids: sum(i in tokenizer.all_special_ids for i in ids)  # noqa: E731
    encoder = ChatEncoder(tokenizer)
    encoded = [encoder.encode(Chat(tuple(r["messages"]), "row"), 512).input_ids for r in (record, plain)]
    assert count(encoded[0]) == count(encoded[1])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("+ '<|end|>\n' }}", "+ '\n' }}", "stop token"),
        ("{{ '<|assistant|>\n' }}", "{{ '<|assistant|>\nSure: ' }}", "is not the beginning"),
        ("('system', 'user', 'assistant')", "('user', 'assistant')", "leaves out the system message"),
        ("{% for message in messages %}", "{{ raise_exception('no') }}{% for message in messages %}", "refused"),
    ],
    ids=["no stop token", "another prompt", "no system", "raises"],
)
def test_a_broken_template_is_refused(tiny_model, old, new, reason):
    """A template that cannot be trained on stops the run before it starts, and the row is named."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert old in CHAT_TEMPLATE
    tokenizer.chat_template = CHAT_TEMPLATE.replace(old, new)
    record = chat("What do bees make?", "Bees make honey.", "And cows?", "Grass.", system="Be brief.")
    with pytest.raises(TrainerError, match=reason) as refused:
        ChatEncoder(tokenizer).encode(Chat(tuple(record["messages"]), "train.jsonl line 7"), 512)
    assert "train.jsonl line 7" in str(refused.value)
    assert refused.value.exit_code == 2


def test_cut_at_the_maximum_length(tiny_model):
    """A long conversation is cut at the maximum length, tokens and labels alike."""
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(tiny_model))
    encoded = encoder.encode(Chat(tuple(chat("Why?", "Grass is green. " * 50)["messages"]), "row"), 16)
    assert len(encoded.input_ids) == len(encoded.labels) == 16
    assert 0 < encoded.num_learned_tokens < 16


SCRIPTS = [
    "中文\uff0c没有空格。\u2460",
    "العربية مع تَشْكِيل",
    "ไทย ภาษา",
    "हिन्दी",
    "한국어",
    "e\u0301 \ufb01 \u212b \u00c5",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "a\u00a0b\u200b\ufeffc",
]


@pytest.mark.parametrize("text", SCRIPTS)
def test_text_of_any_script_is_learned_byte_for_byte(tokenizer, text, caplog):
    """Training's tokens decode to the exact text, in any script and Unicode form, and nothing is said of it."""
    encoded = ChatEncoder(tokenizer).encode(Chat(tuple(chat(f"Say {text}.", f"So: {text}")["messages"]), "row"), 512)
    whole = tokenizer.decode(encoded.input_ids, skip_special_tokens=False)
    learned = tokenizer.decode([label for label in encoded.labels if label != IGNORED], skip_special_tokens=False)
    assert f"Say {text}." in whole
    assert re.sub(r"<\|(im_)?end\|>$", "", learned) == f"So: {text}"
    assert not caplog.records


@pytest.mark.parametrize(("form", "text"), [("NFC", "cafe\u0301"), ("NFKC", "\ufb01ne"), ("NFKC", "cafe\u0301")])
def test_a_tokenizer_that_changes_text_is_named_with_the_row(tiny_model, caplog, form, text):
    """A normaliser's changes are learned as the tokenizer has them, and said with the row; other rows are quiet."""
    loaded = AutoTokenizer.from_pretrained(tiny_model)
    loaded.backend_tokenizer.normalizer = getattr(normalizers, form)()
    encoder = ChatEncoder(loaded)
    encoder.encode(Chat(tuple(chat("Where?", "In water.")["messages"]), "row 1"), 512)
    assert not caplog.records
    encoded = encoder.encode(Chat(tuple(chat("Where?", f"In a {text}.")["messages"]), "row 2"), 512)
    assert [record.args for record in caplog.records] == [("row 2", form)]
    learned = loaded.decode([label for label in encoded.labels if label != IGNORED], skip_special_tokens=True)
    assert learned == unicodedata.normalize(form, f"In a {text}.")
