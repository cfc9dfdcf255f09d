"""The log of exchanges: one JSON line for each, and counts by operation for tests."""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from pathlib import Path
from typing import Any

from tests.azure_emulator.web import Answer, Request, now

_HIDDEN = ("authorization", "x-identity-header", "secret", "api-key", "cookie")
_SECRET = re.compile(r'("(?:access_token|primaryKey|secondaryKey|accessToken|adminUserPassword)"\s*:\s*")[^"]+')
_SIGNATURE = re.compile(r"(sig=)[^&\"\s\\]+")
_LONGEST_BODY = 200_000


class Exchanges:
    """What clients asked and what they were told.

    Args:
        file: grows by a line for each exchange: time, method, path, query, operation, scenario, seconds, and request
            and response with headers and body (JSON, or the number of bytes).
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        self._recent: deque[dict[str, Any]] = deque(maxlen=20_000)

    def add(self, request: Request, answer: Answer, *, seconds: float, scenario: str = "") -> None:
        """Write one exchange down."""
        operation = f"{request.method} {request.route or '?'}"
        line: dict[str, Any] = {
            "time": now(),
            "operation": operation,
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "status": 0 if answer.lost else answer.status,
            "seconds": round(seconds, 4),
            "scenario": scenario,
            "request": {"headers": _shown(request.headers), "body": _body(request.body)},
            "response": {"headers": _shown(answer.headers), "body": _body(answer.body)},
        }
        if request.path.startswith("/secrets/"):  # a key vault's
            line["request"]["body"] = line["response"]["body"] = "hidden"
        text = _SIGNATURE.sub(r"\1hidden", _SECRET.sub(r"\1hidden", json.dumps(line)))
        brief = {key: line[key] for key in ("time", "operation", "method", "path", "status", "scenario")}
        with self._lock:
            self._recent.append(brief)
            self._file.write(text + "\n")

    def counts(self, path: str = "", method: str = "") -> dict[str, Any]:
        """How often each operation was asked for, and the latest exchanges."""
        with self._lock:
            chosen = [
                one
                for one in self._recent
                if re.search(path, one["path"], re.IGNORECASE) and method.upper() in ("", one["method"])
            ]
        counts: dict[str, int] = {}
        for one in chosen:
            counts[one["operation"]] = counts.get(one["operation"], 0) + 1
        return {"counts": counts, "exchanges": chosen}

    def clear(self) -> None:
        """Begin to count anew; the file stays."""
        with self._lock:
            self._recent.clear()

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


def _shown(headers: dict[str, str]) -> dict[str, str]:
    return {name: "hidden" if name.lower() in _HIDDEN else value for name, value in headers.items()}


def _body(body: Any) -> Any:
    if isinstance(body, bytes):
        if not body:
            return None
        try:
            return json.loads(body) if len(body) < _LONGEST_BODY else {"bytes": len(body)}
        except ValueError:
            return {"bytes": len(body)}
    return body if isinstance(body, dict | list) or body is None else {"stream": True}
