"""Exceptions of Azure's libraries and of HTTP -> ours; the one place where this happens.

Messages pass through `clean`, because the service's own and those of HTTP libraries may quote signed URLs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DecodeError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)

from tasks.platforms.azure.failures import signature_of
from tasks.platforms.azure.secrets import clean, clean_lines, holds_secret
from tasks.platforms.errors import (
    ConfigError,
    ConflictError,
    EnvironmentBuildError,
    Failure,
    NotFoundError,
    PermissionDeniedError,
    PhiflowError,
    QuotaError,
    TransientPlatformError,
)

_MAX_CAUSES = 8
_AGAIN = "Run the same command again in a moment."
_LOGIN = "Sign in with `az login`, or set platform.credential (device-code needs no browser on this machine)."
_ROLE = "Ask an owner of the resource group for the role that allows it, and wait some minutes until it holds."
_CERTIFICATE = "If a proxy opens the connection, set REQUESTS_CA_BUNDLE to a file with your company's CA."


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Let errors of Azure's libraries and of HTTP leave a `with` block as ours.

    Args:
        what: names the thing at the beginning of a sentence, as in "Job phi-123".
    Raises:
        PhiflowError: the one that fits, with its class of failure and what to do.
    """
    raised: Exception
    try:
        yield
        return
    except PhiflowError:
        raise
    except (AzureError, requests.RequestException) as error:
        raised = error
    ours = error_of(raised, what)
    # A traceback quotes the cause, so a cause that quotes a signed URL is left out.
    raise ours from (raised if _is_clean(raised) else None)


def error_of(error: Exception, what: str) -> PhiflowError:
    """Our error for one of Azure's libraries or of requests."""
    cause = _telling_cause(error)
    if isinstance(cause, ClientAuthenticationError) and cause.response is None:
        return PermissionDeniedError(
            f"{what} cannot be reached, because nobody is signed in: {_first_line(_text(cause))}",
            fix=_LOGIN,
            failure=Failure.AUTHORISATION,
        )
    said = _said(cause)
    if said is not None:
        return error_of_answer(said.status, said.code, said.message, what)
    return _error_without_answer(cause, what)


def error_of_answer(status: int, code: str, message: str, what: str) -> PhiflowError:
    """Our error for what the service answered: HTTP status, its own error code and message."""
    message = clean(message) or "no reason given"
    told = f"{message.rstrip('. ')} ({', '.join(filter(None, (code, f'HTTP {status}')))})."
    signature = signature_of(code, message)
    failure = signature.failure if signature else None
    if status == 404 or code in ("ResourceNotFound", "BlobNotFound", "ContainerNotFound"):
        return NotFoundError(f"{what} was not found: {told}")
    if failure == Failure.QUOTA and signature and status < 500 and status != 429:
        return QuotaError(f"{what} was refused for lack of quota: {told}", fix=signature.fix, failure=failure)
    if status == 401:
        return PermissionDeniedError(
            f"{what} was refused to the caller: {told}", fix=_LOGIN, failure=Failure.AUTHORISATION
        )
    if status == 403:
        return PermissionDeniedError(
            f"{what} was refused to the caller: {told}", fix=_ROLE, failure=Failure.AUTHORISATION
        )
    if status == 429:
        return TransientPlatformError(f"{what}: too many requests: {told}", fix=_AGAIN, failure=Failure.THROTTLING)
    if status == 408 or status >= 500 or status < 300:
        return TransientPlatformError(
            f"{what}: the service did not answer as it should: {told}",
            fix=_AGAIN,
            failure=Failure.CAPACITY if failure == Failure.CAPACITY else Failure.SERVICE,
        )
    if status in (409, 412):
        return ConflictError(f"{what} is held or was changed by somebody else: {told}")
    kind = EnvironmentBuildError if failure == Failure.IMAGE_BUILD else PhiflowError
    return kind(f"{what} was refused: {told}", fix=signature.fix if signature else "", failure=failure)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    code: str
    message: str


