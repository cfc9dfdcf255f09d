"""From a YAML file and `--set` overrides to a `PipelineConfig`, with each value's origin.

A mistake becomes one `ConfigError` line that names the key, the value and the nearest right one.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tasks.config import WORKSPACE_VARIABLES, AzurePlatformConfig, LocalPlatformConfig, PipelineConfig, SourceConfig
from tasks.platforms.errors import ConfigError
from trainer.config import TrainConfig

MAX_CONFIG_BYTES = 1 << 20
_FILE_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_KINDS_OF_SOURCE = ("a name", "several", "a mapping")
# (section, key) of values that may be paths, and so are made absolute at the edge.
_PATHS = (
    ("data", "source"),
    ("data", "test_source"),
    ("model", "base"),
    ("platform", "home"),
    ("cost", "prices"),
    ("train", "command_dir"),
)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two repairs: `5e-6` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document; ConfigError names the place of a mistake."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if problem.startswith("but "):
            problem = f"{getattr(error, 'context', '')}, {problem}"
        raise ConfigError(f"{place}: {problem}.") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply.") from error
    except ValueError as error:  # a date that does not exist, a number of thousands of digits
        raise ConfigError(f"{where}: {str(error).partition(';')[0]}.", fix="Quote it if it is text.") from error


def load_config(path: str | Path, overrides: list[str] | None = None) -> PipelineConfig:
    """Resolve a configuration file and its overrides, paths made absolute.

    Raises:
        ConfigError: with one line for the first mistake.
    """
    return resolve_config(path, overrides)[0]


def resolve_config(path: str | Path, overrides: list[str] | None = None) -> tuple[PipelineConfig, dict[str, str]]:
    """Resolve as `load_config` does, and say where each dotted key's value came from."""
    values = _read_file(Path(path))
    origins = {key: str(path) for key in _flatten(values)}
    _make_paths_absolute(values, Path(path).resolve().parent, set(origins))
    given: set[str] = set()
    for override in overrides or []:
        key, value = _parse_override(override)
        _place(values, key, value)
        origins = {known: origin for known, origin in origins.items() if not known.startswith(f"{key}.")}
        for dotted in _flatten({key: value}) if isinstance(value, dict) else [key]:
            origins[dotted] = "--set"
            given.add(dotted)
    _make_paths_absolute(values, Path.cwd(), given)
    origins |= _workspace_from_environment(values)
    config = build_config(values, f"{path} with --set" if overrides else str(path))
    for key in _flatten(config.model_dump(mode="json")):
        origins.setdefault(key, "default")
    return config, origins


def build_config(values: dict[str, Any], where: str) -> PipelineConfig:
    """Validate parsed values; ConfigError is one line about the first mistake."""
    try:
        return PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_mistake(error)}") from error


def with_absolute_paths(config: PipelineConfig) -> PipelineConfig:
    """Resolve paths against the working directory, as a worker must that was given them relative."""
    values = config.model_dump(mode="json")
    _make_paths_absolute(values, Path.cwd(), set(_flatten(values)))
    return build_config(values, config.name)


def _workspace_from_environment(values: dict[str, Any]) -> dict[str, str]:
    """The origins of what `AzurePlatformConfig` fills in where the configuration leaves out a workspace."""
    platform = values.get("platform")
    if not isinstance(platform, dict) or platform.get("kind") != "azure":
        return {}
    return {f"platform.{key}": name for key, name in WORKSPACE_VARIABLES.items() if not platform.get(key)}


def _read_file(path: Path) -> dict[str, Any]:
    if os.path.isdir(path):
        raise ConfigError(f"Configuration {path} is a folder, not a file.", fix="Name a YAML file in it.")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")], 1, 0.5)
        hint = f"Did you mean {path.parent / near[0]}.yaml?" if near else "Write one with: phiflow init DATA_FILE"
        raise ConfigError(f"Configuration {path} does not exist.", fix=hint) from error
    except PermissionError as error:
        raise ConfigError(f"Configuration {path} may not be read by this user.") from error
    except OSError as error:
        raise ConfigError(f"Configuration {path} cannot be read: {error.strerror}.") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"Configuration {path} is over {MAX_CONFIG_BYTES} bytes: not a configuration.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"Configuration {path} is not UTF-8 at byte {error.start}.") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"Configuration {path} must be a mapping with at least name and data.")
    try:
        _flatten(values)
    except RecursionError as error:
        raise ConfigError(f"Configuration {path}: an alias (*) stands inside its own anchor (&).") from error
    return values


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected section.key=value.")
    return key.strip(), parse_yaml(text, f"--set {key}") if text else ""


