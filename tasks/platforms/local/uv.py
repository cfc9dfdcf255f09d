"""uv with pip's settings, which uv does not read: what `pip config list` reports becomes variables for uv.

Standard library only, since it also makes the first environment, before anything is installed:

    python -I tasks/platforms/local/uv.py pip install ...
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def variables() -> dict[str, str]:
    """Return the environment for uv: this one, with what pip is configured to and uv does not read.

    Variables, not arguments: an index address may hold a password. What is set for uv itself wins.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", **uv_settings(pip_settings()), **inherited}


def pip_settings() -> dict[str, str]:
    """Return what `pip config list` reports, by option name; files first, then the environment over them."""
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    own = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("PIP_")))
    for line in _pip_listing(own).splitlines():
        key, _, shown = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in sections:
            with contextlib.suppress(ValueError, SyntaxError):
                sections[section][option] = str(ast.literal_eval(shown))
    # A machine without any pip still says what it wants in its variables.
    variables = {name[4:].lower().replace("_", "-"): value for name, value in own if value}
    return {**sections["global"], **sections["install"], **sections[":env:"], **variables}


@functools.cache
def _pip_listing(_variables: tuple[tuple[str, str], ...]) -> str:
    """Return pip's own listing, asked for once: pip is slow, and four environments may be built in a row."""
    for pip in _pip_commands():
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, timeout=60, check=False)
            if done.returncode == 0:
                return done.stdout
    return ""


def _pip_commands() -> list[list[str]]:
    pips = [[sys.executable, "-m", "pip"]]
    pips += [[found] for found in (shutil.which("pip"), shutil.which("pip3")) if found]
    return [*pips, ["python3", "-m", "pip"]]


def uv_settings(pip: Mapping[str, str]) -> dict[str, str]:
    """Translate pip's options into uv's variables; options that uv has no counterpart for are left out."""
    uv = {}
    words = {option: value.split() for option, value in pip.items()}
    if words.get("index-url"):
        uv["UV_INDEX_URL"] = words["index-url"][0]
    if words.get("extra-index-url"):
        uv["UV_EXTRA_INDEX_URL"] = " ".join(words["extra-index-url"])
    if words.get("find-links"):
        uv["UV_FIND_LINKS"] = ",".join(words["find-links"])
    if words.get("trusted-host"):
        uv["UV_INSECURE_HOST"] = " ".join(words["trusted-host"])
    if pip.get("cert"):
        uv["SSL_CERT_FILE"] = pip["cert"]
    if pip.get("client-cert"):
        uv["SSL_CLIENT_CERT"] = pip["client-cert"]
    if pip.get("proxy"):
        uv["ALL_PROXY"] = pip["proxy"]
    if pip.get("default-timeout") or pip.get("timeout"):
        uv["UV_HTTP_TIMEOUT"] = str(int(float(pip.get("timeout") or pip["default-timeout"])))
    if _is_on(pip.get("pre", "")):
        uv["UV_PRERELEASE"] = "allow"
    if _is_on(pip.get("no-index", "")):
        uv["UV_NO_INDEX"] = "true"
    return uv


def _is_on(value: str) -> bool:
    return value.strip().lower() in ("1", "y", "yes", "t", "true", "on")


if __name__ == "__main__":
    uv = str(Path(sys.executable).with_name("uv"))
    os.execve(uv, [uv, *sys.argv[1:]], variables())
