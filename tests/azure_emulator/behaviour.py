"""How a type of resource differs from the others: asked by `foundation.py`, answered by `foundation_types.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.resource_ids import ResourceId
from tests.azure_emulator.web import Answer, Request

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator


@dataclass(frozen=True)
class Wanted:
    """What a PUT asks for.

    Attributes:
        before: the resource that is there already, or None.
    """

    emulator: Emulator
    target: ResourceId
    body: dict[str, Any]
    before: dict[str, Any] | None

    @property
    def properties(self) -> dict[str, Any]:
        """The body's properties."""
        return self.body.get("properties") or {}


class Behaviour:
    """A type of which the provider does nothing that matters here."""

    def require(self, it: Wanted) -> None:
        """Raise a ServiceError when the provider refuses the body; asked before a template is deployed, too."""

    def require_new(self, it: Wanted) -> None:
        """Raise a ServiceError when the provider refuses that it is made now."""

    def completed(self, it: Wanted, resource: dict[str, Any]) -> dict[str, Any]:
        """The resource with what the provider adds."""
        resource["properties"]["provisioningState"] = "Succeeded"
        return resource

    def made(self, emulator: Emulator, resource: dict[str, Any], before: dict[str, Any] | None) -> None:
        """Do what comes with the resource, which is stored already."""

    def require_removable(self, emulator: Emulator, resource: dict[str, Any]) -> None:
        """Raise a ServiceError when the provider refuses its deletion."""

    def removed(self, emulator: Emulator, resource: dict[str, Any], query: dict[str, str] | None) -> None:
        """Do what goes with the resource, which is still stored.

        Args:
            query: of the request that deletes it; none when its group is deleted.
        """

    def absent(self, emulator: Emulator, target: ResourceId, request: Request) -> Answer:
        """Answer the deletion of what is not there."""
        return Answer(204)
