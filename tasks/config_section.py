"""What every section of the configuration is: frozen, and strict about its keys and values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

NAME = r"^[a-z][a-z0-9-]{1,30}[a-z0-9]$"
Name = Annotated[str, Field(pattern=NAME)]
OptionalName = Annotated[str, Field(pattern=NAME[:-1] + r"$|^$")]


class Section(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"{str(value).lower()} is neither a number nor text")
        return value
