"""`python -m inducekv.cli`."""

from inducekv.cli import main

main()
