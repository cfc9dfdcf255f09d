"""What the service says of a failure -> its class, its cause and what to do, for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.platforms.azure.secrets import clean
from tasks.platforms.errors import Failure

_LONGEST_CAUSE = 300


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
        r"\bquota|CoreQuota|OutOfQuota|QuotaExceeded|CoresLimit|SubscriptionCoresExceeded|not enough (?:vCPUs|cores)",
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
        r"pre-?empt|NodeLost|evicted by (?:Azure|the platform)",
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
        r"|The specified blob does not exist|input .*(?:not found|does not exist)|dataset.*(?:not found|could not be)",
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


# The message of a command that ended badly quotes its output, where any word of the others may stand.
_USER_PROCESS = re.compile(r"User (?:process|program)|exited with (?:status )?code|non-zero exit code", re.IGNORECASE)
_STATUS_CODE = re.compile(r"(?:status|exit) code:? (-?\d+)", re.IGNORECASE)
_QUOTED_OUTPUT = re.compile(r"(?<=[.\s])(?:Please check log file|Error:|Traceback)", re.IGNORECASE)
_KILLED = {"137": "was killed, as it is when the node's memory is used up", "-9": "was killed"}
_SAID_KINDS = {"configuration": Failure.USER_CODE, "data": Failure.DATA, "preempted": Failure.PREEMPTION}
_INPUT_KINDS = ("configuration", "data")
_NEXT_ATTEMPT = "The next attempt continues from the last checkpoint."
# Which log tells why, by class; the first that a job has.
_LOGS = {
    Failure.IMAGE_BUILD: (r"image_build_log",),
    Failure.USER_CODE: (r"user_logs/std_log(?:_process_0+)?\.txt", r"user_logs/std_log", r"azureml-logs/70_"),
    Failure.DATA: (r"data-capability.*(?:rslex|stderr|data)", r"data-capability", r"lifecycler/"),
    Failure.AUTHORISATION: (r"data-capability", r"lifecycler/", r"image_build_log"),
}
_ANY_LOG = (r"user_logs/std_log(?:_process_0+)?\.txt", r"user_logs/", r"lifecycler/", r"system_logs/", r"azureml-logs/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Why a job failed: its class, its cause in one line, what to do, and the log that tells more."""

    failure: Failure
    cause: str
    fix: str
    log: str = ""
    is_input_error: bool = False


def diagnose(code: str, message: str, logs: Sequence[str], said: Mapping[str, Any] | None) -> Diagnosis:
    """The class of a job's failure.

    Args:
        code, message: the error of its run.
        logs: the paths of its logs.
        said: the trainer's own error, which knows better what it met.
    """
    signature = None if _USER_PROCESS.search(message) else signature_of(message, code)
    failure = signature.failure if signature else _of_process(message)
    if said and (failure == Failure.USER_CODE or signature is None):
        return _as_said(said, logs)
    if signature and failure != Failure.USER_CODE:
        return Diagnosis(
            failure=failure, cause=_readable(message) or code, fix=signature.fix, log=_log_of(failure, logs)
        )
    log = _log_of(failure, logs)
    status = _STATUS_CODE.search(message)
    how = _KILLED.get(status[1], f"ended with exit code {status[1]}") if status else ""
    cause = f"its command {how}" if how else _readable(message) or "the service gives no reason"
    if failure == Failure.PREEMPTION:
        return Diagnosis(failure=failure, cause="its command was told to stop", fix=_NEXT_ATTEMPT, log=log)
    if failure == Failure.SERVICE:
        return Diagnosis(failure=failure, cause=cause, fix=_NEXT_ATTEMPT, log=log)
    fix = "Choose a size with more memory, or set a smaller train.max_length or batch size." if "memory" in how else ""
    return Diagnosis(failure=failure, cause=cause, fix=fix or (f"Read {log}." if log else "Look at the job."), log=log)


def _of_process(message: str) -> Failure:
    """The class of a command's end; the trainer says with exit code 75 that it was stopped from outside."""
    status = _STATUS_CODE.search(message)
    if status and status[1] in ("75", "143", "-15"):
        return Failure.PREEMPTION
    return Failure.USER_CODE if status or _USER_PROCESS.search(message) else Failure.SERVICE


def _as_said(said: Mapping[str, Any], logs: Sequence[str]) -> Diagnosis:
    kind = str(said.get("kind") or "bug")
    failure = _SAID_KINDS.get(kind, Failure.USER_CODE)
    log = _log_of(Failure.USER_CODE, logs)
    fix = str(said.get("fix") or "") or (
        _NEXT_ATTEMPT if failure == Failure.PREEMPTION else f"Read {log}." if log else ""
    )
    return Diagnosis(
        failure=failure,
        cause=clean(str(said.get("message") or "the trainer failed")),
        fix=clean(fix),
        log=log,
        is_input_error=kind in _INPUT_KINDS,
    )


def _log_of(failure: Failure, logs: Sequence[str]) -> str:
    for pattern in (*_LOGS.get(failure, ()), *_ANY_LOG):
        for path in sorted(logs):
            if re.search(pattern, path):
                return path
    return ""


def _readable(message: str) -> str:
    """The sentence of a message: without the JSON around it, the log that it quotes, and the tabs."""
    start = message.find("{")
    if start >= 0:
        try:
            details, _ = json.JSONDecoder().raw_decode(message[start:])
            values = [str(entry.get("value") or "") for entry in details.get("error_details") or () if entry]
            told = details.get("message") or details.get("NonCompliant") or "; ".join(filter(None, values))
            message = f"{message[:start].strip()} {told or ''} {details.get('code') or ''}".strip()
        except (ValueError, AttributeError):
            pass
    head = _QUOTED_OUTPUT.split(message, maxsplit=1)[0] or message
    text = clean(head).rstrip(". ")
    return text if len(text) <= _LONGEST_CAUSE else f"{text[: _LONGEST_CAUSE - 3]}..."
