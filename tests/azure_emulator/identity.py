"""Sign-in: the managed identity's token endpoint, and the check of tokens on requests.

Tokens are signed with a key of the state folder. Azurite looks at issuer, audience and times of the ones for storage.

    PUT /_emulator/sign-in {"expired": true}            no more tokens are given
    PUT /_emulator/caller {"tenant": "<another GUID>"}  tokens are those of another tenant
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jwt

from tests.azure_emulator.names import ML_RESOURCE, PRINCIPAL, TENANT
from tests.azure_emulator.web import Answer, Request, ServiceError, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.settings import Settings

_SECONDS = 86400
_STORAGE = "https://storage.azure.com"
VAULT = "https://vault.azure.net"
_EXPIRED = (
    "AADSTS70043: The refresh token has expired or is invalid due to sign-in frequency checks by conditional access. "
    "Interactive authentication is needed."
)


class Identity:
    """Gives out and checks the tokens of one emulator.

    Attributes:
        header_secret: what a client must know to be given a token, as on an App Service host.
    """

    def __init__(self, folder: Path, url: str, settings: Settings) -> None:
        self._url = url
        self._settings = settings
        self._key = _ensure_secret(folder / "token-key")
        self.header_secret = _ensure_secret(folder / "identity-header")

    def token(self, resource: str) -> str:
        """A token for a resource, such as the storage of Azure."""
        now = int(time.time())
        tenant = self._settings.get("caller").get("tenant") or TENANT
        claims = {
            "aud": resource,
            "iss": f"https://sts.windows.net/{tenant}/",
            "iat": now,
            "nbf": now - 60,
            "exp": now + _SECONDS,
            "oid": PRINCIPAL,
            "sub": PRINCIPAL,
            "tid": tenant,
            "appid": PRINCIPAL,
            "ver": "1.0",
        }
        return jwt.encode(claims, self._key, algorithm="HS256")

    def give(self, request: Request) -> Answer:
        """Answer the request for a token."""
        # App Service's header, and the one of a job's MSI_ENDPOINT.
        given = request.headers.get("x-identity-header") or request.headers.get("secret", "")
        if not secrets.compare_digest(given, self.header_secret):
            raise arm_error(401, "Unauthorized", "The header X-IDENTITY-HEADER is not that of this host.")
        if self._settings.get("sign-in").get("expired"):
            return Answer(400, {"statusCode": 400, "message": _EXPIRED})  # as App Service says what went wrong
        resource = request.query.get("resource", "").rstrip("/")
        if resource not in (self._url, ML_RESOURCE, _STORAGE, VAULT):
            raise arm_error(400, "invalid_resource", f"The resource principal named {resource} was not found.")
        body = {
            "access_token": self.token(resource),
            "expires_on": str(int(time.time()) + _SECONDS),
            "resource": resource,
            "token_type": "Bearer",
            "client_id": PRINCIPAL,
        }
        return Answer(200, body)

    def require(self, request: Request, *audiences: str) -> None:
        """Refuse a request without a token for Resource Manager or the workspace, or for one of the audiences given.

        Raises:
            ServiceError: 401.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise self._refused("AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.")
        try:
            taken = list(audiences or (self._url, ML_RESOURCE))
            request.claims = jwt.decode(token.strip(), self._key, algorithms=["HS256"], audience=taken)
        except jwt.ExpiredSignatureError as error:
            raise self._refused("ExpiredAuthenticationToken", "The access token expiry UTC time is earlier.") from error
        except jwt.InvalidAudienceError as error:
            raise self._refused(
                "InvalidAuthenticationTokenAudience", "The access token has a wrong audience."
            ) from error
        except jwt.InvalidTokenError as error:
            raise self._refused("InvalidAuthenticationToken", "The access token is invalid.") from error

    def challenge(self) -> dict[str, str]:
        """The header that tells whoever has no token of use where the subscription's tenant gives them."""
        return {"WWW-Authenticate": f'Bearer authorization_uri="{self._url}/{TENANT}", error="invalid_token"'}

    def _refused(self, code: str, message: str) -> ServiceError:
        return ServiceError(401, code, message, headers=self.challenge(), plain=True)


def _ensure_secret(file: Path) -> str:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex(32), encoding="utf-8")
    return file.read_text(encoding="utf-8")
