"""Files that are whole or absent: atomic writes, secrets, JSON, content digests and locks."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.platforms.errors import ConflictError, PermissionDeniedError, PhiflowError, QuotaError

SECRET_MODE = 0o600
_NEVER_DIGESTED = ("__pycache__", "*.pyc", "*.egg-info", ".*")


def write_atomic(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Missing parent folders are created.

    Raises:
        QuotaError: the disk, or the quota, is full.
        PermissionDeniedError: the folder may not be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Created for the owner alone and widened afterwards, so that a secret is at no moment readable.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SECRET_MODE)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C too must not leave a part behind
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_error(path: Path, error: OSError) -> PhiflowError:
    """Say in one line why a file could not be written, and what to do."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return QuotaError(
            f"Could not write '{path}': {reason}.", fix="Free some disk space and run the same command again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDeniedError(
            f"Could not write '{path}': {reason}.", fix="Give this user write permission on the folder."
        )
    return PhiflowError(f"Could not write '{path}': {reason}.", fix="Check the path and the disk.")


def write_secret(path: Path, content: str | bytes) -> None:
    """Write a file that only its owner can read, from its first moment on."""
    write_atomic(path, content, SECRET_MODE)


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Write a value as readable JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", mode)


_MISSING: Any = object()


def read_json(path: Path, default: Any = _MISSING) -> Any:
    """Read a JSON file; `default`, when given, stands for a file that does not exist.

    Raises:
        FileNotFoundError: no such file and no default.
        PhiflowError: the file is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if default is _MISSING:
            raise
        return default
    try:
        return json.loads(text)
    except ValueError as error:
        raise PhiflowError(
            f"'{path}' is not valid JSON: {error}.",
            fix="Restore the file, or delete it so that it is made anew.",
        ) from error


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files of a folder that `digest_files` counts, links followed, in place of what the target holds."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_NEVER_DIGESTED))


def digest_files(root: Path, patterns: Sequence[str] = ("*",), ignore: Sequence[str] = ()) -> str:
    """Return the sha256, hex, of the relative paths and contents of the files under a folder.

    Hidden files, caches and compiled Python never count.

    Args:
        root: the folder; a single file counts as a folder that holds only it.
        patterns: shell patterns on the file's name or relative path; a file counts when one matches.
        ignore: shell patterns on any part of the relative path, or on all of it.
    """
    total = hashlib.sha256()
    for relative, path in sorted(_digested_files(root, patterns, (*_NEVER_DIGESTED, *ignore))):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{len(relative)}:{relative}={content}\n".encode())
    return total.hexdigest()


def _digested_files(root: Path, patterns: Sequence[str], ignore: Sequence[str]) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        yield root.name, root
        return
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not _matches(name, ignore)]
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if _matches(name, ignore) or _matches(relative, ignore) or not path.is_file():
                continue
            if _matches(name, patterns) or _matches(relative, patterns):
                yield relative, path


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@contextlib.contextmanager
def file_lock(path: Path, timeout: float, what: str) -> Iterator[None]:
    """Hold a lock file for the length of a `with` block; the lock ends with the process that held it.

    Args:
        path: the lock file; it stays behind, empty.
        timeout: seconds to wait for another holder.
        what: what the lock protects, for the error, as in "the environment 'training'".
    Raises:
        ConflictError: another process still held it after the wait.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=timeout)
        lock.acquire()
    except Timeout as error:
        raise ConflictError(
            f"Another process is still using {what} after {timeout:g} s (lock '{path}').",
            fix="Wait until it has finished, or end it, and run the same command again.",
        ) from error
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield
    finally:
        lock.release()
