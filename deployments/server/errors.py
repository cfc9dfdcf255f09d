"""The two ways of saying no: to the person who starts the server, and to the client who sends a request."""

from __future__ import annotations


class StartError(Exception):
    """The server cannot start as asked; the message is one line for the person who started it."""


class EngineError(Exception):
    """The engine could not be reached, answered with an error, or broke off."""


class EngineTimeoutError(EngineError):
    """The engine did not finish within the request's time."""


class RequestRefusedError(Exception):
    """A request that is answered with an OpenAI-style error body."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def to_body(self) -> dict:
        """Return the body clients of the OpenAI API expect."""
        return error_body(self.status, self.message, param=self.param, code=self.code)


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict:
    """Return an OpenAI-style error body for an HTTP status."""
    kinds = {404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
