"""Errors of Azure's libraries and of HTTP become ours: right class, named thing, nothing secret."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import requests
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
)

from tasks.platforms.azure.secrets import clean
from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import (
    ConfigError,
    ConflictError,
    Failure,
    NotFoundError,
    PermissionDeniedError,
    PhiflowError,
    QuotaError,
    TransientPlatformError,
)

SAS = "https://account.blob.core.windows.net/c/logs/events.jsonl?sv=2024&se=2026-11-21&sig=Planted%2BCanary%3D"


def answer(status: int, code: str = "", message: str = "It was not to be.", **headers: str) -> requests.Response:
    """What the service sends, as requests shows it."""
    response = requests.Response()
    response.status_code, response.reason, response.url = status, "Reason", "https://management.azure.com/x"
    response.headers.update(headers)
    body: dict[str, Any] = {"error": {"code": code, "message": message}}
    response._content = requests.compat.json.dumps(body).encode()
    return response


def raised(error: Exception, what: str = "Job phi-1") -> PhiflowError:
    """What leaves the block for what was raised in it."""
    with pytest.raises(PhiflowError) as caught, translated(what):
        raise error
    return caught.value


def of_answer(*arguments: Any) -> PhiflowError:
    """What leaves the block for an answer of the service."""
    return raised(requests.HTTPError(response=answer(*arguments)))


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "failure"),
    [
        (404, "ResourceNotFound", "Run phi-1 was not found", NotFoundError, None),
        (409, "Conflict", "Another operation is in progress", ConflictError, None),
        (412, "LeaseIdMissing", "There is a lease", ConflictError, None),
        (401, "InvalidAuthenticationToken", "The token has expired", PermissionDeniedError, Failure.AUTHORISATION),
        (403, "AuthorizationFailed", "has no authorization", PermissionDeniedError, Failure.AUTHORISATION),
        (408, "RequestTimeout", "Too slow", TransientPlatformError, Failure.SERVICE),
        (429, "TooManyRequests", "Slow down", TransientPlatformError, Failure.THROTTLING),
        (500, "InternalServerError", "Oh", TransientPlatformError, Failure.SERVICE),
        (503, "ServiceUnavailable", "Later", TransientPlatformError, Failure.SERVICE),
        (400, "BadRequest", "Not enough quota available for Standard_E4s_v3", QuotaError, Failure.QUOTA),
        (400, "OutOfCapacity", "The region has none", PhiflowError, Failure.CAPACITY),
        (400, "UserError", "The command field is required.", PhiflowError, Failure.USER_CODE),
    ],
)
def test_answer_becomes_the_error_that_fits(
    status: int, code: str, message: str, kind: type[PhiflowError], failure: Failure | None
) -> None:
    """Each status has its error and its class, and the message names the thing, the reason, the code."""
    error = of_answer(status, code, message)
    assert type(error) is kind
    assert error.failure == failure
    assert error.message.startswith("Job phi-1")
    assert message.rstrip(".") in error.message
    assert code in error.message
    assert isinstance(error.__cause__, requests.HTTPError)


def test_sdk_answers_are_read_alike() -> None:
    """azure-core's exceptions carry the same answer."""
    missing = ResourceNotFoundError("(ResourceNotFound) There is no job.")
    missing.status_code = 404
    assert isinstance(raised(missing), NotFoundError)
    refused = HttpResponseError("(AuthorizationFailed) No.\nCode: AuthorizationFailed")
    refused.status_code = 403
    assert isinstance(raised(refused), PermissionDeniedError)


def test_no_login_says_how_to_sign_in() -> None:
    """Without a token the fix is the command that gets one."""
    error = raised(ClientAuthenticationError("DefaultAzureCredential failed to retrieve a token.\nAttempted: many"))
    assert isinstance(error, PermissionDeniedError)
    assert "az login" in error.fix
    assert "\n" not in str(error)


@pytest.mark.parametrize("error", [requests.ConnectionError("refused"), ServiceRequestError("refused")])
def test_unreachable_may_be_tried_again(error: Exception) -> None:
    """What did not answer may answer later."""
    assert isinstance(raised(error), TransientPlatformError)


def test_untrusted_certificate_is_not_tried_again() -> None:
    """A proxy's certificate is no passing fault, and the fix names the variable."""
    error = raised(requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer"))
    assert not isinstance(error, TransientPlatformError)
    assert "REQUESTS_CA_BUNDLE" in error.fix


def test_sdk_exception_is_looked_through() -> None:
    """The SDK's own exception around an answer counts as that answer; its validation is the configuration's fault."""
    exceptions = pytest.importorskip("azure.ai.ml.exceptions")
    inner = HttpResponseError("(TooManyRequests) Slow down")
    inner.status_code = 429
    outer = exceptions.JobException(message="It failed", no_personal_data_message="It failed")
    outer.__cause__ = inner
    assert raised(outer).failure == Failure.THROTTLING
    invalid = exceptions.ValidationException(message="compute is missing", no_personal_data_message="x")
    assert isinstance(raised(invalid), ConfigError)


def test_our_own_errors_pass() -> None:
    """An error that is ours already stays as it is."""
    ours = NotFoundError("There is no job.")
    assert raised(ours) is ours


def test_signatures_stay_out() -> None:
    """Neither the message nor the traceback quotes a signed URL, an account key or a token."""
    quoted = requests.ConnectionError(f"HTTPSConnectionPool: Max retries exceeded with url: {SAS} (refused)")
    error = raised(quoted, "Log logs/events.jsonl")
    told = "".join(traceback.format_exception(error))
    assert "PlantedCanary" not in told.replace("%2B", "")
    assert "sig=" not in told
    assert "account.blob.core.windows.net/c/logs/events.jsonl" in error.message
    planted = f"AccountKey=PlantedKey== Bearer PlantedToken hf_{'P' * 20} eyJ0{'a' * 12}.eyJ.sig"
    assert "Planted" not in clean(planted)
    assert "PPPP" not in clean(planted)


def test_answer_that_is_no_json_is_told() -> None:
    """A gateway's HTML is quoted in part, on one line."""
    response = answer(502)
    response._content = b"<html>\n<body>Bad Gateway</body></html>"
    error = raised(requests.HTTPError(response=response))
    assert isinstance(error, TransientPlatformError)
    assert "Bad Gateway" in error.message
    assert "\n" not in error.message
