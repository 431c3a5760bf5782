"""`python -m inducekv`: the same as the `inducekv` command, for `accelerate launch -m inducekv`."""

from inducekv.cli import main

if __name__ == "__main__":
    main()
