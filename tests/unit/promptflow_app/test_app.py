"""The chat app as Prompt flow runs and serves it."""

from __future__ import annotations

import json
import subprocess

from chat_parts import APP, KEY, PF, environment


def read_events(text: str) -> list[dict]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def test_flow_runs_by_hand(endpoint, tmp_path):
    """`pf flow test` answers, without telemetry and without a daemon."""
    command = [str(PF), "flow", "test", "--flow", str(APP), "--inputs", "question=hello"]
    result = subprocess.run(
        command, env=environment(tmp_path, endpoint.url), capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout[result.stdout.index("{") :])
    assert output["answer"] == "You said: hello (0 before) → été"
    assert output["deployment"] == "v7-3fa9"
    assert "visualstudio.com" not in result.stdout + result.stderr


def test_score_answers(app):
    """/score gives the answer, the conversation's id and the deployment."""
    body = app.ask(question="hello").json()
    assert body["answer"] == "You said: hello (0 before) → été"
    assert body["deployment"] == "v7-3fa9"
    assert body["conversation_id"]


def test_stream_passes_each_piece_on(app):
    """With an event stream asked for, the answer comes in its pieces."""
    events = read_events(app.ask(question="hello", stream=True).text)
    assert [event["answer"] for event in events if "answer" in event][:3] == ["You ", "said: ", "hello"]
    assert events[0]["deployment"] == "v7-3fa9"


def test_conversation_remembers_streamed_turns_too(app):
    """The second question of a conversation carries the first turn, streamed or not."""
    first = read_events(app.ask(question="one", stream=True).text)[0]["conversation_id"]
    assert "(2 before)" in app.ask(question="two", conversation_id=first).json()["answer"]
    assert "(4 before)" in app.ask(question="three", conversation_id=first).json()["answer"]


def test_history_given_is_used(app):
    """Prompt flow's own form of a chat history reaches the endpoint."""
    history = [{"inputs": {"question": "q"}, "outputs": {"answer": "a"}}]
    assert "(2 before)" in app.ask(question="two", chat_history=history).json()["answer"]


def test_request_without_question_is_refused(app):
    """No question, no answer: 400 that names it."""
    refused = app.ask(conversation_id="x")
    assert refused.status_code == 400
    assert "question" in refused.json()["error"]["message"]


def test_failing_endpoint_fails_the_request_with_its_reason(app):
    """An endpoint that fails before the first word: 400 with the reason, streamed or not."""
    for stream in (False, True):
        refused = app.ask(question="fail at once", stream=stream)
        assert refused.status_code == 400
        assert "it stumbled" in refused.json()["error"]["message"]


def test_broken_answer_is_not_a_success(app):
    """An answer that breaks off never ends as a good one: status 500, or an error as the stream's last piece."""
    assert app.ask(question="break off").status_code == 500
    assert "broke off" in read_events(app.ask(question="break off", stream=True).text)[-1]["answer"]["error"]


def test_restart_keeps_history_and_writes_nothing_beside_the_code(app):
    """A restarted app remembers; serving leaves the app's folder alone and the key out of the log."""
    before = {file for file in APP.rglob("*") if ".promptflow" not in file.parts and "__pycache__" not in file.parts}
    identity = app.ask(question="one").json()["conversation_id"]
    app.stop()
    app.start()
    app.wait_ready()
    assert "(2 before)" in app.ask(question="two", conversation_id=identity).json()["answer"]
    after = {file for file in APP.rglob("*") if ".promptflow" not in file.parts and "__pycache__" not in file.parts}
    assert after == before
    assert KEY not in app.log.read_text()
