"""Run the command line: `python -m kvedge`."""

from kvedge import cli

cli.main()
