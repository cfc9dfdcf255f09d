"""The shared installation."""

from journey import journey, served  # noqa: F401
