"""The `data` section: one source or several, how they are mixed, and how they are split."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tasks.config_section import Section


class SourceConfig(Section):
    """One source of several; what it does not say, the section says for all."""

    source: str = Field(min_length=1, description="As data.source, a single one.")
    weight: float = Field(1, gt=0, le=100, description="How often each conversation is trained on, on average.")
    shape: Literal["", "auto", "messages", "sharegpt", "alpaca", "prompt-completion"] = ""
    config: str = ""
    split: str = ""
    revision: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it is a file, a folder or a pattern of this machine; their paths are absolute."""
        return os.path.isabs(self.source)


def _kind_of_source(value: Any) -> str:
    return "a mapping" if isinstance(value, dict | SourceConfig) else "a name"


# The tags of these choices are left out of messages.
_OneSource = Annotated[
    Annotated[str, Field(min_length=1), Tag("a name")] | Annotated[SourceConfig, Tag("a mapping")],
    Discriminator(_kind_of_source),
]
_Sources = Annotated[
    Annotated[str, Field(min_length=1), Tag("a name")]
    | Annotated[tuple[_OneSource, ...], Field(min_length=1), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "a name"),
]
_TestSource = Annotated[
    Annotated[str, Tag("a name")] | Annotated[SourceConfig, Tag("a mapping")], Discriminator(_kind_of_source)
]


class DataConfig(Section):
    """Where the chats come from and how they are split."""

    source: _Sources = Field(
        description="A file (JSONL, JSON, CSV, Parquet), a folder of them, a pattern, a Hugging Face id, or a list of"
        " these, each with a weight or not."
    )
    config: str = Field("", description="The hub data set's configuration.")
    split: str = Field("train", description="The hub data set's split, slices allowed: train_sft[:1%].")
    revision: str = Field("", description="The hub data set's commit, tag or branch.")
    streaming: bool = Field(False, description="Keep nothing of hub data sets on the disk but what is prepared.")
    shape: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion"] = "auto"
    group_by: str = Field("", description="Records with the same value of this key stay on one side.")
    test_share: float = Field(0.2, gt=0, lt=1)
    test_source: _TestSource = Field("", description="A fixed test set instead of a share of the source.")
    seed: int = Field(0, ge=0)
    max_rejected_share: float = Field(0.0, ge=0, le=1)
    deduplicate: bool = Field(False, description="Of equal conversations only the first of a side stays.")
    max_examples: int | None = Field(
        None, ge=2, description="Most conversations of both sides, chosen by the seed; a greater number only adds."
    )

    @model_validator(mode="after")
    def _tests_have_no_weight(self) -> DataConfig:
        if isinstance(self.test_source, SourceConfig) and self.test_source.weight != 1:
            raise ValueError("data.test_source has a weight, but what is tested on is tested on once; leave it out")
        return self

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """Every source, with the settings of hub data sets filled in."""
        given = (self.source,) if isinstance(self.source, str) else self.source
        hub = {"config": self.config, "split": self.split, "revision": self.revision}
        return tuple(_source(item, hub) for item in given if item)

    @property
    def tests(self) -> SourceConfig | None:
        """The fixed test set, if there is one."""
        return _source(self.test_source, {}) if self.test_source else None

    @property
    def label(self) -> str:
        """The sources in a message to a person."""
        first, *others = [item.source for item in self.sources]
        return f"{first} and {len(others)} more" if others else first

    def with_sources(self, change: Callable[[SourceConfig], SourceConfig | None]) -> DataConfig:
        """The sources and the test set as `change` makes them, without those that it makes nothing of."""
        sources = tuple(made for item in self.sources if (made := change(item)) is not None)
        tests = change(self.tests) if self.tests else None
        return self.model_copy(update={"source": sources, "test_source": tests or ""})


def _source(item: str | SourceConfig, hub: dict[str, str]) -> SourceConfig:
    """One source; `owner/name#split` is its split, and a hub data set has what it does not say itself from `hub`."""
    source = SourceConfig(source=item) if isinstance(item, str) else item
    if source.is_file:
        return source
    name, _, split = source.source.partition("#")
    own = {key: getattr(source, key) or value for key, value in hub.items()}
    return source.model_copy(update={**own, "source": name, **({"split": split} if split else {})})
