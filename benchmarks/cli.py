"""Start-up of the command line: `make -s bench NAME=cli`. status_ms needs a running site `dev`."""

import os
import pathlib

import _common

from kvedge import tools
from kvedge.cli import _common as cli

RUNS = 15


def main():
    """Time kvedge and, beside it, virtctl."""
    before = _common.machine()
    kvedge = str(pathlib.Path(__file__).parents[1] / ".venv/bin/kvedge")
    figures = {
        "help_ms": _common.median_ms(_common.timed([kvedge, "--help"], runs=RUNS)),
        "runs": RUNS,
    }
    virtctl = str(tools.path("virtctl"))
    figures["rival_virtctl_help_ms"] = _common.median_ms(
        _common.timed([virtctl, "--help"], runs=RUNS)
    )
    if cli.load_environment() and pathlib.Path(os.environ["KVEDGE_KUBECONFIG"]).exists():
        status = [kvedge, "status"]
        figures["status_ms"] = _common.median_ms(_common.timed(status, runs=RUNS))
        kubectl = [str(tools.path("kubectl")), "get", "vms,vmis,pods", "-A"]
        figures["rival_kubectl_get_ms"] = _common.median_ms(_common.timed(kubectl, runs=RUNS))
    else:
        figures["status_ms"] = None
        figures["note"] = "status_ms was not measured: no site; start one with make demo"
    figures["rival_az"] = "not measured: az cannot be had here"
    _common.emit("cli", before, figures)


main()
