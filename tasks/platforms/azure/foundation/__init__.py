"""What `phiflow up` makes: a workspace and what belongs to it, by one template."""
