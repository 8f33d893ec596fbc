"""The command line, `python -m fused_inception`.

Importing it needs none of the extra packages: each subcommand's module is imported when it runs.
"""

from fused_inception.cli.main import main

__all__ = ["main"]
