"""`python -m tuneprune`."""

from tuneprune.cli import main

main()
