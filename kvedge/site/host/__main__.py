"""`python -m kvedge.site.host --site DIR`: the VM host, inside the site's namespace."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from kvedge import errors
from kvedge.site.host.hosting import serve
from kvedge.site.host.settings import HostSettings


def main() -> int:
    """Parse, run, return the exit code."""
    parser = argparse.ArgumentParser(prog="kvedge.site.host", description=__doc__)
    parser.add_argument("--site", type=Path, required=True, help="the site's folder")
    parser.add_argument("--debug", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        asyncio.run(serve(HostSettings(directory=options.site.resolve())))
    except errors.KvedgeError as error:
        print(f"error: {error.message}", file=sys.stderr)  # noqa: T201 - the process's own word
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
