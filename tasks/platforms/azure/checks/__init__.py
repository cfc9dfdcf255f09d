"""What a run on Azure, or `phiflow up`, needs, looked at one by one."""
