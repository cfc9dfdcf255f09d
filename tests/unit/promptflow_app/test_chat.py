"""Asking an endpoint over real HTTP."""

from __future__ import annotations

import pytest
from chat import ChatError, Endpoint, ask, build_messages
from chat_parts import CONTEXT_MESSAGES, KEY, ScriptedEndpoint, free_port

TURN = {"question": "q", "answer": "a"}


def test_messages_alternate():
    """The system prompt when there is one, each turn as question and answer, the question last."""
    assert [message["role"] for message in build_messages("s", [TURN], "x")] == ["system", "user", "assistant", "user"]
    assert build_messages("", [], "x") == [{"role": "user", "content": "x"}]


def test_answer_arrives_in_pieces(endpoint):
    """The pieces make the answer, every character of it, and the deployment is named."""
    reply = ask(Endpoint(url=endpoint.url, key=KEY), "né?", [TURN])
    assert reply["deployment"] == "v7-3fa9"
    assert list(reply.pieces()) == ["You ", "said: ", "né?", " (2 before) → été"]


def test_settings_reach_the_endpoint(endpoint, monkeypatch):
    """The environment's settings are in the request, and what is not set is left to the endpoint."""
    monkeypatch.setenv("PHIFLOW_ENDPOINT_URL", endpoint.url + "/")
    monkeypatch.setenv("PHIFLOW_ENDPOINT_KEY", KEY)
    monkeypatch.setenv("PHIFLOW_MAX_TOKENS", "7")
    monkeypatch.setenv("PHIFLOW_TEMPERATURE", "0")
    monkeypatch.setenv("PHIFLOW_SYSTEM_PROMPT", "Be brief.")
    list(ask(Endpoint.from_environment(), "hi", []).pieces())
    body = endpoint.requests()[-1]
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (7, 0.0, True)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "model" not in body


def test_oldest_turns_give_way_to_the_context(endpoint):
    """A conversation over the model's context is asked again without its oldest turns."""
    turns = [{"question": f"q{number}", "answer": "a"} for number in range(CONTEXT_MESSAGES)]
    list(ask(Endpoint(url=endpoint.url, key=KEY), "last", turns).pieces())
    messages = endpoint.requests()[-1]["messages"]
    assert 1 < len(messages) <= CONTEXT_MESSAGES
    assert messages[-3]["content"] == f"q{CONTEXT_MESSAGES - 1}"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("status 429", "is busy: as asked"),
        ("status 503", "failed with status 503: as asked"),
        ("status 422", "refused the question with status 422: as asked"),
        ("fail at once", "it stumbled"),
        ("   ", "question is empty"),
    ],
)
def test_failure_is_one_line(endpoint, question, expected):
    """Whatever the endpoint does wrong is said in one line, before an answer is begun."""
    with pytest.raises(ChatError) as failure:
        ask(Endpoint(url=endpoint.url, key=KEY), question, [])
    assert expected in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(("question", "expected"), [("fail later", "it stumbled"), ("break off", "broke off")])
def test_answer_that_breaks_off_is_an_error(endpoint, question, expected):
    """Half an answer is never taken for a whole one."""
    reply = ask(Endpoint(url=endpoint.url, key=KEY), question, [])
    with pytest.raises(ChatError, match=expected):
        list(reply.pieces())


def test_wrong_key_is_said_and_not_shown(endpoint):
    """A refused key is named as the cause; the key is in no message and no representation."""
    wrong = Endpoint(url=endpoint.url, key="not-the-key")
    with pytest.raises(ChatError, match="refused the key") as failure:
        ask(wrong, "hi", [])
    assert "not-the-key" not in f"{failure.value}{wrong!r}"


@pytest.mark.parametrize("key", ["ké", "two\nlines"])
def test_key_that_no_header_can_carry_is_not_shown(endpoint, key):
    """A key that cannot be sent is an error in one line, without the key."""
    with pytest.raises(ChatError) as failure:
        ask(Endpoint(url=endpoint.url, key=key), "hi", [])
    assert key not in str(failure.value)
    assert failure.value.__suppress_context__ or "key" in str(failure.value)


def test_endpoint_that_is_down_is_named():
    """When nothing listens, the address and what to do are said."""
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ChatError, match=f"Nothing answers at the endpoint {url}. Start it"):
        ask(Endpoint(url=url, key=KEY), "hi", [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PHIFLOW_ENDPOINT_URL", ""),
        ("PHIFLOW_ENDPOINT_URL", "localhost:9001"),
        ("PHIFLOW_MAX_TOKENS", "many"),
        ("PHIFLOW_TEMPERATURE", "-1"),
        ("PHIFLOW_REQUEST_TIMEOUT_SECONDS", "nan"),
    ],
)
def test_wrong_setting_is_named(monkeypatch, name, value):
    """A setting that is missing or no number is named with its value."""
    monkeypatch.setenv("PHIFLOW_ENDPOINT_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv(name, value)
    with pytest.raises(ChatError, match=f"{name} is '{value}'"):
        Endpoint.from_environment()


@pytest.mark.parametrize("server", ["openai", "mlflow"])
def test_either_kind_of_server_is_asked(endpoint, mlflow_endpoint, server):
    """Whichever kind the app was told of, it asks the one that is there, and reads its answer."""
    for running in (endpoint, mlflow_endpoint):
        reply = ask(Endpoint(url=running.url, key=KEY, server=server), "né?", [TURN])
        assert (reply["deployment"], "".join(reply.pieces())) == ("v7-3fa9", "You said: né? (2 before) → été")


def test_a_model_without_code_gets_its_parameters(mlflow_endpoint):
    """Length and temperature reach it by its own names, and without a temperature it does not sample."""
    list(ask(Endpoint(url=mlflow_endpoint.url, key=KEY, server="mlflow", temperature=0.0), "hi", []).pieces())
    assert mlflow_endpoint.requests()[-1]["params"] == {"do_sample": False}
    endpoint = Endpoint(url=mlflow_endpoint.url, key=KEY, server="mlflow", max_tokens=9, temperature=0.7)
    list(ask(endpoint, "hi", []).pieces())
    expected = {"do_sample": True, "max_new_tokens": 9, "temperature": 0.7}
    assert mlflow_endpoint.requests()[-1]["params"] == expected


def test_an_answer_of_another_form_is_one_line(mlflow_endpoint):
    """An answer without a message in it is said to be broken off."""
    with pytest.raises(ChatError, match="broke off"):
        ask(Endpoint(url=mlflow_endpoint.url, key=KEY, server="mlflow"), "break off", [])


def test_an_unknown_kind_of_server_is_refused(endpoint, monkeypatch):
    """A setting that names no kind of server is said at once."""
    monkeypatch.setenv("PHIFLOW_ENDPOINT_URL", endpoint.url)
    monkeypatch.setenv("PHIFLOW_ENDPOINT_SERVER", "triton")
    with pytest.raises(ChatError, match="'triton'; set it to openai or mlflow"):
        Endpoint.from_environment()


def test_what_azure_wraps_is_read_as_the_models_own():
    """Behind Azure's endpoint, which says 424 for its model's refusals, the model's status decides all the same."""
    with ScriptedEndpoint("/score", wraps=True) as running:
        reply = ask(Endpoint(url=running.url, key=KEY), "hi", [])
        assert "".join(reply.pieces()) == "You said: hi (0 before) → été"
        with pytest.raises(ChatError, match="is busy: as asked"):
            ask(Endpoint(url=running.url, key=KEY, server="mlflow"), "status 429", [])
