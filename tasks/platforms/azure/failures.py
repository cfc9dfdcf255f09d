"""What the service says of a failure -> its class, its cause and what to do, for people."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tasks.platforms.errors import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """How the service words one kind of failure: error codes and parts of messages, as one pattern."""

    failure: Failure
    pattern: re.Pattern[str]
    fix: str


def _signature(failure: Failure, pattern: str, fix: str) -> Signature:
    return Signature(failure=failure, pattern=re.compile(pattern, re.IGNORECASE), fix=fix)


# Looked through in this order: a quota's message names the size as a capacity's does, and the reason why an
# image was not built is in the build's own log.
_SIGNATURES = (
    _signature(
        Failure.QUOTA,
        r"quota|CoresLimit|SubscriptionCoresExceeded|not enough (?:vCPUs|cores)",
        "Ask for more vCPUs of this family (Azure portal, Quotas), or choose another size or tier.",
    ),
    _signature(
        Failure.CAPACITY,
        r"OutOfCapacity|AllocationFailed|ZonalAllocation|SkuNotAvailable|OverconstrainedAllocation"
        r"|insufficient (?:\w+ )?capacity|(?:not|n't) (?:have )?(?:enough|sufficient) (?:\w+ )?capacity"
        r"|capacity (?:is )?(?:not available|unavailable|restrict)|no capacity",
        "Try again later, or choose another size or region.",
    ),
    _signature(
        Failure.PREEMPTION,
        r"preempt|NodeLost|evicted by (?:Azure|the platform)",
        "The next attempt continues from the last checkpoint; set compute.tier to dedicated to avoid it.",
    ),
    _signature(
        Failure.IMAGE_BUILD,
        r"image ?build|ImagePull|ErrImage|conda ?(?:env(?:ironment)? )?(?:create|update).*(?:fail|error)|docker build"
        r"|Environment (?:image )?(?:materiali[sz]ation|build)",
        "Read the image build's log, correct environments/<name>/, and run the same command again.",
    ),
    _signature(
        Failure.THROTTLING,
        r"\b429\b|TooManyRequests|throttl|rate limit",
        "Wait a few minutes, and run the same command again.",
    ),
    _signature(
        Failure.AUTHORISATION,
        r"AuthorizationFail|AuthenticationFail|AuthorizationPermissionMismatch|PermissionMismatch|ScopeLocked"
        r"|LinkedAuthorizationFailed|RequestDisallowedByPolicy|does not have (?:authorization|permission)"
        r"|KeyBasedAuthenticationNotPermitted|PublicAccessNotPermitted|StreamAccess\.Authentication"
        r"|StreamAccess\.Authorization|PermissionDenied|\b403\b|\bForbidden\b|\b401\b|Unauthori[sz]ed",
        "Give the identity that is named the role it lacks, wait some minutes until it holds, and run it again.",
    ),
    _signature(
        Failure.DATA,
        r"StreamAccess\.NotFound|DataAccess|DatasetMount|InputNotFound|stream not found|BlobNotFound"
        r"|The specified blob does not exist|input .* (?:not found|does not exist)|dataset.* (?:not found|could not be)",
        "Look whether the data is still in the workspace's storage, and run the same command again to prepare it.",
    ),
    _signature(
        Failure.SCORING,
        r"ResourceNotReady|readiness probe|liveness probe|CrashLoopBackOff|container (?:has )?crashed|user container",
        "Read the deployment's log: the model server ended, or did not answer its probes in time.",
    ),
    _signature(
        Failure.USER_CODE,
        r"UserError|non-zero exit code|exit(?:ed)?(?: with)?(?: status)?(?: code)? [1-9]|ExecutionFailed|UserProcess",
        "Read the job's log.",
    ),
    _signature(
        Failure.SERVICE,
        r"InternalServerError|InternalError|ServiceError|SystemError|ServiceUnavailable|ServiceTimeout|\b50[0234]\b",
        "Run the same command again; if it goes on, look at Azure's service health.",
    ),
)


def signature_of(*texts: str) -> Signature | None:
    """The first kind of failure that a text is worded like; texts with the more exact word come first."""
    for text in texts:
        for signature in _SIGNATURES:
            if text and signature.pattern.search(text):
                return signature
    return None
