"""`python -m hfexp` is the same as `hfexp`."""

import sys

from hfexp.cli import program

if __name__ == "__main__":
    sys.exit(program())
