"""Boot volumes, and the lists of what the lab's tenancy has none of (block volumes, backups)."""

from __future__ import annotations

from collections.abc import Callable

from hybridlab.lab.oracle.catalogue import Image
from hybridlab.lab.oracle.errors import incorrect_state, invalid
from hybridlab.lab.oracle.http import Answer, Call, Route, shown
from hybridlab.lab.oracle.identity import check_domain
from hybridlab.lab.oracle.limits import Limits
from hybridlab.lab.oracle.network import BASE
from hybridlab.lab.oracle.store import Json, Record, Store
from hybridlab.lab.oracle.tags import check_tags
from hybridlab.lab.world import World

MAX_SIZE_GB = 32768


class BlockStorage:
    def __init__(self, world: World, store: Store, limits: Limits) -> None:
        self._world = world
        self._store = store
        self._limits = limits
        for record in store.of("bootvolume", lambda r: r.state == "TERMINATING"):
            if record.hidden.get("deleted"):
                store.change(record, lifecycleState="TERMINATED")

    def routes(self) -> list[Route]:
        update = "displayName freeformTags:dict definedTags:dict sizeInGBs:int"
        listing = "compartmentId! availabilityDomain limit page"
        backups = "compartmentId! limit page displayName sortBy sortOrder lifecycleState"
        attachments = "availabilityDomain! compartmentId! limit page instanceId bootVolumeId"
        volumes = f"{listing} displayName sortBy sortOrder lifecycleState"
        return [
            Route("GET", f"{BASE}/bootVolumes", self._lister("bootvolume"), listing),
            Route("GET", f"{BASE}/bootVolumes/{{id}}", lambda call: shown(self._volume(call))),
            Route("PUT", f"{BASE}/bootVolumes/{{id}}", self._update, body=update, target="id"),
            Route("DELETE", f"{BASE}/bootVolumes/{{id}}", self._delete, target="id"),
            Route("GET", f"{BASE}/bootVolumeAttachments", self._lister("bootvolumeattachment"), attachments),
            Route(
                "GET",
                f"{BASE}/bootVolumeAttachments/{{id}}",
                lambda call: shown(self._store.get("bootvolumeattachment", call.ids["id"])),
            ),
            Route("GET", f"{BASE}/volumes", self._lister("volume"), volumes),
            Route("GET", f"{BASE}/volumes/{{id}}", lambda call: shown(self._store.get("volume", call.ids["id"]))),
            Route(
                "GET", f"{BASE}/volumeAttachments", self._lister("volumeattachment"), f"{listing} instanceId volumeId"
            ),
            Route("GET", f"{BASE}/bootVolumeBackups", self._lister("bootvolumebackup"), f"{backups} bootVolumeId"),
            Route("GET", f"{BASE}/volumeBackups", self._lister("volumebackup"), f"{backups} volumeId"),
        ]

    # -- for launches ----------------------------------------------------------------------------------------------
    def draft(self, compartment_id: str, domain: str, image: Image, size_gb: int | None, name: str) -> Record:
        """A boot volume that is not yet in the store, its size and the limits checked."""
        size = self._limits.boot_volume_min_gb if size_gb is None else size_gb
        if not self._limits.boot_volume_min_gb <= size <= MAX_SIZE_GB:
            least = self._limits.boot_volume_min_gb
            raise invalid(f"bootVolumeSizeInGBs {size} is not valid: must be between {least} and {MAX_SIZE_GB}")
        body: Json = {
            "compartmentId": compartment_id,
            "availabilityDomain": domain,
            "displayName": f"{name} (Boot Volume)",
            "imageId": image.id,
            "isHydrated": True,
            "lifecycleState": "PROVISIONING",
            "sizeInGBs": size,
            "sizeInMBs": size * 1024,
            "vpusPerGB": 10,
            "isAutoTuneEnabled": False,
            "sourceDetails": None,
        }
        draft = Record("bootvolume", body, "")
        self._limits.check(draft, domain=domain)
        return draft

    def attach(self, volume: Record, instance: Record) -> None:
        self._store.create(
            "bootvolumeattachment",
            instance.body["compartmentId"],
            {
                "availabilityDomain": instance.body["availabilityDomain"],
                "bootVolumeId": volume.id,
                "instanceId": instance.id,
                "displayName": f"Remote boot attachment for instance {instance.id}",
                "lifecycleState": "ATTACHING",
                "isPvEncryptionInTransitEnabled": False,
            },
        )

    def attachment(self, instance_id: str) -> Record | None:
        found = self._store.of("bootvolumeattachment", lambda r: r.body["instanceId"] == instance_id)
        return found[0] if found else None

    def attached(self, volume_id: str) -> bool:
        attachments = self._store.of("bootvolumeattachment", lambda r: r.body["bootVolumeId"] == volume_id)
        return any(r.alive for r in attachments)

    # -- operations ------------------------------------------------------------------------------------------------
    def _volume(self, call: Call) -> Record:
        return self._store.get("bootvolume", call.ids["id"])

    def _lister(self, kind: str) -> Callable[[Call], Answer]:
        def listing(call: Call) -> Answer:
            if "availabilityDomain" in call.query:
                check_domain(call.query["availabilityDomain"])
            page, headers = self._store.listed(kind, call.query)
            return Answer(page, headers=headers)

        return listing

    def _update(self, call: Call) -> Answer:
        volume = self._volume(call)
        if volume.state != "AVAILABLE":
            raise incorrect_state(f"Boot volume {volume.id} is {volume.state}")
        check_tags(call.body)
        size = call.body.get("sizeInGBs")
        if size is not None:
            if not volume.body["sizeInGBs"] <= size <= MAX_SIZE_GB:
                raise invalid(f"sizeInGBs {size} is not valid: a volume can only grow, up to {MAX_SIZE_GB}")
            grown = Record("bootvolume", {**volume.body, "sizeInGBs": size}, "")
            self._limits.check(grown, domain=volume.body["availabilityDomain"], instead_of=volume)
            call.body["sizeInMBs"] = size * 1024
        self._store.change(volume, **call.body)
        return shown(volume)

    def _delete(self, call: Call) -> Answer:
        volume = self._volume(call)
        if not volume.alive:
            raise incorrect_state(f"Boot volume {volume.id} is {volume.state}")
        if self.attached(volume.id):
            raise incorrect_state(f"Boot volume {volume.id} is attached to an instance; detach or terminate it first")
        volume.hidden["deleted"] = True
        self._store.change(volume, lifecycleState="TERMINATING")

        async def go() -> None:
            await self._world.clock.takes(0.5)
            self._store.change(volume, lifecycleState="TERMINATED")
            self._store.flush()

        self._world.spawn(go(), f"delete {volume.id}")
        return Answer(None, 204)
