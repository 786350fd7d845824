"""Shapes and platform images of the lab's region.

Shapes differ per availability domain: the micro is in the second one only, while the limits claim it everywhere, as
reported of us-chicago-1. Images carry the names Oracle gives them; each GPU image is newer than the image one wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybridlab.lab.oracle.store import AVAILABILITY_DOMAINS, ocid
from hybridlab.lab.world import Arch

A1 = "VM.Standard.A1.Flex"
MICRO = "VM.Standard.E2.1.Micro"


@dataclass(frozen=True)
class Shape:
    """``ocpus`` and ``memory_gb`` are the fixed size, or the default of a flexible shape (``max_ocpus`` > 0).

    ``host_ocpus`` is what a machine really gets; it differs from the billed 1 OCPU on the micro only.
    """

    name: str
    arch: Arch
    processor: str
    billing: str  # ALWAYS_FREE, LIMITED_FREE, PAID
    ads: tuple[str, ...]
    ocpus: float
    memory_gb: float
    gbps: float
    family: str  # in the names of its limits
    host_ocpus: float = 0
    max_ocpus: int = 0
    max_memory_gb: int = 0

    @property
    def flexible(self) -> bool:
        return self.max_ocpus > 0

    def body(self) -> dict[str, Any]:
        shape: dict[str, Any] = {
            "shape": self.name,
            "processorDescription": self.processor,
            "ocpus": self.ocpus,
            "memoryInGBs": self.memory_gb,
            "networkingBandwidthInGbps": self.gbps,
            "maxVnicAttachments": 2 if self.flexible else 1,
            "gpus": 0,
            "localDisks": 0,
            "isLiveMigrationSupported": False,
            "isBilledForStoppedInstance": False,
            "isFlexible": self.flexible,
            "billingType": self.billing,
            "quotaNames": [f"{self.family}-core-count"],
        }
        if self.flexible:
            shape["ocpuOptions"] = {"min": 1.0, "max": float(self.max_ocpus)}
            shape["memoryOptions"] = {
                "minInGBs": 1.0,
                "maxInGBs": float(self.max_memory_gb),
                "defaultPerOcpuInGBs": self.memory_gb,
                "minPerOcpuInGBs": 1.0,
                "maxPerOcpuInGBs": 64.0,
            }
        return shape

    def config(self, ocpus: float, memory_gb: float) -> dict[str, Any]:
        """The ``shapeConfig`` that an instance of this shape shows."""
        return {
            "ocpus": float(ocpus),
            "memoryInGBs": float(memory_gb),
            "vcpus": int(ocpus if self.arch == "arm64" else ocpus * 2),
            "processorDescription": self.processor,
            "networkingBandwidthInGbps": self.gbps * ocpus if self.flexible else self.gbps,
            "maxVnicAttachments": 2 if self.flexible else 1,
            "gpus": 0,
            "localDisks": 0,
        }


_EVERYWHERE = AVAILABILITY_DOMAINS
_ALTRA = "3.0 GHz Ampere® Altra™"
SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            A1, "arm64", _ALTRA, "LIMITED_FREE", _EVERYWHERE, 1, 6, 1.0, "standard-a1", max_ocpus=80, max_memory_gb=512
        ),
        Shape(
            MICRO,
            "amd64",
            "2.0 GHz AMD EPYC™ 7551 (Naples)",
            "ALWAYS_FREE",
            (AVAILABILITY_DOMAINS[1],),
            1,
            1,
            0.48,
            "standard-e2-micro",
            host_ocpus=0.125,
        ),
        Shape(
            "VM.Standard.E4.Flex",
            "amd64",
            "2.55 GHz AMD EPYC™ 7J13 (Milan)",
            "PAID",
            _EVERYWHERE,
            1,
            16,
            1.0,
            "standard-e4",
            max_ocpus=114,
            max_memory_gb=1760,
        ),
        Shape(
            "VM.Standard.E5.Flex",
            "amd64",
            "2.4 GHz AMD EPYC™ 9J14 (Genoa)",
            "PAID",
            AVAILABILITY_DOMAINS[:2],
            1,
            12,
            1.0,
            "standard-e5",
            max_ocpus=126,
            max_memory_gb=1049,
        ),
    )
}


@dataclass(frozen=True)
class Image:
    name: str
    os: str
    version: str
    arch: Arch
    user: str
    date: str  # YYYY-MM-DD
    gpu: bool = False

    @property
    def id(self) -> str:
        return ocid("image", self.name)

    def fits(self, shape: Shape) -> bool:
        return shape.arch == self.arch

    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "compartmentId": None,
            "displayName": self.name,
            "operatingSystem": self.os,
            "operatingSystemVersion": self.version,
            "lifecycleState": "AVAILABLE",
            "launchMode": "PARAVIRTUALIZED",
            "listingType": "NONE",
            "createImageAllowed": True,
            "sizeInMBs": 47694,
            "billableSizeInGBs": 3,
            "freeformTags": {},
            "definedTags": {},
            "timeCreated": f"{self.date}T09:12:33.000Z",
        }


def _images() -> tuple[Image, ...]:
    images = []
    for date in ("2026.08.28", "2026.09.30", "2026.10.29"):
        day = date.replace(".", "-")
        for arch, infix in (("arm64", "-aarch64"), ("amd64", "")):
            for version in ("22.04", "24.04"):
                name = f"Canonical-Ubuntu-{version}{infix}-{date}-0"
                images.append(Image(name, "Canonical Ubuntu", version, arch, "ubuntu", day))  # type: ignore[arg-type]
            images.append(
                Image(f"Oracle-Linux-9.6{infix}-{date}-0", "Oracle Linux", "9", arch, "opc", day)  # type: ignore[arg-type]
            )
    for os_name, prefix, version, user in (
        ("Canonical Ubuntu", "Canonical-Ubuntu-24.04", "24.04", "ubuntu"),
        ("Canonical Ubuntu", "Canonical-Ubuntu-22.04", "22.04", "ubuntu"),
        ("Oracle Linux", "Oracle-Linux-9.6", "9", "opc"),
    ):
        images.append(Image(f"{prefix}-Gen2-GPU-2026.11.04-0", os_name, version, "amd64", user, "2026-11-04", gpu=True))
    return tuple(images)


IMAGES = {image.id: image for image in _images()}
