"""The host names of the emulated cloud. `.test` is reserved: no server of this name exists anywhere."""

from __future__ import annotations

SUFFIX = "azure-emulator.test"
STORAGE_ENDPOINT = f"core.{SUFFIX}"
ACCOUNT = "phiflowemulated"
# The account is the first label of the host, as it is in production.
BLOB_HOST = f"{ACCOUNT}.blob.{STORAGE_ENDPOINT}"
CERTIFICATE_NAMES = ["localhost", SUFFIX, f"*.{SUFFIX}", f"*.azure.{SUFFIX}", BLOB_HOST, "*.vault.azure.net"]
# The SDK builds more addresses from the portal's.
PORTAL = f"https://portal.azure.{SUFFIX}/"
ML_RESOURCE = f"https://ml.azure.{SUFFIX}"
TENANT = "00000000-0000-0000-0000-0000000000aa"
PRINCIPAL = "00000000-0000-0000-0000-0000000000bb"


def cloud_name(port: int) -> str:
    """The name by which the SDK finds the cloud's addresses; one for each emulator, as a process never forgets one."""
    return f"PhiflowEmulator{port}"
