"""030: the firewall opened for the overlay network, K3s on every host, labels, kubeconfig; proved by looking."""

from hybridlab.stages.bootstrap.actions import ACTIONS
from hybridlab.stages.bootstrap.planning import NAME, plan
from hybridlab.stages.bootstrap.proof import verify
from hybridlab.stages.bootstrap.seen import HostSeen, Seen, look

NEEDS = ("provision",)

__all__ = ["ACTIONS", "NAME", "NEEDS", "HostSeen", "Seen", "look", "plan", "verify"]
