"""`python -m flows` is `phiflow`."""

from flows.cli import main

main()