def _error_without_answer(cause: Exception, what: str) -> PhiflowError:
    text = clean(_text(cause))
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return PhiflowError(f"{what} cannot be reached: its certificate is not trusted: {text}", fix=_CERTIFICATE)
    if isinstance(cause, ServiceRequestError | ServiceResponseError | requests.RequestException):
        return TransientPlatformError(
            f"{what} cannot be reached: {text}",
            fix="Look at the network and, where there is one, HTTPS_PROXY; then run the same command again.",
            failure=Failure.SERVICE,
        )
    if _is_a(cause, "ValidationException"):
        return ConfigError(f"{what} was refused before it was sent: {text}")
    return PhiflowError(f"{what} failed: {text}")


def _said(error: Exception) -> _Answer | None:
    """What the service answered, where the error is about an answer."""
    response: Any = getattr(error, "response", None)
    if isinstance(error, requests.RequestException):
        return None if response is None else _read_answer(response.status_code, response)
    if not isinstance(error, HttpResponseError) or (response is None and error.status_code is None):
        return None
    status = 502 if isinstance(error, DecodeError) else int(error.status_code or 502)
    code = getattr(error, "error_code", None) or getattr(error.error, "code", None) or ""
    message = getattr(error.error, "message", None) or _first_line(error.message or "")
    details = [str(getattr(one, "message", "")) for one in getattr(error.error, "details", None) or ()]
    return _Answer(status, str(getattr(code, "value", code)), _with_details(str(message), details))


def _with_details(message: str, details: list[str]) -> str:
    """The message with what the service wraps in it: a refused deployment's reason is in a detail, in JSON."""
    told = [message]
    for detail in filter(None, details):
        try:
            start = detail.index('{"errors"')
            reasons = json.JSONDecoder().raw_decode(detail[start:])[0]["errors"].values()
            told += [str(reason) for listed in reasons for reason in listed]
        except (ValueError, AttributeError, TypeError):
            told.append(detail)
    return " ".join(text.partition(" Please see troubleshooting guide")[0] for text in dict.fromkeys(told))


def _read_answer(status: int, response: requests.Response) -> _Answer:
    try:
        error = response.json().get("error", {})
        if isinstance(error, dict):
            code, message = str(error.get("code") or ""), str(error.get("message") or "")
            details = [str(one.get("message") or "") for one in error.get("details") or () if isinstance(one, dict)]
            return _Answer(status, code, _with_details(message, details) or response.reason or "")
    except (ValueError, AttributeError):
        pass
    return _Answer(status, response.headers.get("x-ms-error-code", ""), response.text[:2000] or response.reason or "")


def _telling_cause(error: Exception) -> Exception:
    """The error that holds the service's answer: the SDK wraps some of them in its own."""
    current: Any = error
    for _ in range(_MAX_CAUSES):
        if isinstance(current, HttpResponseError | ServiceRequestError | ServiceResponseError):
            return current
        if not _is_a(current, "MlException") or _is_a(current, "ValidationException"):
            break
        current = current.__cause__ or getattr(current, "inner_exception", None) or current.__context__
    return current if isinstance(current, AzureError | requests.RequestException) else error


def _is_a(error: object, class_name: str) -> bool:
    """By name, because importing the SDK's exceptions imports all of the SDK, which takes seconds."""
    return any(kind.__name__ == class_name for kind in type(error).__mro__)


def _text(error: Exception) -> str:
    return str(getattr(error, "message", "") or error)


def _first_line(text: str) -> str:
    return next((line.strip() for line in clean_lines(text) if line.strip()), "")


def _is_clean(error: BaseException) -> bool:
    """Whether neither the error nor what it was raised from quotes a secret."""
    current: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if current is None:
            return True
        if holds_secret(str(current)):
            return False
        current = current.__cause__ or current.__context__
    return True
