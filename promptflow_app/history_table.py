"""Keeps conversations in Azure Cosmos DB for Table, or in any account that speaks the Table API."""

from __future__ import annotations

import os

from azure.core.exceptions import AzureError, ResourceExistsError, ServiceRequestError
from azure.data.tables import TableClient
from chat import ChatError
from history import MAX_TURNS_READ, now

# A text property holds 64 KiB of UTF-16, four bytes a character at worst; longer texts go on in the next one.
PROPERTY_CHARACTERS = 16_000
DEFAULT_TABLE = "phiflowchat"
MAX_ATTEMPTS = 20


class TableStore:
    """Turns as entities: one partition a conversation, the turn's number as the row."""

    def __init__(self, table: TableClient) -> None:
        self._table = table
        self._write(table.create_table)

    @classmethod
    def from_environment(cls) -> TableStore:
        """Open the table named by PHIFLOW_TABLE_NAME with a connection string, or with an identity at a URL.

        Raises:
            ChatError: neither is set, or the account cannot be reached.
        """
        name = os.environ.get("PHIFLOW_TABLE_NAME") or DEFAULT_TABLE
        secret = os.environ.get("PHIFLOW_TABLE_CONNECTION_STRING")
        url = os.environ.get("PHIFLOW_TABLE_URL")
        try:
            if secret:
                return cls(TableClient.from_connection_string(secret, table_name=name, retry_total=3))
            if url:
                from azure.identity import DefaultAzureCredential

                return cls(TableClient(url, name, credential=DefaultAzureCredential(), retry_total=3))
        except ValueError:
            # The message of the library quotes what it could not read, which is a secret.
            raise ChatError("PHIFLOW_TABLE_CONNECTION_STRING or PHIFLOW_TABLE_NAME is malformed.") from None
        raise ChatError("PHIFLOW_HISTORY is table: set PHIFLOW_TABLE_CONNECTION_STRING, or PHIFLOW_TABLE_URL.")

    def read_turns(self, conversation: str) -> list[dict]:
        """Return the conversation's latest turns, oldest first."""
        entities = sorted(self._query(conversation), key=lambda entity: entity["RowKey"])
        return [
            {"question": _join(entity, "question"), "answer": _join(entity, "answer")}
            for entity in entities[-MAX_TURNS_READ:]
        ]

    def append_turn(self, conversation: str, turn: dict, deployment: str = "") -> None:
        """Add a turn at the end; of two writers of one number, the second takes the next."""
        number = max((int(entity["RowKey"]) for entity in self._query(conversation, ["RowKey"])), default=0)
        entity = {"PartitionKey": conversation, "time": now(), "deployment": deployment}
        entity |= _split("question", turn["question"]) | _split("answer", turn["answer"])
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if self._write(self._table.create_entity, entity | {"RowKey": f"{number + attempt:010d}"}):
                return
        raise ChatError(f"The conversation {conversation!r} is being written by too many at once. Ask again.")

    def _query(self, conversation: str, select: list[str] | None = None) -> list[dict]:
        try:
            # The id is checked to hold no quote before it comes here.
            return list(self._table.query_entities(f"PartitionKey eq '{conversation}'", select=select))
        except AzureError as error:
            raise _explain(error) from error

    def _write(self, call, *arguments) -> bool:
        try:
            call(*arguments)
        except ResourceExistsError:
            return False
        except AzureError as error:
            raise _explain(error) from error
        return True


def _explain(error: AzureError) -> ChatError:
    if isinstance(error, ServiceRequestError):
        return ChatError("The chat history's table account cannot be reached. Check PHIFLOW_TABLE_CONNECTION_STRING.")
    return ChatError(f"The chat history's table account refused: {' '.join(str(error.message).split())[:200]}.")


def _split(name: str, text: str) -> dict:
    parts = range(0, max(len(text), 1), PROPERTY_CHARACTERS)
    return {f"{name}_{index}": text[at : at + PROPERTY_CHARACTERS] for index, at in enumerate(parts)}


def _join(entity: dict, name: str) -> str:
    parts = []
    while (part := entity.get(f"{name}_{len(parts)}")) is not None:
        parts.append(part)
    return "".join(parts)
