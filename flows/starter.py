"""`phiflow init`: looks at a data file, or a folder of them, and writes a short, commented configuration next to it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tasks.platforms.errors import ConfigError, DataError
from trainer.errors import TrainerError
from trainer.files import write_atomic

_TEMPLATE = """\
# {about}
name: {name}            # names the run, the endpoint and the model

data:
  source: {source}
  shape: {shape}          # as detected; messages, sharegpt, alpaca, prompt-completion or auto
  test_share: 0.2         # of the conversations, kept to test on
  max_rejected_share: {max_rejected_share}

model:
  base: builtin/tiny-phi3 # small enough for any machine; for real use: microsoft/Phi-3.5-mini-instruct

train:                    # fields of trainer/config.py, named as TRL and transformers name them
  num_train_epochs: {epochs}
  learning_rate: 3e-3     # for the tiny model; 5e-6 suits full fine-tuning of a Phi model
  per_device_train_batch_size: 8
  max_length: {max_length}
  packing: false
  gradient_checkpointing: false
  eval_strategy: "no"

gate:
  min_examples: {min_examples}        # test conversations needed to decide anything

rollout:
  steps: [10, 50, 100]    # percent of the traffic
  hold_seconds: 5         # how long each step is watched
"""
# The tiny model trains about this many characters a second on two cores.
_CHARACTERS_A_SECOND = 20_000
_WANTED_SECONDS = 60


def write_starter(data_file: Path, *, force: bool) -> tuple[Path, str]:
    """Write the configuration and return its path and one line about the data.

    Raises:
        DataError: the file cannot be read, or holds no conversations.
        ConfigError: there is a configuration with this name already.
    """
    from trainer.data.inspection import inspect_source

    try:
        seen = inspect_source(data_file)
    except TrainerError as error:
        raise DataError(error.message, fix=error.fix) from error
    target, source = _beside(data_file)
    if target.exists() and not force:
        raise ConfigError(f"{target} exists.", fix="Edit it, or overwrite it with --force.")
    shown = source if source.isprintable() else repr(source)
    reasons = tuple(f"{_printable(file)}:{line}: {reason}" for file, line, reason in seen.rejected_reasons[:5])
    if seen.num_rejected == seen.num_sampled:
        raise DataError(
            f"None of {seen.num_sampled} records in {shown} can be used as shape {seen.shape}.",
            fix="Mend the file.",
            detail=reasons,
        )
    count = f"about {seen.num_records}" if seen.is_estimate else str(seen.num_records)
    shape = f"of shape {seen.shape} " if seen.shape != "auto" else "of several shapes "
    about = f"{count} records {shape}in {f'{seen.num_files} files of ' if seen.num_files > 1 else ''}{shown}"
    of = f" of {seen.num_sampled} looked at" if seen.num_sampled < seen.num_records else ""
    about += f", {seen.num_with_tools}{of} with tools" if seen.num_with_tools else ""
    about += f", {seen.num_with_parts}{of} with content in parts" if seen.num_with_parts else ""
    if seen.num_rejected:
        about += f", {seen.num_rejected} of {seen.num_sampled} looked at cannot be used"
    characters = max(1.0, seen.mean_chars * seen.num_records)
    epochs = max(1, min(40, round(_WANTED_SECONDS * _CHARACTERS_A_SECOND / characters)))
    text = _TEMPLATE.format(
        about=about,
        name=_name(target),
        source=_as_yaml(source),
        shape=seen.shape,
        epochs=epochs,
        max_length=256 if seen.max_chars < 700 else 512,
        min_examples=min(10, max(2, seen.num_records // 10)),
        max_rejected_share=_share(seen.num_rejected, seen.num_sampled),
    )
    try:
        write_atomic(target, text)
    except OSError as error:
        raise ConfigError(f"{target} could not be written: {error.strerror}.") from error
    return target, "\n  ".join((about, *reasons))


def _beside(data: Path) -> tuple[Path, str]:
    """Where the configuration goes, next to the file, the folder or what a pattern is below; and the source in it."""
    from trainer.data.listing import is_pattern

    if data.is_dir():
        folder = data if data.name not in ("", "..") else data.resolve()
        return folder.with_name(f"{folder.name}.yaml"), f"./{folder.name}"
    if not is_pattern(str(data)):
        return data.with_suffix(".yaml"), data.name
    folder = next(parent for parent in data.parents if parent.is_dir())
    below = data.relative_to(folder)
    if not folder.name:
        return folder / f"{_name(folder.resolve())}.yaml", str(below)
    return folder.with_name(f"{folder.name}.yaml"), f"{folder.name}/{below}"


def _printable(file: str) -> str:
    name = Path(file).name
    return name if name.isprintable() else repr(name)


def _as_yaml(name: str) -> str:
    """The file's name as it is where YAML reads it so, else in quotes."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*\.[a-z]+", name):
        return name
    return yaml.safe_dump(name, default_style='"', allow_unicode=True, width=10_000).strip()


def _share(rejected: int, sampled: int) -> str:
    if not rejected:
        return "0.0"
    return f"0.0   # {rejected} of {sampled} records would stop the run: mend them, or raise this share"


def _name(data_file: Path) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", data_file.stem.lower()).strip("-")[:32].strip("-")
    # "yes" and "null" are words that YAML does not read as text.
    usable = re.fullmatch(r"[a-z][a-z0-9-]{1,30}[a-z0-9]", slug) and isinstance(yaml.safe_load(slug), str)
    return slug if usable else f"chat-{slug}"[:32].strip("-")
