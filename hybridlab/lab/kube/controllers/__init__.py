"""The controllers half of the lab's K3s: everything that acts on objects after the API server stored them."""

from hybridlab.lab.kube.controllers.manager import Controllers

__all__ = ["Controllers"]
