"""What `phiflow down` and `phiflow sweep` find and delete in a workspace."""
