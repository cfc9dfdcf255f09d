"""`make azure-demo`: from an empty emulated subscription to a workspace, a run in it, and a question to what it serves.

    python -m tests.azure_demo [start | env | stop]

Everything of the emulator is in one folder, `.phiflow-azure` or PHIFLOW_AZURE_DEMO; it keeps running until `stop`,
so that a second run finds what the first one made.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "deployments" / "azure-emulator.yaml"
AZURITE = "azurite@3.35"
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


def main(arguments: list[str]) -> int:
    """Do what the word says; without one, start the emulator, make the workspace, run and ask."""
    state = Path(os.environ.get("PHIFLOW_AZURE_DEMO") or ROOT / ".phiflow-azure").absolute()
    match arguments:
        case []:
            return _demo(state)
        case ["start"]:
            start(state)
            return 0
        case ["env"]:
            for name, value in start(state).items():
                print(f"export {name}={shlex.quote(value)}")
            return 0
        case ["stop"]:
            print("Stopped the emulator." if stop(state) else "The emulator does not run.")
            return 0
    print(__doc__, file=sys.stderr)
    return 2


def _demo(state: Path) -> int:
    environment = {**os.environ, **start(state)}
    started = time.monotonic()
    config = str(_own_configuration(state))
    for command in (["-m", "flows", "up", config], ["-m", "flows", "run", config], ["-m", "flows.demo", "1"]):
        code = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=False).returncode
        if code:
            return code
    print(f"Took {time.monotonic() - started:.0f} s. The same command again reuses it all.")
    print('Look around: eval "$(.venv/bin/python -m tests.azure_demo env)"; phiflow status. Stop it: make azure-stop')
    print(f"Back to an empty subscription: phiflow down {config} --scope all")
    return 0


def _own_configuration(state: Path) -> Path:
    """A copy of the shipped configuration, into which `up` writes the ids that belong to this emulator alone."""
    copy = state / CONFIGURATION.name
    if not copy.exists():
        shipped = CONFIGURATION.read_text(encoding="utf-8")
        copy.write_text(shipped.replace("source: data/", f"source: {CONFIGURATION.parent}/data/"), encoding="utf-8")
    return copy


def start(state: Path) -> dict[str, str]:
    """Start the emulator, or find it running; returns the variables with which phiflow and the SDK reach it."""
    state.mkdir(parents=True, exist_ok=True)
    ready = state / "ready.json"
    if not _process(state):
        path = f"{_azurite_folder(state)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.azure_emulator", "--state", str(state / "emulator")]
        command += ["--log", str(state / "exchanges.jsonl"), "--ready", str(ready), "--empty"]
        with (state / "emulator.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        record = {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}
        (state / "process.json").write_text(json.dumps(record), encoding="utf-8")
        _await_ready(process, ready, state / "emulator.log")
    told = json.loads(ready.read_text(encoding="utf-8"))
    print(f"The emulator of Azure Machine Learning listens at {told['url']}", file=sys.stderr)
    return dict(told["env"])


def stop(state: Path) -> bool:
    """End the emulator and what it runs; its state stays. False when it does not run."""
    process = _process(state)
    if process is None:
        return False
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except psutil.TimeoutExpired:
        process.kill()
    return True


def _await_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
            sys.exit(f"error: the emulator did not start: {said[0] if said else 'it wrote nothing'} Read {log}.")
        time.sleep(0.1)


def _process(state: Path) -> psutil.Process | None:
    """The emulator's process, if it is the one that was started here."""
    try:
        record = json.loads((state / "process.json").read_text(encoding="utf-8"))
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        return None
    return process if same else None


def _azurite_folder(state: Path) -> str:
    """The folder of `azurite-blob`: on the PATH, or installed below the state folder."""
    if found := shutil.which("azurite-blob"):
        return str(Path(found).parent)
    tools = state / "node"
    folder = tools / "node_modules" / ".bin"
    if not (folder / "azurite-blob").exists():
        if not shutil.which("npm"):
            sys.exit(
                "error: the emulator keeps its blobs in Azurite, which needs Node.js: install version 20 or later."
            )
        print(f"Installing {AZURITE} into {tools}", file=sys.stderr)
        tools.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(tools), AZURITE]
        if subprocess.run(install, check=False).returncode:
            sys.exit(f"error: {' '.join(install)} failed: can npm reach its registry?")
    return str(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
