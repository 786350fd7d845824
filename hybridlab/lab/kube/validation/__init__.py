"""Validation of objects, as pkg/apis/*/validation does it: all causes at once, worded as field errors."""

from __future__ import annotations

from hybridlab.lab.kube.validation.kinds import validate
from hybridlab.lab.kube.validation.meta import validate_metadata

__all__ = ["validate", "validate_metadata"]
