"""The shared installation."""

from deployed import prefect  # noqa: F401
from journey import journey, served  # noqa: F401
