"""Compose file → images → placement → manifests → fidelity report; works without a cluster.

``read_project`` (read.py) runs Compose itself; ``convert`` (convert.py) is pure; ``write`` (write.py) puts the result
into a folder. Image lookups come in as data, so nothing here speaks to a network.
"""

from hybridlab.compose.convert import convert
from hybridlab.compose.model import (
    ClaimSource,
    Finding,
    Manifests,
    Options,
    Placement,
    Preference,
    Project,
    ServiceNeeds,
)
from hybridlab.compose.read import read_normalised, read_project
from hybridlab.compose.survey import references
from hybridlab.compose.write import write

__all__ = [
    "ClaimSource",
    "Finding",
    "Manifests",
    "Options",
    "Placement",
    "Preference",
    "Project",
    "ServiceNeeds",
    "convert",
    "read_normalised",
    "read_project",
    "references",
    "write",
]
