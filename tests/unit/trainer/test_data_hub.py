"""Hub datasets go through the real `datasets` library, against a small hub on loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="hub datasets need the training environment")

ROOT = Path(__file__).parents[3]
COMMIT = "1234567890abcdef1234567890abcdef12345678"
DATASET = "someone/chats"
README = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train_sft\n    path: train_sft.jsonl\n---\n"


def _chats(num: int) -> bytes:
    rows = [
        {
            "prompt_id": str(i),
            "messages": [
                {"content": f"Question {i}?", "role": "user"},
                {"content": f"Answer {i}.", "role": "assistant"},
            ],
        }
        for i in range(num)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES = {"README.md": README.encode(), "train_sft.jsonl": _chats(1000)}


class _Hub(http.server.BaseHTTPRequestHandler):
    """The few calls of the hub that reading a dataset needs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        api, files = f"/api/datasets/{DATASET}", f"/datasets/{DATASET}/resolve/"
        revision = path.removeprefix(api).split("/")[2] if path.startswith(api + "/") else "main"
        if path.startswith(api) and revision not in ("main", "v1", COMMIT):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path in (api, f"{api}/revision/{revision}"):
            siblings = [{"rfilename": name} for name in FILES]
            self._json({"id": DATASET, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        elif path.startswith((f"{api}/tree/", f"{api}/paths-info/")):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            self._json(rows)
        elif path.startswith(files) and path.split("/", 6)[-1] in FILES:
            data = FILES[path.split("/", 6)[-1]]
            self._answer(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})
        else:
            known = path.startswith((api, files))
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})

    do_HEAD = do_POST = do_GET

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        if os.environ.get("SHOW_HUB"):
            print(self.command, self.path, file=sys.stderr)


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def _prepare(endpoint: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "trainer.data", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_slice_at_a_revision_is_prepared_and_the_commit_is_recorded(hub: str, tmp_path: Path) -> None:
    """A split slice becomes train and test files, and the manifest names the commit a branch or tag meant."""
    arguments = ["--source", DATASET, "--split", "train_sft[:5%]", "--revision", "v1"]
    done = _prepare(hub, tmp_path / "hf", *arguments, "--output-dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"]["train"] + manifest["counts"]["test"] == 50
    assert manifest["source"]["resolved_revision"] == COMMIT
    assert manifest["source"]["revision"] == "v1"
    first = json.loads((tmp_path / "out/train.jsonl").read_text().splitlines()[0])
    assert first["messages"][0] == {"role": "user", "content": f"Question {first['prompt_id']}?"}


def test_a_split_can_be_the_test_source(hub: str, tmp_path: Path) -> None:
    """`owner/name#split` names a fixed test set; what it shares with the training rows leaves those."""
    arguments = ["--source", DATASET, "--split", "train_sft[:30]", "--test-source", f"{DATASET}#train_sft[20:40]"]
    done = _prepare(hub, tmp_path / "hf", *arguments, "--output-dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    counts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]
    assert (counts["train"], counts["test"], counts["overlap"]) == (20, 20, 10)


def test_a_cached_dataset_is_read_when_the_hub_is_out_of_reach(hub: str, tmp_path: Path) -> None:
    """What was downloaded once is prepared without the hub, at the same commit and with the same bytes."""
    arguments = ["--source", DATASET, "--split", "train_sft[:20]"]
    first = _prepare(hub, tmp_path / "hf", *arguments, "--output-dir", str(tmp_path / "a"))
    second = _prepare("http://127.0.0.1:9", tmp_path / "hf", *arguments, "--output-dir", str(tmp_path / "b"))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    before, after = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab")
    assert before["digest"] == after["digest"]
    assert after["source"]["resolved_revision"] == COMMIT


def test_a_streamed_dataset_is_sampled_without_keeping_it(hub: str, tmp_path: Path) -> None:
    """Streamed and downloaded, the same seed and cap give the same bytes; streamed, no data is left on the disk."""
    digests = []
    for name, more in (("streamed", ["--streaming"]), ("whole", [])):
        arguments = ["--source", DATASET, "--split", "train_sft[100:900]", "--max-examples", "100", *more]
        done = _prepare(hub, tmp_path / name, *arguments, "--output-dir", str(tmp_path / "out"))
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / "out/manifest.json").read_text())
        assert manifest["counts"]["left_out"] == 700
        assert manifest["source"]["resolved_revision"] == COMMIT
        digests.append(manifest["digest"])
    assert digests[0] == digests[1]
    kept = {
        name: sum(path.stat().st_size for path in (tmp_path / name).rglob("*") if path.is_file())
        for name in ("streamed", "whole")
    }
    assert kept["streamed"] < len(FILES["train_sft.jsonl"]) / 10 < kept["whole"], kept


def test_a_hub_dataset_and_a_file_are_mixed(hub: str, tmp_path: Path) -> None:
    """Each source has its own split, shape and weight, and the manifest says what came of it."""
    (tmp_path / "own.jsonl").write_text('{"prompt": "Q?", "completion": "A."}\n' * 40)
    sources = [{"source": DATASET, "split": "train_sft[:100]"}, {"source": str(tmp_path / "own.jsonl"), "weight": 2}]
    arguments = [word for source in sources for word in ("--source", json.dumps(source))]
    test_source = json.dumps({"source": DATASET, "split": "train_sft[50:60]", "revision": "v1"})
    done = _prepare(
        hub, tmp_path / "hf", *arguments, "--test-source", test_source, "--output-dir", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert [(one["shape"], one["counts"]["train"], one["counts"]["test"]) for one in manifest["sources"]] == [
        ("messages", 90, 0),
        ("prompt-completion", 80, 0),
        ("messages", 0, 10),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", DATASET, "--streaming", "--split", "train_sft[:5%]"], "cannot be streamed"),
        (["--source", "someone/nothing"], "someone/nothing"),
        (["--source", DATASET, "--revision", "v9"], "revision v9"),
        (["--source", DATASET, "--split", "trian"], "train_sft"),
        (["--source", DATASET, "--config-name", "other"], "config other"),
    ],
    ids=["a share of a stream", "dataset", "revision", "split", "config"],
)
def test_a_wrong_name_is_one_line(hub: str, tmp_path: Path, arguments: list[str], said: str) -> None:
    """An unknown dataset, revision, split or config is one line naming it, exit code 2, and no output."""
    done = _prepare(hub, tmp_path / "hf", *arguments, "--output-dir", str(tmp_path / "out"))
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_hub_out_of_reach_is_one_clear_error(tmp_path: Path) -> None:
    """With neither hub nor cached copy the error says so within seconds."""
    done = _prepare("http://127.0.0.1:9", tmp_path / "hf", "--source", DATASET, "--output-dir", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
