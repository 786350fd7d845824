"""What a launch asks for, checked: nothing here changes anything."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from hybridlab.lab.oracle.catalogue import IMAGES, SHAPES, Image, Shape
from hybridlab.lab.oracle.errors import invalid, missing, not_found
from hybridlab.lab.oracle.http import check_fields
from hybridlab.lab.oracle.identity import check_domain
from hybridlab.lab.oracle.store import Json, Store
from hybridlab.lab.oracle.tags import check_tags

MAX_METADATA_BYTES = 32_000
FIELDS = (
    "availabilityDomain! compartmentId! shape! createVnicDetails:dict displayName faultDomain freeformTags:dict "
    "definedTags:dict hostnameLabel imageId metadata:dict extendedMetadata:dict shapeConfig:dict sourceDetails:dict "
    "subnetId isPvEncryptionInTransitEnabled:bool availabilityConfig:dict instanceOptions:dict agentConfig:dict"
)
_VNIC = (
    "assignPublicIp:bool assignPrivateDnsRecord:bool displayName freeformTags:dict definedTags:dict hostnameLabel "
    "nsgIds:list privateIp skipSourceDestCheck:bool subnetId"
)
FAULT_DOMAINS = tuple(f"FAULT-DOMAIN-{number}" for number in (1, 2, 3))


@dataclass(frozen=True)
class Size:
    ocpus: float
    memory_gb: float


@dataclass(frozen=True)
class Wanted:
    compartment_id: str
    domain: str
    shape: Shape
    size: Size
    image: Image
    boot_volume_gb: int | None
    vnic: Json  # createVnicDetails
    metadata: dict[str, str]


def check(store: Store, body: Json) -> Wanted:
    """The launch as asked for, or the error that Oracle gives."""
    compartment = store.compartment(body["compartmentId"]).id
    check_tags(body)
    domain = check_domain(body["availabilityDomain"])
    shape = SHAPES.get(body["shape"])
    if shape is None or domain not in shape.ads:
        raise not_found()
    if body.get("faultDomain", FAULT_DOMAINS[0]) not in FAULT_DOMAINS:
        raise invalid(f"faultDomain {body['faultDomain']} is not valid")
    if body.get("extendedMetadata"):
        raise invalid("extendedMetadata is not supported by the lab; use metadata")
    if body.get("isPvEncryptionInTransitEnabled"):
        raise invalid("isPvEncryptionInTransitEnabled is not supported by the lab")
    image, boot_volume_gb = _source(body)
    if not image.fits(shape):
        raise invalid(f"Shape {shape.name} is not valid for image {image.id}.")
    return Wanted(
        compartment,
        domain,
        shape,
        size_of(shape, body.get("shapeConfig", {})),
        image,
        boot_volume_gb,
        _vnic(body),
        check_metadata(body.get("metadata", {})),
    )


def size_of(shape: Shape, config: Json) -> Size:
    """The size of a machine: fixed by the shape, or chosen within a flexible shape's ranges."""
    check_fields(config, "ocpus:num memoryInGBs:num", "shapeConfig: ")
    if not shape.flexible:
        fixed = Size(shape.ocpus, shape.memory_gb)
        if Size(config.get("ocpus", fixed.ocpus), config.get("memoryInGBs", fixed.memory_gb)) != fixed:
            raise invalid(f"shapeConfig: the size of shape {shape.name} is fixed")
        return fixed
    if "ocpus" not in config:
        raise missing(f"shapeConfig: ocpus (shape {shape.name} is flexible)")
    ocpus = config["ocpus"]
    memory = config.get("memoryInGBs", ocpus * shape.memory_gb)
    if ocpus != int(ocpus) or not 1 <= ocpus <= shape.max_ocpus:
        raise invalid(f"shapeConfig: ocpus {ocpus} is not valid for {shape.name}: must be 1 to {shape.max_ocpus}")
    most = min(64 * ocpus, shape.max_memory_gb)
    if not ocpus <= memory <= most:
        raise invalid(
            f"shapeConfig: memoryInGBs {memory} is not valid for {ocpus} OCPUs of {shape.name}: "
            f"must be between {ocpus} and {most}"
        )
    return Size(float(ocpus), float(memory))


def check_metadata(metadata: Json) -> dict[str, str]:
    """At most 32,000 bytes in all, strings only, ``user_data`` in base64."""
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise invalid(f"metadata: {name} must be a string")
    if len(json.dumps(metadata).encode()) > MAX_METADATA_BYTES:
        raise invalid(f"metadata: the total size must not be more than {MAX_METADATA_BYTES} bytes")
    try:
        base64.b64decode(metadata.get("user_data", ""), validate=True)
    except binascii.Error:
        raise invalid("metadata: user_data must be base64-encoded") from None
    return dict(metadata)


def _source(body: Json) -> tuple[Image, int | None]:
    details = body.get("sourceDetails", {})
    if not details and "imageId" not in body:
        raise missing("sourceDetails")
    if details:
        check_fields(details, "sourceType! imageId bootVolumeSizeInGBs:int bootVolumeVpusPerGB:int", "sourceDetails: ")
        if details["sourceType"] != "image":
            raise invalid(f"sourceDetails: sourceType {details['sourceType']} is not supported by the lab; use image")
        if details.get("bootVolumeVpusPerGB", 10) != 10:
            raise invalid("sourceDetails: bootVolumeVpusPerGB must be 10 in this tenancy")
    ident = details.get("imageId", body.get("imageId"))
    if ident is None:
        raise missing("sourceDetails: imageId")
    image = IMAGES.get(ident)
    if image is None:
        raise not_found()
    return image, details.get("bootVolumeSizeInGBs")


def _vnic(body: Json) -> Json:
    vnic = dict(body.get("createVnicDetails", {}))
    check_fields(vnic, _VNIC, "createVnicDetails: ")
    for name in ("subnetId", "hostnameLabel"):  # the older places for both
        if name in body:
            vnic.setdefault(name, body[name])
    return vnic