def _place(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {dotted}: {section} is a value, not a section.")
    values[last] = value


def _flatten(values: Any, prefix: str = "") -> list[str]:
    if not isinstance(values, dict):
        return [prefix]
    return [key for name, value in values.items() for key in _flatten(value, f"{prefix}.{name}".lstrip("."))]


def looks_like_path(value: str, base: Path) -> bool:
    """Tell a file or folder from a hub id."""
    is_named_so = value.startswith((".", "/", "~")) or value.lower().endswith(_FILE_SUFFIXES)
    return is_named_so or "*" in value or "?" in value or os.path.exists(base / value)


def _make_paths_absolute(values: dict[str, Any], base: Path, keys: set[str]) -> None:
    for section, key in _PATHS:
        block = values.get(section)
        named = f"{section}.{key}"
        if isinstance(block, dict) and any(given == named or given.startswith(f"{named}.") for given in keys):
            block[key] = _absolute(block.get(key), base, is_path=key in ("home", "command_dir"))


def _absolute(value: Any, base: Path, *, is_path: bool = False) -> Any:
    """A path made absolute, and those of the sources in a list; what is no path is left as it is."""
    if isinstance(value, list | tuple):
        return [_absolute(item, base) for item in value]
    if isinstance(value, dict) and "source" in value:
        return {**value, "source": _absolute(value["source"], base)}
    if not isinstance(value, str) or not value or "://" in value or not (is_path or looks_like_path(value, base)):
        return value
    # normpath, not resolve(): a symbolic link is the user's own name for the place.
    return os.path.normpath(base / os.path.expanduser(value))


def _keys_at(location: tuple[Any, ...], kind: str) -> list[str]:
    model: Any = PipelineConfig
    for part in location:
        if isinstance(part, int) or part == "test_source":
            model = SourceConfig
            continue
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
        known = model.model_fields.get(str(part))
        if known is None:
            return []
        if part == "platform":
            model = {"azure": AzurePlatformConfig}.get(kind, LocalPlatformConfig)
            continue
        model = next((arg for arg in get_args(known.annotation) if isinstance(arg, type)), known.annotation)
    if model is TrainConfig:
        return list(TrainConfig.__dataclass_fields__)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _first_mistake(error: ValidationError) -> str:
    # The kind of a place decides which keys it has, and an unknown key explains a missing one.
    mistakes = sorted(error.errors(), key=lambda m: (m["loc"][-1:] != ("kind",), m["type"] != "extra_forbidden"))
    mistake = mistakes[0]
    kind = mistake["loc"][1] if mistake["loc"][:1] == ("platform",) and len(mistake["loc"]) > 1 else ""
    location = tuple(part for part in mistake["loc"] if part not in ("local", "azure", *_KINDS_OF_SOURCE))
    key = ".".join(str(part) for part in location)
    value = mistake.get("input")
    message = re.sub(r"^(Value error, |\w+ should (be|have) )", "", mistake["msg"])
    if mistake["type"] == "extra_forbidden":
        known = _keys_at(location[:-1], str(kind))
        near = difflib.get_close_matches(str(location[-1]), known, 1, 0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}."
        return f"unknown key {key!r}; {hint}"
    if mistake["type"] == "union_tag_invalid":
        return f"{key}.kind: {mistake['ctx']['tag']!r} is not valid; expected 'local' or 'azure'."
    if mistake["type"] == "missing":
        return f"the key '{key}' is missing."
    if mistake["type"] == "value_error":
        told = message if not key or message.startswith(f"{key}.") else f"{key}: {message}"
        return told if told.endswith((".", "?")) else f"{told}."
    if mistake["type"] in ("model_type", "dataclass_type"):
        message = "a section of keys and values"
    if mistake["type"] == "string_pattern_mismatch":
        message = "lower-case letters, digits and hyphens, starting with a letter"
        message += ", 3 to 32 characters" if "{" in mistake["ctx"]["pattern"] else ""
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return f"{key}: {shown} is not valid; expected {message}."
