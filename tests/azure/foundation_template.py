"""A template of everything that a workspace stands on, for tests of the emulator: each way to write things once."""

from __future__ import annotations

from typing import Any

SCHEMA = "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#"
READER_ROLE = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"  # Storage Blob Data Reader
ROLE_NAME = "11111111-2222-3333-4444-555555555555"
TYPES = (
    "Microsoft.Storage/storageAccounts",
    "Microsoft.KeyVault/vaults",
    "Microsoft.OperationalInsights/workspaces",
    "Microsoft.Insights/components",
    "Microsoft.ContainerRegistry/registries",
    "Microsoft.ManagedIdentity/userAssignedIdentities",
    "Microsoft.Authorization/roleAssignments",
    "Microsoft.MachineLearningServices/workspaces",
    "Microsoft.MachineLearningServices/workspaces/computes",
    "Microsoft.DocumentDB/databaseAccounts",
    "Microsoft.Consumption/budgets",
)


def template(*resources: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A template of these resources, with more of its sections."""
    return {"$schema": SCHEMA, "contentVersion": "1.0.0.0", **sections, "resources": list(resources)}


def foundation_template() -> dict[str, Any]:
    """The whole foundation; parameters: `name`, `workspace`, `location` and `chat`, whether there is a Cosmos DB."""
    identity = "resourceId('Microsoft.ManagedIdentity/userAssignedIdentities', parameters('name'))"
    return template(
        *_supports(identity),
        {
            **_head("Microsoft.MachineLearningServices/workspaces", "2025-12-01", "[parameters('workspace')]"),
            "dependsOn": [
                "[variables('storageId')]",
                "[resourceId('Microsoft.KeyVault/vaults', parameters('name'))]",
                "[parameters('insights')]",
                "[format('Microsoft.ContainerRegistry/registries/{0}', parameters('name'))]",
            ],
            "identity": {"type": "SystemAssigned"},
            "properties": {
                "storageAccount": "[variables('storageId')]",
                "keyVault": "[resourceId('Microsoft.KeyVault/vaults', parameters('name'))]",
                "applicationInsights": "[resourceId('Microsoft.Insights/components', parameters('insights'))]",
                "containerRegistry": "[resourceId('Microsoft.ContainerRegistry/registries', parameters('name'))]",
            },
        },
        {
            **_head(
                "Microsoft.MachineLearningServices/workspaces/computes",
                "2023-08-01-preview",
                "[concat(parameters('workspace'), '/cpu')]",
            ),
            "dependsOn": [
                "[resourceId('Microsoft.MachineLearningServices/workspaces', parameters('workspace'))]",
                f"[{identity}]",
            ],
            "identity": {"type": "UserAssigned", "userAssignedIdentities": {f"[{identity}]": {}}},
            "properties": {
                "computeType": "AmlCompute",
                "properties": {"vmSize": "Standard_DS3_v2", "scaleSettings": {"minNodeCount": 0, "maxNodeCount": 1}},
            },
        },
        parameters={
            "name": {"type": "string", "minLength": 3, "maxLength": 24},
            "workspace": {"type": "string"},
            "insights": {"type": "string", "defaultValue": "[toLower(concat(parameters('name'), 'AI'))]"},
            "location": {"type": "string", "defaultValue": "[resourceGroup().location]"},
            "chat": {"type": "bool", "defaultValue": True},
            "days": {"type": "int", "defaultValue": 30, "allowedValues": [30, 60]},
        },
        variables={
            "tags": {"phiflow": "1"},
            "storageId": "[resourceId('Microsoft.Storage/storageAccounts', parameters('name'))]",
        },
        outputs={
            "clientId": {"type": "string", "value": f"[reference({identity}, '2023-01-31').clientId]"},
            "storage": {"type": "string", "value": "[reference(variables('storageId')).primaryEndpoints.blob]"},
        },
    )


def _supports(identity: str) -> list[dict[str, Any]]:
    role = f"subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '{READER_ROLE}')"
    storage = {**_head("Microsoft.Storage/storageAccounts", "2024-01-01"), "kind": "StorageV2"}
    logs = "resourceId('Microsoft.OperationalInsights/workspaces', parameters('name'))"
    sku = {"family": "A", "name": "standard"}
    return [
        {**storage, "sku": {"name": "Standard_LRS"}, "properties": {"allowBlobPublicAccess": False}},
        {
            **_head("Microsoft.KeyVault/vaults", "2024-11-01"),
            "properties": {"tenantId": "[subscription().tenantId]", "sku": sku, "enableRbacAuthorization": True},
        },
        {
            **_head("Microsoft.OperationalInsights/workspaces", "2025-07-01"),
            "properties": {"sku": {"name": "PerGB2018"}, "retentionInDays": "[parameters('days')]"},
        },
        {
            **_head("Microsoft.Insights/components", "2020-02-02", "[parameters('insights')]"),
            "kind": "web",
            "dependsOn": [f"[{logs}]"],
            "properties": {"Application_Type": "web", "WorkspaceResourceId": f"[{logs}]"},
        },
        {**_head("Microsoft.ContainerRegistry/registries", "2025-04-01"), "sku": {"name": "Basic"}},
        _head("Microsoft.ManagedIdentity/userAssignedIdentities", "2023-01-31"),
        {
            "type": "Microsoft.Authorization/roleAssignments",
            "apiVersion": "2022-04-01",
            "name": ROLE_NAME,
            "scope": "[format('Microsoft.Storage/storageAccounts/{0}', parameters('name'))]",
            "dependsOn": ["[variables('storageId')]"],
            "properties": {
                "roleDefinitionId": f"[{role}]",
                # What it refers to is made before it, without being named in dependsOn.
                "principalId": f"[reference({identity}, '2023-01-31').principalId]",
                "principalType": "ServicePrincipal",
            },
        },
        {
            **_head("Microsoft.DocumentDB/databaseAccounts", "2024-11-15"),
            "condition": "[parameters('chat')]",
            "properties": {
                "databaseAccountOfferType": "Standard",
                "locations": [{"locationName": "[parameters('location')]", "failoverPriority": 0}],
            },
        },
        {
            "type": "Microsoft.Consumption/budgets",
            "apiVersion": "2021-10-01",
            "name": "[parameters('name')]",
            "properties": {
                "category": "Cost",
                "amount": 50,
                "timeGrain": "Monthly",
                "timePeriod": {"startDate": "2026-11-01"},
                "notifications": {
                    "spent": {
                        **{"enabled": True, "operator": "GreaterThan", "threshold": 80},
                        "contactEmails": ["owner@example.com"],
                    }
                },
            },
        },
    ]


def _head(kind: str, version: str, name: str = "[parameters('name')]") -> dict[str, Any]:
    place = {"location": "[parameters('location')]", "tags": "[variables('tags')]"}
    return {"type": kind, "apiVersion": version, "name": name, **place}
