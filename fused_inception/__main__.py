"""Runs the command line: `python -m fused_inception`."""

import sys

from fused_inception.cli import main

if __name__ == "__main__":
    sys.exit(main())
