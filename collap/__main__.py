"""`python -m collap` is `collap`; `accelerate launch --module collap ...` runs it in several processes."""

import sys

from collap.cli import main

if __name__ == "__main__":
    sys.exit(main())
