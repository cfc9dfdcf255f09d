"""An emulated workspace for tests of one adapter's parts: the platform on it, and what was asked of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tasks.config import AzureIdentityConfig, ServingConfig
from tasks.platforms.refs import DeploymentRef, DeploymentStatus
from tests.contract.places import NAME, Place

IDENTITY = AzureIdentityConfig(
    resource_id="/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/phiflow-emulator"
    "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/chat",
    client_id="00000000-0000-0000-0000-00000000c11e",
)
SERVING = ServingConfig(environment_variables={"GREETING": "hello"})


@dataclass
class Service:
    """The emulator, and a platform that reaches it."""

    process: Any
    place: Place
    platform: Any

    def resource(self, path: str) -> dict[str, Any]:
        """What the service says of a resource of the workspace."""
        workspace = self.platform.workspace
        answer = workspace.send("GET", f"{workspace.resource_id}/{path}", params={"api-version": "2024-04-01"})
        body: dict[str, Any] = answer.json()
        return body

    def deploy(self, number: str = "1", serving: ServingConfig = SERVING) -> DeploymentRef:
        """Begin a deployment."""
        reference: DeploymentRef = self.platform.deploy(NAME, self.place.model(number), serving, self.place.environment)
        return reference

    def settled(self, deployment: DeploymentRef) -> DeploymentStatus:
        """A deployment when nothing is being done to it."""
        deadline = time.monotonic() + 40
        while True:
            status: DeploymentStatus = self.platform.read_deployment(NAME, deployment.name)
            if status.state != "starting":
                return status
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
