"""Writes values into a configuration file as a careful person would: comments, order and the rest stay."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.platforms.errors import ConfigError

_LONGEST_LINE = 4096  # longer than any: the library would fold lines of the user's


def set_values(path: Path, values: Mapping[str, str]) -> tuple[str, ...]:
    """Set dotted keys of a YAML file, and return those that were not so before; nothing is written when all were.

    Raises:
        ConfigError: the file cannot be read or written, is no YAML, or has something else where a section belongs.
    """
    path = path.resolve()  # a symbolic link stays one
    yaml, document, line_end = _read(path)
    changed = tuple(key for key, value in values.items() if _read_value(document, key) != value)
    for key in changed:
        _place(document, key, values[key], path)
    if changed:
        text = io.StringIO()
        yaml.dump(document, text)
        _write(path, text.getvalue(), line_end)
    return changed


def as_yaml(values: Mapping[str, str]) -> str:
    """Dotted keys as the lines of a file that has them, for a person to copy."""
    document: dict[str, Any] = {}
    for dotted, value in values.items():
        *sections, last = dotted.split(".")
        block = document
        for section in sections:
            block = block.setdefault(section, {})
        block[last] = _scalar(value)
    text = io.StringIO()
    _round_trip().dump(document, text)
    return text.getvalue().rstrip()


def _round_trip() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = _LONGEST_LINE
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _read(path: Path) -> tuple[Any, Any, str]:
    """The writer that keeps the file's indentation, its content, and how its lines end."""
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.util import load_yaml_guess_indent

    yaml = _round_trip()
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read()
            line_end = "\r\n" if file.newlines == "\r\n" else "\n"
        _, indent, offset = load_yaml_guess_indent(text)
        document = yaml.load(text)
    except (OSError, ValueError, YAMLError) as error:
        raise ConfigError(f"Configuration {path} cannot be edited: {_reason(error)}.") from error
    if indent:
        yaml.indent(mapping=2, sequence=indent, offset=offset or 0)
    if not isinstance(document, dict):
        raise ConfigError(f"Configuration {path} cannot be edited: it is no mapping.")
    return yaml, document, line_end


def _read_value(document: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        if not isinstance(document, dict) or key not in document:
            return None
        document = document[key]
    return document


def _place(document: Any, dotted: str, value: str, path: Path) -> None:
    from ruamel.yaml.comments import CommentedMap

    *sections, last = dotted.split(".")
    below, block = _take_below(document.get(sections[0])), document
    for name in sections:
        if block.get(name) is None:
            block[name] = CommentedMap()
        block = block[name]
        if not isinstance(block, dict):
            raise ConfigError(f"Configuration {path} cannot be edited: {name} is a value, not a section.")
    block[last] = _scalar(value)
    _put_below(document[sections[0]], below)


def _take_below(section: Any) -> str:
    """Take away the blank lines and comments below a section: they are about what comes next, not its last key."""
    block, key = _last_of(section)
    token = block.ca.items[key][2] if block is not None and key in block.ca.items else None
    if token is None:
        return ""
    of_the_key, _, below = token.value.partition("\n")
    token.value = f"{of_the_key}\n"
    return str(below)


def _put_below(section: Any, below: str) -> None:
    from ruamel.yaml.error import CommentMark
    from ruamel.yaml.tokens import CommentToken

    block, key = _last_of(section)
    if below and block is not None:
        block.ca.items[key] = [None, None, CommentToken(f"\n{below}", CommentMark(0), None), None]


def _last_of(section: Any) -> tuple[Any, Any]:
    """The innermost block and the key in it that ends a section; None where it ends otherwise, as in a list."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    block, key = None, None
    while isinstance(section, CommentedMap) and section and not section.fa.flow_style():
        block, key = section, next(reversed(section))
        section = section[key]
    return (None, None) if isinstance(section, CommentedSeq) and not section.fa.flow_style() else (block, key)


def _scalar(value: str) -> str:
    """Text that stays text: this library writes YAML 1.2, and configurations are read as 1.1, where no is false."""
    import yaml
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    try:
        is_plain = yaml.safe_load(value) == value
    except yaml.YAMLError:
        is_plain = False
    return value if is_plain else DoubleQuotedScalarString(value)


def _write(path: Path, text: str, line_end: str) -> None:
    """Replace the file at once, with the rights that it has; what reads it sees the old or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "w", encoding="utf-8", newline=line_end) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)  # the process's mask took some
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"Configuration {path} cannot be written: {_reason(error)}.") from error
    except BaseException:  # Ctrl-C too must not leave a part behind
        temporary.unlink(missing_ok=True)
        raise


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]
