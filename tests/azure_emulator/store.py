"""The workspace's resources as JSON files, written whole or not at all, so that any end of the process leaves them."""

from __future__ import annotations

import copy
import json
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote


class Store:
    """Resources by id; ids are equal when they differ in case only. What is given out is a copy.

    Attributes:
        lock: held by whoever reads, decides and writes.
    """

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._resources: dict[str, tuple[str, dict[str, Any]]] = {}
        for file in folder.glob("*.json"):
            record = json.loads(file.read_text(encoding="utf-8"))
            self._resources[record["id"].lower()] = (record["id"], record["resource"])

    def get(self, resource_id: str) -> dict[str, Any] | None:
        """A resource, or None."""
        with self.lock:
            found = self._resources.get(_key(resource_id))
            return copy.deepcopy(found[1]) if found else None

    def put(self, resource_id: str, resource: dict[str, Any]) -> None:
        """Keep a resource, in place of the one with this id."""
        key = _key(resource_id)
        with self.lock:
            first = self._resources.get(key)
            spelled = first[0] if first else resource_id.rstrip("/")
            self._resources[key] = (spelled, copy.deepcopy(resource))
            text = json.dumps({"id": spelled, "resource": resource}, indent=1)
            file = self._file(key)
            temporary = file.with_suffix(f".{threading.get_ident()}.new")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, file)

    def delete(self, resource_id: str) -> bool:
        """Forget a resource; False when there is none."""
        with self.lock:
            known = self._resources.pop(_key(resource_id), None)
            self._file(_key(resource_id)).unlink(missing_ok=True)
            return known is not None

    def delete_below(self, collection: str) -> None:
        """Forget all resources in a collection and in those below it."""
        prefix = _key(collection) + "/"
        with self.lock:
            for key in [key for key in self._resources if key.startswith(prefix)]:
                self.delete(key)

    def list(self, collection: str) -> list[dict[str, Any]]:
        """The resources directly in a collection, such as `<workspace>/jobs`; in the order they were first put."""
        prefix = _key(collection) + "/"
        with self.lock:
            return [
                copy.deepcopy(resource)
                for key, (_, resource) in self._resources.items()
                if key.startswith(prefix) and "/" not in key[len(prefix) :]
            ]

    def walk(self, collection: str) -> list[dict[str, Any]]:
        """The resources in a collection and in those below it, such as all versions of `<workspace>/codes`."""
        prefix = _key(collection) + "/"
        with self.lock:
            return [copy.deepcopy(resource) for key, (_, resource) in self._resources.items() if key.startswith(prefix)]

    def _file(self, key: str) -> Path:
        # Ids are paths; hashing the long ones would hide from people what is what.
        name = quote(key.strip("/"), safe="")
        name = name if len(name) < 200 else f"{name[:120]}-{_digest(key)}"
        return self._folder / f"{name}.json"


def _key(resource_id: str) -> str:
    return resource_id.rstrip("/").lower()


def _digest(key: str) -> str:
    import hashlib

    return hashlib.sha256(key.encode()).hexdigest()[:40]
