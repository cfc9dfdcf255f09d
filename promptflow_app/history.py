"""Remembers conversations: which one a request belongs to, what was said in it, and where that is kept.

Knows no Prompt flow. A store has two methods, `read_turns` and `append_turn`; PHIFLOW_HISTORY chooses one,
`sqlite:///PATH` or `table` (see history_table.py).
"""

from __future__ import annotations

import os
import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from chat import BrokenOff, ChatError, Reply

BUSY_SECONDS = 15.0
# More than any small model's context holds.
MAX_TURNS_READ = 100
SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    conversation TEXT NOT NULL,
    turn INTEGER NOT NULL,
    time TEXT NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    deployment TEXT NOT NULL,
    PRIMARY KEY (conversation, turn)
) WITHOUT ROWID
"""


class HistoryStore(Protocol):
    """Where turns are kept; a turn is `{"question": str, "answer": str}`."""

    def read_turns(self, conversation: str) -> list[dict]:
        """Return the conversation's latest turns, oldest first; none for an unknown conversation."""

    def append_turn(self, conversation: str, turn: dict, deployment: str = "") -> None:
        """Add a turn at the end; safe beside other writers."""


class SqliteStore:
    """Turns in one SQLite file, which any number of processes may use at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                # What people said is theirs: no one else reads the file.
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(self._connect()) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ChatError(f"The chat history {path} cannot be opened: {error}. Set PHIFLOW_HISTORY.") from error

    def _connect(self) -> sqlite3.Connection:
        # Transactions are begun by hand: a writer must take its lock before it looks up the last turn.
        return sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)

    def read_turns(self, conversation: str) -> list[dict]:
        """Return the conversation's latest turns, oldest first."""
        query = "SELECT question, answer FROM turns WHERE conversation = ? ORDER BY turn DESC LIMIT ?"
        with closing(self._connect()) as connection:
            rows = connection.execute(query, (conversation, MAX_TURNS_READ)).fetchall()
        return [{"question": question, "answer": answer} for question, answer in reversed(rows)]

    def append_turn(self, conversation: str, turn: dict, deployment: str = "") -> None:
        """Add a turn at the end."""
        last = "SELECT coalesce(max(turn), 0) FROM turns WHERE conversation = ?"
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            number = connection.execute(last, (conversation,)).fetchone()[0] + 1
            row = (conversation, number, now(), turn["question"], turn["answer"], deployment)
            connection.execute("INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?)", row)
            connection.execute("COMMIT")


def open_store() -> HistoryStore:
    """Return the store that PHIFLOW_HISTORY names.

    Raises:
        ChatError: it names none, or the store cannot be opened.
    """
    kind = os.environ.get("PHIFLOW_HISTORY", "")
    if not kind:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return SqliteStore(state / "phiflow" / "chat.sqlite3")
    if kind.startswith("sqlite:///") and len(kind) > len("sqlite:///"):
        return SqliteStore(Path(kind.removeprefix("sqlite:///")).absolute())
    if kind == "table":
        from history_table import TableStore

        return TableStore.from_environment()
    raise ChatError(f"PHIFLOW_HISTORY is {kind!r}; set it to sqlite:///PATH or to table.")


def find_conversation(store: HistoryStore, chat_history: list | None, conversation_id: str | None) -> dict:
    """Return the conversation a request belongs to: `id`, `turns`, and the number of them `stored`.

    The id is the one given, else the one in the last entry of the history given, else a new one. What is stored
    under the id wins; the history given is used when nothing is.

    Raises:
        ChatError: the id or the history is not usable.
    """
    given = [_read_turn(entry, index) for index, entry in enumerate(chat_history or [])]
    identity = conversation_id or _find_identity(chat_history or []) or uuid.uuid4().hex
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", identity):
        raise ChatError(
            f"conversation_id is {identity[:80]!r}; use 1 to 128 letters, digits, dots, dashes or underscores."
        )
    stored = store.read_turns(identity)
    return {"id": identity, "turns": stored or given, "stored": len(stored)}


def save_answer(store: HistoryStore, conversation: dict, question: str, reply: Reply) -> Iterator[str | BrokenOff]:
    """Yield the answer's pieces, and store the turn when they end, however they end."""
    pieces: list[str] = []
    try:
        for piece in reply.pieces():
            pieces.append(piece)
            yield piece
    except ChatError as error:
        yield BrokenOff(error)
        raise
    finally:
        if pieces:
            # A history that came with the request and is not stored yet belongs before this turn.
            for turn in [] if conversation["stored"] else conversation["turns"]:
                store.append_turn(conversation["id"], turn)
            turn = {"question": question, "answer": "".join(pieces)}
            store.append_turn(conversation["id"], turn, reply["deployment"])


def now() -> str:
    """Return the time, UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _read_turn(entry: object, index: int) -> dict:
    """Read an entry of a chat history, in Prompt flow's form or with `question` and `answer` side by side."""
    if isinstance(entry, dict):
        inputs, outputs = entry.get("inputs") or entry, entry.get("outputs") or entry
        if isinstance(inputs, dict) and isinstance(outputs, dict):
            question, answer = inputs.get("question"), outputs.get("answer")
            if isinstance(question, str) and isinstance(answer, str):
                return {"question": question, "answer": answer}
    raise ChatError(
        f"chat_history[{index}] is not a turn; "
        'a turn is {"inputs": {"question": "..."}, "outputs": {"answer": "..."}}.'
    )


def _find_identity(chat_history: list) -> str:
    outputs = chat_history[-1].get("outputs") if chat_history else None
    identity = outputs.get("conversation_id") if isinstance(outputs, dict) else None
    return identity if isinstance(identity, str) else ""
