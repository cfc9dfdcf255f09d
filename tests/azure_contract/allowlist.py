"""What is no finding: where the live service and Microsoft's descriptions disagree, and what no description covers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.azure_contract.exchange import Exchange
from tests.azure_contract.reading import Problem


@dataclass(frozen=True)
class Allowed:
    """Problems that are known; all expressions are searched for.

    Attributes:
        why: what is known, and how.
        recorded: whether a recording shows it.
    """

    operation: str
    place: str
    rule: str
    why: str
    recorded: bool = True

    def covers(self, exchange: Exchange, problem: Problem) -> bool:
        """Whether this is one of them."""
        return bool(
            re.search(self.rule, problem.rule)
            and re.search(self.place, problem.place)
            and re.search(self.operation, exchange.operation)
        )


ALLOWED = (
    Allowed(
        r"workspaces/\*/datastores",
        r"^response.*\.credentials\(\w+\)\.secrets$",
        "required",
        "The Swagger requires the secrets that it also says are never returned; every recorded answer lacks them.",
    ),
    Allowed(
        r"GET workspaces(/\*)?$",
        r"\.(etag|kind|isPrivateLinkEnabled|linkedModelInventoryArmId|sdkTelemetryAppInsightsKey|sasGetterUri"
        r"|softDeleteEnabled|creationTime|enableDataIsolation)$",
        "unknown",
        "Recorded in answers of the live service, in versions whose Swagger does not know them.",
    ),
    Allowed(
        r"workspaces/\*/computes/\*$",
        r"^response\.properties\(ComputeInstance\)\.properties"
        r"\.(autologgerSettings|updateStatus|customServices|osImageMetadata)$",
        "unknown",
        "Recorded of compute instances, which phiflow does not use.",
    ),
    Allowed(
        r"GET deployments/\*/operations$",
        r"\.trackingId$",
        "unknown",
        "Recorded in every operation of a template's deployment.",
    ),
    Allowed(
        r"locations/\*/workspaceOperationsStatus/\*$",
        r"^response\.(status|value)$",
        "required|unknown",
        "The status of a diagnosis ends in being its result: {value: ...} without a status.",
    ),
    Allowed(
        r"PUT deployments/\*$",
        r"^request\.properties\.mode$",
        "enum",
        "Resource Manager takes 'incremental' in any case; recorded in the SDK's requests.",
    ),
    Allowed(
        r"PATCH workspaces/\*$",
        r"^request\.identity\.type$",
        "enum",
        "Resource Manager takes kinds of identity in any case; recorded in the SDK's requests.",
    ),
    Allowed(
        r"GET workspaces(/\*)?$",
        r"\.identity\.(principalId|tenantId)$",
        "format",
        "The recordings' sanitiser wrote an identifier of seven digits where eight belong.",
    ),
    Allowed(
        r"workspaces/\*/codes/\*/versions",
        r"\.properties\.properties\.\*$",
        "type",
        "The SDK sends hash_version as a number among properties that the Swagger says are text.",
        recorded=False,
    ),
    Allowed(
        r"workspaces/\*/environments/\*/versions",
        r"\.inferenceConfig\.\w+Route\.path$",
        "pattern",
        "The Swagger has one pattern, a letter or digit somewhere, for all text that may not be blank; '/' has none, "
        "and Microsoft's own images for inference are probed there.",
        recorded=False,
    ),
    Allowed(
        r"workspaces/\*/computes",
        r"\.identity\.(principalId|tenantId)$",
        "missing",
        "Every recorded cluster has an identity of its own; one that has only those of users has no principal itself.",
        recorded=False,
    ),
    Allowed(
        r"onlineEndpoints/\*$",
        r"^response\.identity\.(principalId|tenantId)$",
        "missing",
        "Every recorded endpoint has an identity of the system's, which these are of; one with a user-assigned "
        "identity alone has neither.",
        recorded=False,
    ),
    Allowed(
        r"^GET ",
        r"^response\.nextLink$",
        "extra|missing",
        "Whether there is a second page is up to how much there is; every recorded list was long, or was not.",
        recorded=False,
    ),
    Allowed(
        r"locations/\*/\w+OperationsStatus/\*$|deployments/\*/operationStatuses/\*$",
        r"^response\.error$",
        "extra",
        "No recorded operation on jobs, endpoints, clusters or templates failed; common types describe what one says "
        "then.",
        recorded=False,
    ),
    Allowed(
        r"^GET operationresults/\*$",
        r"^response\.id$",
        "required",
        "The result of a what-if is what would change, and no resource.",
        recorded=False,
    ),
    Allowed(
        r"deployments(/\*)?(/operations)?$",
        r"\.properties\.(outputs|error|statusMessage)$",
        "extra",
        "No recorded template had outputs, and none failed; both are as the Swagger has them.",
        recorded=False,
    ),
    Allowed(
        r"^GET deployments(/\*)?$",
        r"\.outputResources$",
        "missing",
        "What a deployment has made is told when it has succeeded; all that were recorded had.",
        recorded=False,
    ),
    Allowed(
        r"^GET resources$",
        r"^response\.value\[\d*\]\.(kind|sku|identity|tags)$",
        "extra",
        "The one resource of the recorded list had none of these, which are a resource's own.",
        recorded=False,
    ),
)

# A provider's own resources: neither something of another provider that hangs on them, nor its registration.
_OF = r"providers/Microsoft\."
_LAST = r"(?!.*/providers/)(?!(un)?register$)"
# Paths, and why nothing here can judge what passes there. Whatever matches none and has no description is a finding.
UNJUDGED = (
    (r"^/_emulator/", "the emulator's own controls, which the service does not have"),
    (
        r"^/(metadata|identity|[^/]+/oauth2|common/discovery)",
        "sign-in and the cloud's addresses: no Swagger is published",
    ),
    (r"^/discovery", "the workspace's addresses: not in the published Swagger of Machine Learning"),
    (r"/mlflow/", "MLflow's REST interface: MLflow's own client is the judge of it"),
    (r"^/secrets/", "Key Vault's data plane: its Swagger is not among the descriptions here"),
    (r"^/history/", "run history: not in the published Swagger of Machine Learning; the SDK's own client reads it"),
    (r"^/endpoints/", "scoring: the model server's interface, which the deployment decides"),
    (
        r"^/subscriptions(/[^/]+(/locations)?)?$|^/tenants$",
        "subscriptions, tenants and regions: their Swagger is not among the descriptions here",
    ),
    (
        r"^/subscriptions/[^/]+/providers/Microsoft\.Authorization/permissions$",
        "one's permissions in a subscription: described of groups and resources only, where they are judged",
    ),
    (r"^/api/retail/prices$", "the public price list: no Swagger is published"),
    (f"{_OF}Insights/{_LAST}", "Azure Monitor: its Swagger is not among the descriptions here"),
    (f"{_OF}Compute/{_LAST}", "Microsoft.Compute: its Swagger is not among the descriptions here"),
    (
        f"{_OF}(Storage|KeyVault|ContainerRegistry|OperationalInsights|DocumentDB|Consumption|Network)/{_LAST}",
        "what a workspace is made of: its Swagger is not among the descriptions here",
    ),
    (
        r"/mfeOperationResults/",
        "the result of an operation: a body of whatever type the operation is of, not described",
    ),
)
