"""vCPU quota: what there is, what a configuration needs, and asking for more."""
