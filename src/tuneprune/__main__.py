"""`python -m tuneprune`."""

from tuneprune.cli.commands import main

main()
