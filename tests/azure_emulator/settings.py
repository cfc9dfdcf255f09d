"""What tests and people set about the emulated cloud: documents by name, kept with the resources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.azure_emulator.store import Store

_FOLDER = "/_settings"


class Settings:
    """Documents such as `subscription` or `quota/standardDSv2Family`; they outlive the emulator as its resources do."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
        """A document, or the default (empty when none is given)."""
        found = self._store.get(f"{_FOLDER}/{name}")
        return found["value"] if found else dict(default or {})

    def put(self, name: str, document: dict[str, Any]) -> None:
        """Keep a document in place of the one of this name."""
        self._store.put(f"{_FOLDER}/{name}", {"name": name, "value": document})

    def delete(self, name: str) -> bool:
        """Forget a document; False when there is none."""
        return self._store.delete(f"{_FOLDER}/{name}")

    def all(self, prefix: str) -> dict[str, dict[str, Any]]:
        """The documents below a prefix by the rest of their names, such as all of `quota`."""
        found = self._store.walk(f"{_FOLDER}/{prefix}")
        return {one["name"][len(prefix) + 1 :]: one["value"] for one in found}
