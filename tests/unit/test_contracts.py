from __future__ import annotations

import pytest

from tasks.platforms import contracts

MESSAGES = [{"role": "user", "content": "hi"}]


def test_the_two_servers_are_asked_by_their_own_names():
    """A greedy question of so many tokens, as chat completions and as a table with parameters."""
    openai, mlflow = contracts.of("openai"), contracts.of("mlflow")
    assert (openai.path, mlflow.path) == ("/v1/chat/completions", "/score")
    assert openai.request(contracts.Question(MESSAGES, 7)) == {"messages": MESSAGES, "max_tokens": 7, "temperature": 0}
    body = mlflow.request(contracts.Question(MESSAGES, 7))
    assert body["input_data"] == {"columns": ["messages"], "index": [0], "data": [[MESSAGES]]}
    assert body["params"] == {"max_new_tokens": 7, "do_sample": False}


def test_tools_go_along_with_a_question():
    """What the assistant may call is part of a chat completion's body, and absent where there is nothing."""
    tool = {"type": "function", "function": {"name": "weather"}}
    assert contracts.of("openai").request(contracts.Question(MESSAGES, 7, (tool,)))["tools"] == [tool]
    assert "tools" not in contracts.of("openai").request(contracts.Question(MESSAGES, 7))


@pytest.mark.parametrize("content", ["Hello.", None])
def test_an_answer_is_read_from_both(content):
    """The text is found in both forms, and no text is an empty one."""
    completion = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}
    assert contracts.of("openai").text(completion) == (content or "")
    assert contracts.of("mlflow").text([completion]) == (content or "")
