"""Azure IoT Edge devices as KubeVirt VMs, driven as one Kubernetes fleet.

The rooms and who may lean on whom are told in docs/explanation/architecture.md; import-linter
refuses the rest.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
