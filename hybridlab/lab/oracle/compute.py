"""What can be launched: shapes, images, and what the capacity reports say."""

from __future__ import annotations

from hybridlab.lab.oracle.catalogue import IMAGES, SHAPES, Image, Shape
from hybridlab.lab.oracle.errors import invalid, missing, not_found
from hybridlab.lab.oracle.http import Answer, Call, Route, check_fields
from hybridlab.lab.oracle.identity import check_domain
from hybridlab.lab.oracle.network import BASE
from hybridlab.lab.oracle.store import AVAILABILITY_DOMAINS, Json, Store, timestamp
from hybridlab.lab.world import World


class Catalogue:
    def __init__(self, world: World, store: Store) -> None:
        self._world = world
        self._store = store

    def routes(self) -> list[Route]:
        images = (
            "compartmentId! displayName operatingSystem operatingSystemVersion shape limit page sortBy sortOrder "
            "lifecycleState"
        )
        report = "compartmentId! availabilityDomain! shapeAvailabilities!:list"
        return [
            Route("GET", f"{BASE}/shapes", self._shapes, "compartmentId! availabilityDomain imageId shape limit page"),
            Route("GET", f"{BASE}/images", self._images, images),
            Route("GET", f"{BASE}/images/{{id}}", lambda call: Answer(_image(call).body())),
            Route("GET", f"{BASE}/images/{{id}}/shapes", self._compatible, "limit page"),
            Route("GET", f"{BASE}/images/{{id}}/shapes/{{shape}}", self._compatible_one),
            Route("POST", f"{BASE}/computeCapacityReports", self._report, body=report, mutating=False),
        ]

    def _shapes(self, call: Call) -> Answer:
        query = call.query
        self._store.compartment(query["compartmentId"])
        domains: tuple[str, ...] = AVAILABILITY_DOMAINS
        if "availabilityDomain" in query:
            domains = (check_domain(query["availabilityDomain"]),)
        image = None
        if "imageId" in query:
            image = IMAGES.get(query["imageId"])
            if image is None:
                raise not_found()
        found = [
            shape.body()
            for domain in domains
            for shape in SHAPES.values()
            if domain in shape.ads
            and (image is None or image.fits(shape))
            and query.get("shape", shape.name) == shape.name
        ]
        page, headers = self._store.page_of(found, query)
        return Answer(page, headers=headers)

    def _images(self, call: Call) -> Answer:
        query = dict(call.query)
        self._store.compartment(query.pop("compartmentId"))
        wanted = query.pop("shape", None)
        if wanted is not None and wanted not in SHAPES:
            raise invalid(f"shape {wanted} is not valid")
        fitting = [i.body() for i in IMAGES.values() if wanted is None or i.fits(SHAPES[wanted])]
        page, headers = self._store.page_of(self._store.select(fitting, query), call.query)
        return Answer(page, headers=headers)

    def _compatible(self, call: Call) -> Answer:
        image = _image(call)
        items = [_entry(image, shape) for shape in SHAPES.values() if image.fits(shape)]
        page, headers = self._store.page_of(items, call.query)
        return Answer(page, headers=headers)

    def _compatible_one(self, call: Call) -> Answer:
        image, shape = _image(call), SHAPES.get(call.ids["shape"])
        if shape is None or not image.fits(shape):
            raise not_found()
        return Answer(_entry(image, shape))

    def _report(self, call: Call) -> Answer:
        """Advisory, as in reality: it knows of the out-of-capacity fault, not of limits."""
        if call.body["compartmentId"] != self._store.tenancy_id:
            raise invalid("compartmentId must be the tenancy")
        domain = check_domain(call.body["availabilityDomain"])
        rows: list[Json] = []
        for wanted in call.body["shapeAvailabilities"]:
            if not isinstance(wanted, dict):
                raise invalid("shapeAvailabilities must hold objects")
            wanted = {k: v for k, v in wanted.items() if v is not None}
            check_fields(wanted, "faultDomain instanceShape! instanceShapeConfig:dict", "shapeAvailabilities: ")
            shape = SHAPES.get(wanted["instanceShape"])
            if shape is None:
                raise invalid(f"instanceShape {wanted['instanceShape']} is not valid")
            if shape.flexible and "instanceShapeConfig" not in wanted:
                raise missing("shapeAvailabilities: instanceShapeConfig")
            subject = f"{domain} {shape.name}"
            status, count = "AVAILABLE", 10
            if domain not in shape.ads:
                status, count = "HARDWARE_NOT_SUPPORTED", 0
            elif any(f.name == "out-of-capacity" and f.match in subject for f in self._world.faults.active):
                status, count = "OUT_OF_HOST_CAPACITY", 0
            rows.append({**wanted, "availabilityStatus": status, "availableCount": count})
        return Answer(
            {
                "compartmentId": call.body["compartmentId"],
                "availabilityDomain": domain,
                "shapeAvailabilities": rows,
                "timeCreated": timestamp(self._store.now()),
            }
        )


def _image(call: Call) -> Image:
    image = IMAGES.get(call.ids["id"])
    if image is None:
        raise not_found()
    return image


def _entry(image: Image, shape: Shape) -> Json:
    entry: Json = {"imageId": image.id, "shape": shape.name}
    if shape.flexible:
        entry["ocpuConstraints"] = {"min": 1, "max": shape.max_ocpus}
        entry["memoryConstraints"] = {"minInGBs": 1, "maxInGBs": shape.max_memory_gb}
    return entry
