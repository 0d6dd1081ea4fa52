"""All checks of `kvedge doctor`, apart from the rest because they import much."""

from kvedge.survey.cluster import check_cluster
from kvedge.survey.hub import check_hub
from kvedge.survey.images import check_images
from kvedge.survey.machine import check_machine

__all__ = ["check_cluster", "check_hub", "check_images", "check_machine"]
