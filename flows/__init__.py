"""The flows and the `phiflow` command."""
