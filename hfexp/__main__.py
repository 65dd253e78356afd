"""Entry point of `python -m hfexp`, which is the same as `hfexp`."""

import sys

from hfexp.commands.cli import program

if __name__ == "__main__":
    sys.exit(program())
