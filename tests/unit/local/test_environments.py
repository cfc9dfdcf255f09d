"""Environments built by the real uv from a folder of wheels made here."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.platforms.errors import ConfigError, EnvironmentBuildError, QuotaError
from tasks.platforms.local import environments, files, processes, uv
from tasks.platforms.local.environments import Environment, ensure_environment

Wait = Callable[..., Any]


def make_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel with one module that knows its version."""
    files_in_it = {
        f"{name}.py": f"version = {version!r}\n",
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, content in files_in_it.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(content)}\n"
            wheel.writestr(path, content)
        wheel.writestr(f"{name}-{version}.dist-info/RECORD", f"{record}{name}-{version}.dist-info/RECORD,,\n")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment's folder; pip's own settings say where its wheels are and that there is no index."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "lantern", "1.0")
    make_wheel(wheels, "lantern", "2.0")
    make_wheel(wheels, "candle", "1.0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "environments" / "tiny"
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text("lantern==1.0\n")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state folder with a space in its name."""
    return tmp_path / "a home"


def installed_version(environment: Environment) -> str:
    script = "import lantern; print(lantern.version)"
    return subprocess.run([environment.python, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_the_same_requirements_are_built_once(source: Path, home: Path) -> None:
    """The first call builds and says so; the second reuses, logs nothing and says why."""
    lines: list[str] = []
    built = ensure_environment(home, source, log=lines.append)
    assert not built.reused and "none was built" in built.reason
    assert built.path == home / "environments" / f"tiny-{built.digest[:12]}"
    assert installed_version(built) == "1.0"
    assert any("Built environment 'tiny' packages=1" in line for line in lines)
    lines.clear()
    again = ensure_environment(home, source, log=lines.append)
    assert again.reused and again.path == built.path and not lines
    assert "have not changed" in again.reason


def test_other_requirements_are_another_environment(source: Path, home: Path) -> None:
    """A changed lock builds beside the old one; torch.txt counts and is installed in the same call."""
    old = ensure_environment(home, source)
    (source / "requirements.txt").write_text("lantern==2.0\n")
    (source / "torch.txt").write_text("candle==1.0\n")
    (source / "requirements.in").write_text("a comment does not count")
    new = ensure_environment(home, source)
    assert new.path != old.path
    assert (installed_version(old), installed_version(new)) == ("1.0", "2.0")
    assert list(new.path.glob("lib/python*/site-packages/candle.py"))


@pytest.mark.parametrize("damage", ["no marker", "another marker", "cut marker", "no python", "lost package"])
def test_what_is_half_built_or_broken_is_built_again(source: Path, home: Path, damage: str) -> None:
    """It is never used: whatever is missing, the folder is replaced and the reason says so."""
    first = ensure_environment(home, source)
    (first.path / "leftover").touch()
    marker = first.path / ".complete"
    if damage == "no marker":
        marker.unlink()
    elif damage == "another marker":
        files.write_json(marker, {"digest": "0", "installed": []})
    elif damage == "cut marker":
        marker.write_text(marker.read_text()[:20])
    elif damage == "no python":
        first.python.unlink()
    else:
        shutil.rmtree(next(first.path.glob("lib/python*/site-packages/lantern-1.0.dist-info")))
    again = ensure_environment(home, source)
    assert not again.reused
    assert again.reason.startswith("it was not finished" if "marker" in damage else "it was damaged")
    assert not (again.path / "leftover").exists()
    assert installed_version(again) == "1.0"


def test_a_failed_build_leaves_nothing_and_says_why(source: Path, home: Path) -> None:
    """uv's reason is in one line, its last lines are the detail, and no folder stays."""
    (source / "requirements.txt").write_text("lantern==9.0\n")
    with pytest.raises(EnvironmentBuildError) as caught:
        ensure_environment(home, source)
    assert "Environment 'tiny' could not be built: No solution found" in str(caught.value)
    assert "\n" not in str(caught.value) and "environment-tiny.log" in str(caught.value)
    assert any("lantern" in line for line in caught.value.detail)
    assert [path for path in (home / "environments").iterdir() if path.is_dir()] == []


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """When uv's output says that there is no space, the error says what to do about that."""
    log = tmp_path / "log"
    log.write_text("Resolved 1 package\nerror: failed to write: No space left on device (os error 28)\n")
    assert isinstance(environments._build_error("tiny", 2, log), QuotaError)


def test_two_builders_at_once_build_once(source: Path, home: Path, root: Path) -> None:
    """The second waits for the first and uses what it built; both print the path of the Python."""
    command = [
        *(sys.executable, "-m", "tasks.platforms.local.environments", "tiny"),
        *("--home", str(home), "--source", str(source)),
    ]
    builders = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    results = [builder.communicate() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], results
    assert results[0][0] == results[1][0] and Path(results[0][0].strip()).exists()
    assert sum("Built environment" in progress for _, progress in results) == 1


def test_after_a_killed_builder_its_uv_does_not_write_along(source: Path, home: Path, wait_for: Wait) -> None:
    """A uv that outlived its killed owner is ended before the folder is built again."""
    path = ensure_environment(home, source).path
    (path / ".complete").unlink()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as left_over:
        identity = processes.identify(left_over.pid)
        assert identity
        files.write_json(environments._builder_file(path), identity.as_json())
        assert not ensure_environment(home, source).reused
        assert left_over.wait(5) == -signal.SIGTERM
    assert not environments._builder_file(path).exists()


def test_progress_is_told_while_uv_works(
    source: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow uv's latest line is passed on, without the password in an address."""
    slow = tmp_path / "uv"
    real = environments._find_uv()
    slow.write_text(
        f'#!/bin/sh\n[ "$1" = pip ] && echo "Downloading from http://me:pass@host/x" && sleep 0.5\nexec {real} "$@"\n'
    )
    slow.chmod(0o755)
    monkeypatch.setattr(environments, "_find_uv", lambda: str(slow))
    monkeypatch.setattr(environments, "_PROGRESS_SECONDS", 0.1)
    lines: list[str] = []
    ensure_environment(home, source, log=lines.append)
    assert any("Downloading from http://***@host/x" in line for line in lines)
    assert not any("pass" in line for line in lines)


@pytest.mark.parametrize("name", ["nowhere", "../tiny", "UPPER", ""])
def test_an_unknown_environment_is_a_users_mistake(home: Path, root: Path, name: str) -> None:
    """One line that names the known ones, exit code 2, nothing on stdout and nothing built."""
    done = subprocess.run(
        [sys.executable, "-m", "tasks.platforms.local.environments", name, "--home", str(home)],
        capture_output=True, text=True, cwd=root, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert "orchestrator" in done.stderr and done.stderr.count("\n") == 1
    assert not (home / "environments").exists()


def test_a_folder_without_requirements_is_refused(tmp_path: Path, home: Path) -> None:
    """The error names the file that is missing."""
    with pytest.raises(ConfigError, match=r"requirements\.txt"):
        ensure_environment(home, tmp_path)


def test_pips_settings_become_uvs() -> None:
    """Every option that uv has a counterpart for is translated; lists are written as uv reads them."""
    pip = {
        "index-url": "https://a/simple",
        "extra-index-url": "https://b/simple\nhttps://c/simple",
        "find-links": "/wheels https://d/wheels",
        "trusted-host": "b c",
        "cert": "/ca.pem",
        "timeout": "15",
        "pre": "true",
        "no-index": "0",
        "disable-pip-version-check": "1",
    }
    assert uv.uv_settings(pip) == {
        "UV_INDEX_URL": "https://a/simple",
        "UV_EXTRA_INDEX_URL": "https://b/simple https://c/simple",
        "UV_FIND_LINKS": "/wheels,https://d/wheels",
        "UV_INSECURE_HOST": "b c",
        "SSL_CERT_FILE": "/ca.pem",
        "UV_HTTP_TIMEOUT": "15",
        "UV_PRERELEASE": "allow",
    }


def test_pips_file_is_read_and_its_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value from a configuration file is found, and one from a variable replaces it."""
    if not shutil.which("pip") and subprocess.run([sys.executable, "-m", "pip"], capture_output=True).returncode:
        pytest.skip("this machine has no pip to ask")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nfind-links = /from-file\n    /and-more\nretries = 7\n[install]\nretries = 8\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    uv._pip_listing.cache_clear()
    settings = uv.pip_settings()
    assert settings["find-links"].split() == ["/from-file", "/and-more"]
    assert settings["retries"] == "8"
    monkeypatch.setenv("PIP_FIND_LINKS", "/from-variable")
    assert uv.pip_settings()["find-links"] == "/from-variable"


def test_the_marker_lists_what_is_installed(source: Path, home: Path) -> None:
    """What the marker promises is what is there, so that a later check can see a loss."""
    environment = ensure_environment(home, source)
    marker = json.loads((environment.path / ".complete").read_text())
    assert marker == {"digest": environment.digest, "installed": ["lantern-1.0.dist-info"]}
