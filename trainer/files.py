"""Files that are whole or absent, and the digests that name their content."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write the file so that a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 600; these files hold no secret
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C too must not leave a part behind
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Digest a file's content in lower-case hex, reading it in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: str | os.PathLike[str]) -> str:
    """Digest the sorted relative paths and contents of every file below a folder."""
    folder = Path(folder)
    digest = hashlib.sha256()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in names:
        digest.update(name.encode("utf-8") + b"\0")
        digest.update(sha256_file(folder / name).encode("ascii") + b"\n")
    return digest.hexdigest()


def open_to_readers(folder: Path) -> None:
    """Let everyone read a folder made with private permissions; it holds no secret."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def replace_folder(temporary: Path, target: Path) -> None:
    """Put a finished folder in its place, so that a reader sees the old one or the new, never a part."""
    open_to_readers(temporary)
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists() and any(target.iterdir()):
        os.replace(target, aside)
    try:
        os.replace(temporary, target)
    except OSError as error:
        if error.errno != errno.EBUSY:  # a mounted folder can be filled but not replaced
            raise
        shutil.copytree(temporary, target, dirs_exist_ok=True)
        shutil.rmtree(temporary)
    shutil.rmtree(aside, ignore_errors=True)
