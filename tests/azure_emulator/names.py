"""The host names of the emulated cloud. `.test` is reserved: no server of this name exists anywhere."""

from __future__ import annotations

SUFFIX = "azure-emulator.test"
STORAGE_ENDPOINT = f"core.{SUFFIX}"
# What belongs to the workspace that is there from the start: its storage account, key vault, registry and insights.
FOUNDATION = "phiflowemulated"
# A storage account is the first label of its host, as it is in production.
_BLOBS = f"*.blob.{STORAGE_ENDPOINT}"
CERTIFICATE_NAMES = ["localhost", SUFFIX, f"*.{SUFFIX}", f"*.azure.{SUFFIX}", _BLOBS, "*.vault.azure.net"]
# The SDK builds more addresses from the portal's.
PORTAL = f"https://portal.azure.{SUFFIX}/"
ML_RESOURCE = f"https://ml.azure.{SUFFIX}"
TENANT = "00000000-0000-0000-0000-0000000000aa"
PRINCIPAL = "00000000-0000-0000-0000-0000000000bb"


def cloud_name(port: int) -> str:
    """The name by which the SDK finds the cloud's addresses; one for each emulator, as a process never forgets one."""
    return f"PhiflowEmulator{port}"
