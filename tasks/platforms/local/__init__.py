"""The local platform: the whole pipeline as real processes on this machine."""
