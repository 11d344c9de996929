"""`python -m tools.cli` is the `wattvend` command."""

from tools.cli.main import main

main()
