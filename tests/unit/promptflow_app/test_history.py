"""Remembering conversations: one suite for every store, SQLite in a file and the Table API of a real emulator."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from chat import ChatError, Endpoint, ask
from chat_parts import APP, KEY, free_port, wait_until
from history import SqliteStore, find_conversation, open_store, save_answer

# The emulator's published account and key.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="session")
def table_connection(tmp_path_factory):
    """The connection string of a Table service that runs for the tests."""
    emulator = shutil.which("azurite-table")
    if emulator is None:
        pytest.skip("azurite-table is not on PATH (npm install -g azurite)")
    port = free_port()
    folder = tmp_path_factory.mktemp("azurite")
    command = [emulator, "--silent", "--tablePort", str(port), "--location", str(folder), "--skipApiVersionCheck"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, 20, "azurite to listen")
        yield (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};"
            f"TableEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
        )
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture(params=["sqlite", "table"])
def store(request, tmp_path, monkeypatch):
    """A store, opened as the app opens it."""
    if request.param == "sqlite":
        monkeypatch.setenv("PHIFLOW_HISTORY", f"sqlite:///{tmp_path / 'new' / 'chat.sqlite3'}")
    else:
        monkeypatch.setenv("PHIFLOW_HISTORY", "table")
        monkeypatch.setenv("PHIFLOW_TABLE_CONNECTION_STRING", request.getfixturevalue("table_connection"))
        monkeypatch.setenv("PHIFLOW_TABLE_NAME", "t" + os.urandom(8).hex())
    return open_store()


def turn(number: int) -> dict:
    return {"question": f"q{number}", "answer": f"a{number}"}


def test_turns_come_back_in_order(store):
    """Each conversation has its own turns, in the order they were said, every character kept."""
    strange = {"question": "é\n'\"; DROP TABLE turns; --", "answer": "🦊" * 40_000}
    for each in [strange, *map(turn, range(12))]:
        store.append_turn("a", each, "v1")
    store.append_turn("b", turn(99))
    assert store.read_turns("a") == [strange, *map(turn, range(12))]
    assert open_store().read_turns("b") == [turn(99)]
    assert store.read_turns("unknown") == []


def test_writers_at_once_lose_nothing(store):
    """Several writers of one conversation at once: every turn is kept."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: store.append_turn("a", turn(number)), range(16)))
    assert sorted(each["question"] for each in store.read_turns("a")) == sorted(f"q{number}" for number in range(16))


def test_writing_processes_lose_nothing(tmp_path):
    """Several processes that open and write one SQLite file at once: every turn is kept."""
    path = tmp_path / "chat.sqlite3"
    code = (
        "import sys; from pathlib import Path; from history import SqliteStore\n"
        "for n in range(20): SqliteStore(Path(sys.argv[1])).append_turn('a', {'question': 'q', 'answer': 'a'})"
    )
    command = [sys.executable, "-c", code, str(path)]
    writers = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(APP)}) for _ in range(3)]
    assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    numbers = sqlite3.connect(path).execute("SELECT turn FROM turns ORDER BY turn").fetchall()
    assert numbers == [(number,) for number in range(1, 61)]


def test_file_is_for_its_owner_only(tmp_path):
    """No one else on the machine reads what was said."""
    SqliteStore(tmp_path / "chat.sqlite3").append_turn("a", turn(1))
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_stored_turns_win_over_the_history_given(store):
    """Both given: what is stored counts; a history for an unknown conversation counts until something is stored."""
    given = [{"inputs": {"question": "given"}, "outputs": {"answer": "x"}}]
    unknown = find_conversation(store, given, "a")
    assert (unknown["turns"], unknown["stored"]) == ([{"question": "given", "answer": "x"}], 0)
    store.append_turn("a", turn(1))
    assert find_conversation(store, given, "a") == {"id": "a", "turns": [turn(1)], "stored": 1}


def test_conversation_is_found_by_its_history(store):
    """Without an id, the id in the last answer given continues the conversation; else a new one begins."""
    given = [{"inputs": {"question": "q"}, "outputs": {"answer": "a", "conversation_id": "known"}}]
    assert find_conversation(store, given, "")["id"] == "known"
    assert find_conversation(store, [], "")["id"] != find_conversation(store, None, None)["id"]


def test_history_given_is_stored_before_the_turn(store, endpoint):
    """A conversation that began elsewhere is complete in the store after its first turn here."""
    given = [{"inputs": {"question": "before"}, "outputs": {"answer": "yes"}}]
    conversation = find_conversation(store, given, "a")
    reply = ask(Endpoint(url=endpoint.url, key=KEY), "now", conversation["turns"])
    answer = "".join(save_answer(store, conversation, "now", reply))
    assert store.read_turns("a") == [{"question": "before", "answer": "yes"}, {"question": "now", "answer": answer}]


def test_reader_that_goes_away_leaves_the_turn_behind(store, endpoint):
    """Closing the answer early stores what had arrived; an answer that breaks off too."""
    conversation = find_conversation(store, [], "a")
    pieces = save_answer(store, conversation, "now", ask(Endpoint(url=endpoint.url, key=KEY), "now", []))
    next(pieces)
    pieces.close()
    broken = ask(Endpoint(url=endpoint.url, key=KEY), "break off", [])
    with pytest.raises(ChatError):
        list(save_answer(store, conversation, "break off", broken))
    assert [each["answer"] for each in store.read_turns("a")] == ["You ", "You "]


@pytest.mark.parametrize("identity", ["../x", "a b", "x" * 129, "a'b"])
def test_wrong_id_is_refused(store, identity):
    """An id that could be something else than an id is refused."""
    with pytest.raises(ChatError, match="conversation_id is"):
        find_conversation(store, [], identity)


@pytest.mark.parametrize(
    "entry", [1, {}, {"inputs": {"question": "q"}}, {"inputs": [], "outputs": None}, {"inputs": "x"}]
)
def test_wrong_history_is_refused(store, entry):
    """An entry that is no turn is named by its place."""
    good = {"inputs": {"question": "q"}, "outputs": {"answer": "a"}}
    with pytest.raises(ChatError, match=r"chat_history\[1\]"):
        find_conversation(store, [good, entry], "a")


@pytest.mark.parametrize("value", ["mongo", "sqlite:///", "table", "sqlite:////proc/none/chat.sqlite3"])
def test_wrong_store_is_named(monkeypatch, value):
    """A store that does not exist or cannot be opened is an error in one line."""
    monkeypatch.setenv("PHIFLOW_HISTORY", value)
    monkeypatch.delenv("PHIFLOW_TABLE_CONNECTION_STRING", raising=False)
    with pytest.raises(ChatError) as failure:
        open_store()
    assert "PHIFLOW_HISTORY" in str(failure.value) and "\n" not in str(failure.value)


def test_table_that_is_down_hides_its_key(monkeypatch):
    """A table account that does not answer is an error in one line, without its key."""
    monkeypatch.setenv("PHIFLOW_HISTORY", "table")
    secret = f"DefaultEndpointsProtocol=http;AccountName=x;AccountKey=c2VjcmV0;TableEndpoint=http://127.0.0.1:{free_port()}/x;"
    monkeypatch.setenv("PHIFLOW_TABLE_CONNECTION_STRING", secret)
    with pytest.raises(ChatError, match="cannot be reached") as failure:
        open_store()
    assert "c2VjcmV0" not in str(failure.value)
