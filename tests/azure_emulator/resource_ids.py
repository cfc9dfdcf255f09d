"""Resource ids taken apart: scope, type and names, by Resource Manager's rules."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

_PROVIDERS = re.compile(r"/providers/", re.IGNORECASE)
_GROUP = re.compile(r"(/subscriptions/[^/]+/resourceGroups/[^/]+)(?:/.*)?", re.IGNORECASE)


@dataclass(frozen=True)
class ResourceId:
    """An id such as /subscriptions/S/resourceGroups/G/providers/Microsoft.Storage/storageAccounts/A.

    Attributes:
        scope: what is before the last `/providers/`: a subscription, a group, or a resource that is extended.
        type: as in Microsoft.Storage/storageAccounts, spelled as in the id.
        names: one for each segment of the type behind the namespace; one fewer for a list of resources.
    """

    scope: str
    type: str
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The last of the names."""
        return self.names[-1]

    @property
    def full_name(self) -> str:
        """All names, as a template writes them: parent/child."""
        return "/".join(self.names)

    @property
    def is_list(self) -> bool:
        """Whether it names all resources of a type."""
        return len(self.names) < self.type.count("/")

    @property
    def parent(self) -> str:
        """The id of the resource that this one is a child of; empty when it is nobody's."""
        kinds = self.type.split("/")
        return resource_id(self.scope, "/".join(kinds[:-1]), self.names[:-1]) if len(self.names) > 1 else ""

    def __str__(self) -> str:
        return resource_id(self.scope, self.type, self.names)


def resource_id(scope: str, kind: str, names: tuple[str, ...]) -> str:
    """The id of a resource of this type in a scope; of all of the type there, when the last name is left out."""
    namespace, *kinds = kind.split("/")
    pairs = [part for pair in itertools.zip_longest(kinds, names, fillvalue="") for part in pair if part]
    return "/".join([scope, "providers", namespace, *pairs])


def parse_id(text: str) -> ResourceId | None:
    """An id taken apart; None when it is not of a resource."""
    places = list(_PROVIDERS.finditer(text))
    if not places:
        return None
    scope, (namespace, *rest) = text[: places[-1].start()], text[places[-1].end() :].strip("/").split("/")
    if not rest:
        return None
    return ResourceId(scope, "/".join([namespace, *rest[0::2]]), tuple(rest[1::2]))


def group_of(text: str) -> str:
    """The id of the resource group that something is in; empty when it is in none."""
    found = _GROUP.fullmatch(text)
    return found[1] if found else ""
