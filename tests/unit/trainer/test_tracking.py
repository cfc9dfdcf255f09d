"""What MLflow is told, by a client that remembers instead of a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

from trainer.tracking import Tracker

ROWS = [{"question": "天空?", "answer": "蓝"}, {"question": "grass?", "answer": "green"}]


class Client:
    """MLflow's client as far as files go."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.broken = False

    def log_artifact(self, run_id: str, path: str) -> None:
        if self.broken:
            raise OSError("no artifacts\nhere")
        self.files[Path(path).name] = Path(path).read_bytes()

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.tags[key] = value


@pytest.fixture
def tracker(monkeypatch) -> Tracker:
    """A tracker in the middle of a run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    tracker = Tracker()
    tracker._client, tracker.run_id = Client(), "run"
    return tracker


def test_a_table_is_one_that_mlflow_loads(tracker):
    """A table reads back by the reader of mlflow.load_table, is marked for MLflow's pages once, and is replaced."""
    pandas = pytest.importorskip("pandas")
    tracker.table("answers.json", ROWS[:1])
    tracker.table("answers.json", ROWS)
    tracker.table("nothing.json", [])
    assert json.loads(tracker._client.tags["mlflow.loggedArtifacts"]) == [{"path": "answers.json", "type": "table"}]
    content = tracker._client.files["answers.json"].decode()
    assert "天空" in content
    import io

    assert pandas.read_json(io.StringIO(content), orient="split").to_dict("records") == ROWS


def test_a_server_without_files_still_takes_metrics(tracker, caplog):
    """A file that cannot be written is one warning, no second try, and no end of the metrics."""
    tracker._client.broken = True
    tracker.picture("curves.png", b"png")
    tracker.table("answers.json", ROWS)
    assert [record.getMessage() for record in caplog.records] == [
        "Stopped writing files to MLflow: could not write curves.png: no artifacts here"
    ]
    assert tracker._client is not None


def test_a_job_on_azure_leaves_its_files_in_its_log_folder(tracker, monkeypatch):
    """Where the service owns the run, no artifact is written through MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "azureml://westeurope/mlflow/v1.0")
    monkeypatch.setenv("MLFLOW_RUN_ID", "job")
    tracker.picture("curves.png", b"png")
    assert tracker._client.files == {}
