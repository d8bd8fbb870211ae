"""`python -m jaxgeom` is the command `jaxgeom`."""

import sys

from jaxgeom.cli import main

if __name__ == "__main__":
    sys.exit(main())
