"""The checks of a configuration on Azure, in the order in which one cause hides the next; nothing is changed.

What cannot work ends what stands on it: without a network nobody is asked to sign in, without a login nothing is asked
of the subscription. Neighbours: a module for each subject, and `tasks.platforms.local.checks` for this machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from tasks.platforms.azure.checks.access import check_data_access, check_identity, check_providers, check_rights
from tasks.platforms.azure.checks.facts import Facts, Part, Purpose
from tasks.platforms.azure.checks.place import (
    check_endpoint_name,
    check_images,
    check_names,
    check_sizes,
    check_workspace,
)
from tasks.platforms.azure.checks.quota import check_quota
from tasks.platforms.azure.checks.sign_in import check_login, check_network, check_subscription
from tasks.platforms.azure.infrastructure import cluster_name
from tasks.platforms.azure.preparation import require_file
from tasks.platforms.azure.sources import data_elsewhere, data_here, is_remote, open_remote, registered_model
from tasks.platforms.local import checks as local
from tasks.platforms.local.checking import all_at_once, carried_out, passed
from tasks.platforms.upkeep import Check, Outcome

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.azure.client import Workspace

Named = tuple[str, Callable[[], Iterable[Check]]]
_CAUSES = (("network", check_network), ("login", check_login), ("subscription", check_subscription))
_RIGHTS = (("providers", check_providers), ("workspace", check_workspace), ("rights", check_rights))
_FOR_BOTH = (("size", check_sizes), ("quota", check_quota), ("endpoint", check_endpoint_name), ("names", check_names))
_FOR_RUN = (("identity", check_identity), ("data access", check_data_access), ("image", check_images))


def run_checks(
    config: PipelineConfig, workspace: Workspace, purpose: Purpose = "run", part: Part = "all"
) -> Iterator[Check]:
    """Look at what a run, or a part of `phiflow up`, needs."""
    yield from all_at_once([("compute", functools.partial(_cluster, config)), *_here(config, purpose)])
    yield from check_place(Facts(config, workspace, purpose, part))


def check_place(facts: Facts) -> Iterator[Check]:
    """Look at what is elsewhere: from the network to the name of the endpoint."""
    for name, check in _CAUSES:
        found = carried_out(name, functools.partial(check, facts))
        yield from found
        if any(one.outcome == Outcome.FAIL for one in found):
            return
    unusable = False
    for one in all_at_once(_bound(_RIGHTS, facts)):
        yield one
        unusable |= one.name in ("provider", "region") and one.outcome == Outcome.FAIL
    if unusable:  # a service that is not registered answers nothing, and the rest is asked of a region
        return
    wanted = _FOR_BOTH if facts.purpose == "up" else (*_FOR_BOTH, *_FOR_RUN)
    yield from all_at_once([*_bound(wanted, facts), *_remote_data(facts)])


def _here(config: PipelineConfig, purpose: Purpose) -> list[Named]:
    """What this machine needs, which prepares data and serves the chat app; `phiflow up` only packages."""
    if purpose == "up":
        return list(local.checks_of_installation(config))
    environments = (config.environment.training, config.environment.chat)
    checks = [*local.checks_of_installation(config), *local.checks_of_machine(config, environments)]
    checks.append(("data", functools.partial(local.check_data, data_here(config.data))))
    if is_remote(config.model.base):
        checks.append(("base model", functools.partial(_registered, config.model.base)))
    else:
        secret = getattr(config.platform, "hub_token_secret", "")
        checks.append(("base model", functools.partial(local.check_base_model, config.model, secret)))
    return checks


def _bound(checks: Iterable[tuple[str, Callable[[Facts], Iterable[Check]]]], facts: Facts) -> list[Named]:
    return [(name, functools.partial(check, facts)) for name, check in checks]


def _cluster(config: PipelineConfig) -> Iterator[Check]:
    yield passed("cluster", cluster_name(config.compute))


def _registered(base: str) -> Iterator[Check]:
    registered_model(base)
    yield passed("base model", base)


def _remote_data(facts: Facts) -> list[Named]:
    """Data that lies in Azure is looked at where it lies."""
    if not facts.has_workspace:
        return []
    return [
        (key, functools.partial(_read_remote, facts, key, address))
        for key, address in data_elsewhere(facts.config.data)
    ]


def _read_remote(facts: Facts, key: str, source: str) -> Iterator[Check]:
    require_file(open_remote(facts.workspace, source, key), source)
    yield passed("data", source)
