"""`python -m hfexp` is the same as `hfexp`."""

import sys

from hfexp.cli import main

if __name__ == "__main__":
    sys.exit(main())
