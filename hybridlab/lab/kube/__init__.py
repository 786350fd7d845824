"""The lab's K3s API: an API server (this package) and its controllers (``controllers``)."""

from hybridlab.lab.kube.service import KubePart

__all__ = ["KubePart"]
