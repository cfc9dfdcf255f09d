"""Files that are whole or absent, and the digests that name their content."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

INCOMPLETE = ".incomplete"
CARD = "README.md"
# A mounted folder can be filled but not replaced, and nothing is renamed from one file system to another.
_NOT_RENAMED = {errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS, errno.EOPNOTSUPP}


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


def write_in_place(path: str | os.PathLike[str], content: str) -> None:
    """Write the file from its beginning to its end, once: a mounted blob container does not rename or append.

    A reader may see a part of it; whoever reads it back takes what is not whole for absent.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Digest a file's content in lower-case hex, reading it in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: str | os.PathLike[str], leave_out: str = "") -> str:
    """Digest the sorted relative paths and contents of every file below a folder, but the one that is left out."""
    folder = Path(folder)
    digest = hashlib.sha256()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in names:
        if name != leave_out:
            digest.update(name.encode("utf-8") + b"\0")
            digest.update(sha256_file(folder / name).encode("ascii") + b"\n")
    return digest.hexdigest()


def digest_model(folder: str | os.PathLike[str]) -> str:
    """Digest a model folder without its card, which says the same of the same weights in other words."""
    return digest_folder(folder, leave_out=CARD)


def open_to_readers(folder: Path) -> None:
    """Let everyone read a folder made with private permissions; it holds no secret."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def replace_folder(temporary: Path, target: Path) -> None:
    """Put a finished folder in its place, so that a reader sees the old one or the new, never a part.

    A target that cannot be renamed over, because it is mounted or on another file system, is filled instead.
    """
    open_to_readers(temporary)
    target = target.resolve()  # what a link names is replaced, not the link
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        if os.path.ismount(target):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if target.exists() and any(target.iterdir()):
            os.replace(target, aside)
        os.replace(temporary, target)
    except OSError as error:
        if error.errno not in _NOT_RENAMED:
            raise
        fill_folder(temporary, target)
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def fill_folder(source: Path, target: Path, last: str = "MLmodel") -> None:
    """Copy a finished folder into one that stays where it is, without a rename.

    While it lasts, the target holds `.incomplete`; the file named last makes the target what it is, and comes last.
    """
    target.mkdir(parents=True, exist_ok=True)
    (target / INCOMPLETE).write_text("being written\n", encoding="utf-8")
    for path in [target / last, *target.iterdir()]:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != INCOMPLETE:
            path.unlink(missing_ok=True)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path == source / last):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (target / INCOMPLETE).unlink()
