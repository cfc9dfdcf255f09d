"""The exclusive right to change an endpoint, held by a run and lent back while it waits for a person."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from prefect.runtime import flow_run

from tasks.config import PlatformConfig
from tasks.platforms.connect import connect
from tasks.platforms.errors import PhiflowError
from tasks.platforms.refs import EndpointRef

WAIT_SECONDS = 900.0
# A run that ends, and only wants to take its candidate away, waits for nobody.
_LEAVING_SECONDS = 5.0


class EndpointLease:
    """Nobody else changes the endpoint while this is held."""

    def __init__(self, place: PlatformConfig, endpoint: str) -> None:
        self._place = place
        self._endpoint = endpoint
        self._held = ExitStack()
        self.is_held = False

    def take(self, wait_seconds: float = WAIT_SECONDS) -> None:
        """ConflictError names the holder after the wait."""
        lease = connect(self._place).lease_endpoint(self._endpoint, f"run {flow_run.name}", wait_seconds)
        self._held.enter_context(lease)
        self.is_held = True

    def give_back(self) -> None:
        """Let others change the endpoint; nothing when it is not held."""
        self.is_held = False
        self._held.close()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Others may change the endpoint within this block: read it again afterwards.

        After an error the lease is taken back if nobody has it, so that the run can clean up; else it goes without.
        """
        self.give_back()
        try:
            yield
        except BaseException:  # Ctrl-C too ends the wait, and its own error goes on whoever has the lease
            with suppress(PhiflowError):
                self.take(_LEAVING_SECONDS)
            raise
        self.take()


@contextmanager
def endpoint_lease(place: PlatformConfig, endpoint: EndpointRef) -> Iterator[EndpointLease]:
    """Nobody else changes the endpoint within this block, but where the lease is lent."""
    lease = EndpointLease(place, endpoint.name)
    lease.take()
    try:
        yield lease
    finally:
        lease.give_back()
