"""Asks a chat endpoint, of either kind of server, and reads its answer piece by piece. Knows no Prompt flow."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import requests
from contracts import CONTRACTS, Broken, Generation

CONNECT_SECONDS = 5.0
DEPLOYMENT_HEADER = "azureml-model-deployment"
MODEL_STATUS_HEADER = "ms-azureml-model-error-statuscode"


class ChatError(Exception):
    """The chat cannot go on; the message is one line for a person, without any key."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where questions go and how; the names are those of the environment variables, see README.md."""

    url: str
    key: str = field(repr=False)
    server: str = "openai"
    model: str = ""
    system_prompt: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    timeout_seconds: float = 120.0

    @classmethod
    def from_environment(cls) -> Endpoint:
        """Read the endpoint from the environment.

        Raises:
            ChatError: a variable is missing or is not what it should be.
        """
        url = os.environ.get("PHIFLOW_ENDPOINT_URL", "").rstrip("/")
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ChatError(
                f"PHIFLOW_ENDPOINT_URL is {url!r}; set it to the endpoint's address, such as http://127.0.0.1:9001/v1."
            )
        server = os.environ.get("PHIFLOW_ENDPOINT_SERVER") or "openai"
        if server not in CONTRACTS:
            raise ChatError(f"PHIFLOW_ENDPOINT_SERVER is {server!r}; set it to {' or '.join(CONTRACTS)}.")
        return cls(
            url=url,
            server=server,
            key=os.environ.get("PHIFLOW_ENDPOINT_KEY", "").strip(),
            model=os.environ.get("PHIFLOW_MODEL_NAME", ""),
            system_prompt=os.environ.get("PHIFLOW_SYSTEM_PROMPT", ""),
            max_tokens=_read_number("PHIFLOW_MAX_TOKENS", int),
            temperature=_read_number("PHIFLOW_TEMPERATURE", float),
            timeout_seconds=_read_number("PHIFLOW_REQUEST_TIMEOUT_SECONDS", float) or 120.0,
        )


class Reply(dict):
    """An answer that is still arriving: its `deployment`, and its pieces, which can be read once.

    A dict, so that a flow can refer to `deployment` and a trace can write the reply down.
    """

    def __init__(self, response: requests.Response, url: str, server: str = "openai") -> None:
        super().__init__(deployment=response.headers.get(DEPLOYMENT_HEADER, ""))
        self._url = url
        self._contract = CONTRACTS[server]
        self._response = response
        self._pieces = self._read()
        # Waiting for the first piece lets an endpoint that fails at once fail the flow with its reason:
        # Prompt flow loses the reason of an error that comes later.
        self._first = next(self._pieces, "")

    def pieces(self) -> Iterator[str]:
        """Yield the answer's pieces.

        Raises:
            ChatError: the answer broke off.
        """
        try:
            if self._first:
                yield self._first
            yield from self._pieces
        finally:
            self._response.close()

    def _read(self) -> Iterator[str]:
        try:
            yield from self._contract.read(self._response)
        except Broken as error:
            if not str(error):
                raise ChatError(f"The answer of {self._url} broke off. Ask again.") from error
            raise ChatError(f"The endpoint {self._url} stopped in the middle of its answer: {error}.") from error
        except (requests.RequestException, ValueError) as error:
            raise ChatError(f"The answer of {self._url} broke off ({type(error).__name__}). Ask again.") from error


class BrokenOff(dict):
    """The last piece of an answer that broke off: `{"error": sentence}`.

    Prompt flow ends a broken stream like a whole one, so the stream itself has to say it. As text it raises:
    a broken answer must not be joined into one that looks whole.
    """

    def __init__(self, error: ChatError) -> None:
        super().__init__(error=str(error))

    def __str__(self) -> str:
        raise ChatError(self["error"])


def build_messages(system_prompt: str, turns: list[dict], question: str) -> list[dict]:
    """Return the conversation as messages: the system prompt when there is one, the turns, the question."""
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for turn in turns:
        messages.append({"role": "user", "content": turn["question"]})
        messages.append({"role": "assistant", "content": turn["answer"]})
    return [*messages, {"role": "user", "content": question}]


