"""Where the port's suite runs: each platform with a stand-in for the model server, and models for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tasks.platforms.port import Platform
from tasks.platforms.refs import EnvironmentRef, ModelVersion, Origin

NAME = "support"
MADE = Origin(reused=False, reason="made in a test")
NAME_FILE = "name.txt"
# Stands for deployments/server: the same command line, none of the model.
SERVER = """
import argparse, http.server, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--host")
parser.add_argument("--port", type=int)
parser.add_argument("--model-dir", type=pathlib.Path)
options, _ = parser.parse_known_args()

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.answer({"status": "ok"})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        said = "I am " + (options.model_dir / "name.txt").read_text()
        self.answer({"choices": [{"message": {"role": "assistant", "content": said}}]})

    def log_message(self, *arguments):
        pass

if not (options.model_dir / "name.txt").is_file():
    raise SystemExit(f"There is no model in {options.model_dir}.")
http.server.ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Place:
    """A platform and what a deployment on it needs.

    Attributes:
        model: a model version by its number; its server says that it is that number.
        broken: a model version whose server ends, saying that there is no model.
    """

    platform: Platform
    environment: EnvironmentRef
    model: Callable[[str], ModelVersion]
    broken: ModelVersion


def server_source(folder: Path) -> Path:
    """Write the stand-in where `deployments/server` is looked for; returns the folder that stands for the project."""
    package = folder / "source" / "deployments" / "server"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SERVER)
    return folder / "source"


def version(number: str, location: str) -> ModelVersion:
    """A model version with a digest of its own."""
    return ModelVersion(
        name=NAME,
        version=number,
        digest=number * 64,
        job="support-0",
        data_digest="d",
        location=location,
        origin=MADE,
    )
