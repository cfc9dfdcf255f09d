"""Where the local platform keeps what it knows: the state folder and the project's own sources."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tasks.platforms.errors import ConfigError, QuotaError
from tasks.platforms.local.files import digest_files, file_lock, write_secret

LEAST_FREE_BYTES = 100_000_000
_KEY_BYTES = 32


# For programs in environments of ours: where byte code is not kept, each start compiles torch or MLflow anew.
KEEP_BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}


@dataclass(frozen=True, slots=True)
class Home:
    """The state folder, absolute; every file of the local platform is below it."""

    root: Path

    @classmethod
    def open(cls, configured: str = "") -> Home:
        """Take the configured folder, else PHIFLOW_HOME, else .phiflow here; create it for this user only."""
        root = home_folder(configured)
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=root):
                pass
        except OSError as error:
            raise ConfigError(
                f"State folder {root} cannot be written: {error.strerror}.",
                fix="Set PHIFLOW_HOME to a folder of yours with free space.",
            ) from error
        return cls(root)

    def require_space(self, num_bytes: int) -> None:
        """Refuse a disk on which services could not even keep their databases.

        Raises:
            QuotaError: fewer bytes are free.
        """
        free = shutil.disk_usage(self.root).free
        if free < num_bytes:
            raise QuotaError(
                f"No space for state folder {self.root}: {free / 1e6:.0f} MB free, {num_bytes / 1e6:.0f} MB needed.",
                fix="Free some space, or set PHIFLOW_HOME to a folder on a larger disk.",
            )

    def folder(self, *parts: str) -> Path:
        """A folder below the root, created."""
        path = self.root.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def path(self, *parts: str) -> Path:
        """A path below the root, not created."""
        return self.root.joinpath(*parts)

    def endpoint_key(self, endpoint: str) -> str:
        """The endpoint's bearer key, made on first use."""
        path = self.folder("endpoints", endpoint) / "key"
        with file_lock(path.with_suffix(".lock"), 10, f"the key of endpoint {endpoint}"):
            if not path.exists():
                write_secret(path, secrets.token_urlsafe(_KEY_BYTES))
        return path.read_text(encoding="utf-8").strip()

    def snapshot(self, source: Path, label: str) -> Path:
        """Copy a source folder to a place named by its content, so that edits don't reach what runs.

        Returns:
            The folder that holds the copy under its own name, fit for PYTHONPATH.
        """
        digest = digest_files(source)
        target = self.folder("code") / f"{label}-{digest[:16]}"
        if target.exists():
            return target
        staging = Path(tempfile.mkdtemp(dir=self.folder("code"), prefix=".new-"))
        shutil.copytree(source, staging / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
        try:
            staging.rename(target)
        except OSError:  # another process made the same copy first
            shutil.rmtree(staging)
            if not target.exists():
                raise
        return target


def home_folder(configured: str = "") -> Path:
    """The state folder's place: the one configured, else PHIFLOW_HOME, else .phiflow here; not created."""
    return Path(configured or os.environ.get("PHIFLOW_HOME") or ".phiflow").expanduser().absolute()


def project_folder(*parts: str) -> Path:
    """A folder or file that ships with phiflow: in the clone, or where a wheel puts its data files."""
    clone = Path(__file__).resolve().parents[3]
    roots = (clone, Path(sys.prefix) / "share" / "phiflow")
    for root in roots:
        if root.joinpath(*parts).exists():
            return root.joinpath(*parts)
    raise ConfigError(
        f"{'/'.join(parts)} is missing from this installation of phiflow.",
        fix=f"Looked in {' and '.join(map(str, roots))}; reinstall phiflow or work in a clone.",
    )
