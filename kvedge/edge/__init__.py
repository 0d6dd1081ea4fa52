"""From a pod to an IoT Edge deployment, and from what devices report to the pod's status.

Pure functions over raw JSON: no input, no output, no clock. Everything that IoT Edge cannot do is
refused with its field path; nothing of a pod is dropped silently.
"""

from kvedge.edge.face import Face, face_of, workload_of
from kvedge.edge.reporting import (
    DeviceReport,
    device_reports,
    enough_run,
    failing,
    pod_status,
    runs_everywhere,
)
from kvedge.edge.revision import (
    LABEL_CLUSTER,
    LABEL_NAMESPACE,
    LABEL_NODE,
    LABEL_ROLLED_BACK,
    LABEL_WORKLOAD,
    Inputs,
    Revision,
    RuntimeImages,
    revision_of,
)

__all__ = [
    "LABEL_CLUSTER",
    "LABEL_NAMESPACE",
    "LABEL_NODE",
    "LABEL_ROLLED_BACK",
    "LABEL_WORKLOAD",
    "DeviceReport",
    "Face",
    "Inputs",
    "Revision",
    "RuntimeImages",
    "device_reports",
    "enough_run",
    "face_of",
    "failing",
    "pod_status",
    "revision_of",
    "runs_everywhere",
    "workload_of",
]