def ask(endpoint: Endpoint, question: str, turns: list[dict]) -> Reply:
    """Ask the endpoint, leaving out the oldest turns when the conversation outgrows the model's context.

    Raises:
        ChatError: the question is empty, or the endpoint is down, refuses the key, or refuses the request.
    """
    if not isinstance(question, str) or not question.strip():
        raise ChatError("The question is empty. Ask something.")
    while True:
        server, response = _post_to_either(endpoint, build_messages(endpoint.system_prompt, turns, question))
        if response.status_code == 200:
            return Reply(response, endpoint.url, server)
        with response:
            message, code = _read_error(response)
        if code == "context_length_exceeded" and turns:
            turns = turns[(len(turns) + 1) // 2 :]
            continue
        raise ChatError(_explain(_status(response), message, endpoint.url))


def _post_to_either(endpoint: Endpoint, messages: list[dict]) -> tuple[str, requests.Response]:
    """Ask as the endpoint's kind of server is asked; when that address is not there, the other way.

    While traffic moves from one kind of server to the other, either may get the question.
    """
    first = _post(endpoint, endpoint.server, messages)
    deployment = first.headers.get(DEPLOYMENT_HEADER, "")
    if _status(first) != 404 or not deployment:
        return endpoint.server, first
    (other,) = set(CONTRACTS) - {endpoint.server}
    second = _post(endpoint, other, messages, deployment)
    if _status(second) == 404:
        second.close()
        return endpoint.server, first
    first.close()
    return other, second


def _post(endpoint: Endpoint, server: str, messages: list[dict], deployment: str = "") -> requests.Response:
    contract = CONTRACTS[server]
    generation = Generation(model=endpoint.model, max_tokens=endpoint.max_tokens, temperature=endpoint.temperature)
    headers = {"Accept": contract.accept}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    if deployment:
        headers[DEPLOYMENT_HEADER] = deployment
    session = requests.Session()
    # A proxy of the environment, or a .netrc, must not come between this app and its own machine.
    session.trust_env = not _is_loopback(endpoint.url)
    if not session.trust_env:  # but whom it trusts is the environment's still
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    timeout = (CONNECT_SECONDS, endpoint.timeout_seconds)
    body = contract.request(messages, generation)
    try:
        return session.post(contract.address(endpoint.url), json=body, headers=headers, timeout=timeout, stream=True)
    except requests.Timeout as error:
        raise ChatError(
            f"The endpoint {endpoint.url} did not answer within {endpoint.timeout_seconds:g} seconds. "
            "Try again, or set PHIFLOW_REQUEST_TIMEOUT_SECONDS."
        ) from error
    except requests.exceptions.SSLError as error:
        raise ChatError(
            f"The certificate of the endpoint {endpoint.url} is not trusted. Set REQUESTS_CA_BUNDLE to its authority's."
        ) from error
    except requests.ConnectionError as error:
        raise ChatError(
            f"Nothing answers at the endpoint {endpoint.url}. Start it, or correct PHIFLOW_ENDPOINT_URL."
        ) from error
    except (requests.RequestException, UnicodeError) as error:
        raise ChatError(f"The endpoint {endpoint.url} cannot be asked ({type(error).__name__}).") from None


def _status(response: requests.Response) -> int:
    """What the model's server answered; Azure's endpoint says 424 for it, and the status in a header."""
    told = response.headers.get(MODEL_STATUS_HEADER, "")
    return int(told) if response.status_code == 424 and told.isdigit() else response.status_code


def _explain(status: int, message: str, url: str) -> str:
    if status in (401, 403):
        return f"The endpoint {url} refused the key. Set PHIFLOW_ENDPOINT_KEY to the endpoint's current key."
    if status == 429:
        return f"The endpoint {url} is busy: {message}. Ask again in a moment."
    if status >= 500:
        return f"The endpoint {url} failed with status {status}: {message}. Ask again, or look at its log."
    return f"The endpoint {url} refused the question with status {status}: {message}."


def _read_error(response: requests.Response) -> tuple[str, str]:
    text = response.content[:10_000].decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        message, code = str(error["message"]), str(error.get("code") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = text, ""
    return " ".join(message.split()).rstrip(".")[:300] or "no reason given", code


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_number(name: str, kind: type) -> int | float | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise ChatError(f"{name} is {text!r}; set it to a number, or leave it out.")
    return value
