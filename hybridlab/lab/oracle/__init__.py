"""The lab's Oracle Cloud Infrastructure: HTTP with signed requests, strict, slow where the real one is slow."""

from hybridlab.lab.oracle.part import OraclePart

__all__ = ["OraclePart"]
