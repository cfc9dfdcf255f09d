"""The shared installation."""

from azure_journey import azure, deployed  # noqa: F401
from journey import journey, served  # noqa: F401
