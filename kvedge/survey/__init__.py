"""What stands: cluster and hub read together, for `kvedge status` and `kvedge doctor`.

Reads only. Which finding is a problem and what mends it is decided here; how it is printed is not.
"""

from kvedge.survey.findings import Finding
from kvedge.survey.fleet import Fleet, PodRow, VmRow, read_fleet

__all__ = [
    "Finding",
    "Fleet",
    "PodRow",
    "VmRow",
    "read_fleet",
]
