"""Instances: launch, actions, update, termination, and the time all that takes."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable

from hybridlab.lab.oracle import launch
from hybridlab.lab.oracle.blockstorage import BlockStorage
from hybridlab.lab.oracle.catalogue import A1, IMAGES, SHAPES
from hybridlab.lab.oracle.errors import ApiError, incorrect_state, invalid, limit_exceeded, not_found
from hybridlab.lab.oracle.http import Answer, Call, Route, check_fields, shown
from hybridlab.lab.oracle.limits import Limits
from hybridlab.lab.oracle.network import BASE
from hybridlab.lab.oracle.store import REGION, Json, Record, Store
from hybridlab.lab.oracle.tags import check_tags
from hybridlab.lab.oracle.vnics import Vnics
from hybridlab.lab.oracle.workrequests import WorkRequests
from hybridlab.lab.world import Machine, World

PROVISION_S = 3.0
START_S = 1.5
STOP_S = 1.0
TERMINATE_S = 1.0
VNIC_LINGERS_S = 1.0
FAULTS = {
    "out-of-capacity": 'a launch is answered 500 InternalError "Out of host capacity." (subject: "AD shape")',
    "phantom-limit": 'a launch is answered 400 LimitExceeded though nothing is used (subject: "AD shape")',
    "a1-memory-forced": 'an A1 gets 6 GB of memory per OCPU whatever was asked (subject: "AD shape")',
    "lost-answer": 'a launch is carried out, then the connection is cut (subject: "AD shape")',
    "bad-gateway": 'a launch is carried out, then answered 502 (subject: "AD shape")',
}
_ACTIONS = {
    "START": "STOPPED",
    "STOP": "RUNNING",
    "SOFTSTOP": "RUNNING",
    "RESET": "RUNNING",
    "SOFTRESET": "RUNNING",
}
_POWER = "actionType allowDenseRebootMigration:bool"
_FORCED_GB_PER_OCPU = 6


class Instances:
    def __init__(
        self, world: World, store: Store, limits: Limits, vnics: Vnics, volumes: BlockStorage, work: WorkRequests
    ) -> None:
        self._world = world
        self._store = store
        self._limits = limits
        self._vnics = vnics
        self._volumes = volumes
        self._work = work
        self._locks: dict[str, asyncio.Lock] = {}

    def routes(self) -> list[Route]:
        one = f"{BASE}/instances/{{id}}"
        listing = "compartmentId! availabilityDomain displayName limit page sortBy sortOrder lifecycleState"
        update = "displayName freeformTags:dict definedTags:dict metadata:dict shape shapeConfig:dict faultDomain"
        return [
            Route("GET", f"{BASE}/instances", self._list, listing),
            Route("POST", f"{BASE}/instances", self._launch, body=launch.FIELDS, creates=True),
            Route("GET", one, lambda call: shown(self._instance(call))),
            Route("POST", one, self._action, "action!", _POWER, target="id"),
            Route("PUT", one, self._update, body=update, target="id"),
            Route("DELETE", one, self._terminate, "preserveBootVolume", target="id"),
        ]

    def resume(self) -> None:
        """Go on where the lab was stopped: running machines are powered on, transitions continue."""
        for instance in self._store.of("instance"):
            work: dict[str, Awaitable[None]] = {}
            if instance.state == "PROVISIONING":
                work["provision"] = self._provision(instance)
            elif instance.state == "STARTING":
                work["start"] = self._start(instance)
            elif instance.state == "STOPPING":
                work["stop"] = self._stop(instance)
            elif instance.state == "RUNNING":
                work["power on"] = self._power_on(instance)
            elif instance.state == "TERMINATING" or (not instance.alive and self._vnics.of_instance(instance.id)):
                work["terminate"] = self._go(instance)
            for name, coroutine in work.items():
                self._world.spawn(coroutine, f"{name} {instance.id}")

    def machine(self, instance: Record) -> Machine:
        """The computer behind an instance, as the lab's hosts need it."""
        shape, image = SHAPES[instance.body["shape"]], IMAGES[instance.body["imageId"]]
        config, metadata = instance.body["shapeConfig"], instance.body["metadata"]
        vnic = self._store.records[instance.hidden["vnic"]]
        volume = self._store.records[instance.hidden["boot_volume"]]
        slug = re.sub(r"[^a-z0-9-]+", "-", instance.body["displayName"].lower()).strip("-")
        keys = (line.strip() for line in metadata.get("ssh_authorized_keys", "").splitlines())
        return Machine(
            id=instance.id,
            name=vnic.body.get("hostnameLabel") or slug or "instance",
            arch=shape.arch,
            ocpus=shape.host_ocpus or config["ocpus"],
            memory_gb=config["memoryInGBs"],
            boot_volume_gb=volume.body["sizeInGBs"],
            private_ip=vnic.body["privateIp"],
            public_ip=vnic.body.get("publicIp"),
            user=image.user,
            authorized_keys=tuple(key for key in keys if key and not key.startswith("#")),
            image=image.name,
            user_data=base64.b64decode(metadata.get("user_data", "")).decode("utf-8", "replace"),
        )

    def _instance(self, call: Call) -> Record:
        return self._store.get("instance", call.ids["id"])

    def _list(self, call: Call) -> Answer:
        page, headers = self._store.listed("instance", call.query)
        return Answer(page, headers=headers)

    # -- launch ----------------------------------------------------------------------------------------------------
    def _launch(self, call: Call) -> Answer:
        wanted = launch.check(self._store, call.body)
        placement = self._vnics.place(wanted.vnic, wanted.domain)
        subject = f"{wanted.domain} {wanted.shape.name}"
        fields = self._fields(call.body, wanted)
        draft = Record("instance", {**fields, "compartmentId": wanted.compartment_id}, "")
        fires = self._world.faults.fires
        if fires("phantom-limit", subject):
            raise limit_exceeded(self._limits.names(draft))
        self._limits.check(draft, domain=wanted.domain)
        name = fields.get("displayName", "instance")
        volume = self._volumes.draft(wanted.compartment_id, wanted.domain, wanted.image, wanted.boot_volume_gb, name)
        if fires("out-of-capacity", subject):
            raise ApiError(500, "InternalError", "Out of host capacity.")
        if wanted.shape.name == A1 and fires("a1-memory-forced", subject):
            ocpus = wanted.size.ocpus
            fields["shapeConfig"] = wanted.shape.config(ocpus, ocpus * _FORCED_GB_PER_OCPU)
        instance = self._store.create("instance", wanted.compartment_id, fields)
        boot = self._store.create("bootvolume", wanted.compartment_id, volume.body)
        self._volumes.attach(boot, instance)
        instance.hidden.update(vnic=self._vnics.attach(instance, placement).id, boot_volume=boot.id)
        request = self._work.begin("LaunchInstance", "CREATED", instance)
        self._world.spawn(self._provision(instance), f"provision {instance.id}")
        if fires("bad-gateway", subject):
            return Answer({"code": "BadGateway", "message": "Bad Gateway"}, 502, made=instance.id)
        answer = shown(instance, opc_work_request_id=request)
        return Answer(answer.body, 200, answer.headers, lost=fires("lost-answer", subject))

    def _fields(self, body: Json, wanted: launch.Wanted) -> Json:
        source = {"sourceType": "image", "imageId": wanted.image.id}
        if wanted.boot_volume_gb is not None:
            source["bootVolumeSizeInGBs"] = wanted.boot_volume_gb  # type: ignore[assignment]
        fields = {
            "availabilityDomain": wanted.domain,
            "displayName": body.get("displayName"),
            "faultDomain": body.get("faultDomain", launch.FAULT_DOMAINS[0]),
            "freeformTags": body.get("freeformTags", {}),
            "imageId": wanted.image.id,
            "launchMode": "PARAVIRTUALIZED",
            "lifecycleState": "PROVISIONING",
            "metadata": wanted.metadata,
            "extendedMetadata": {},
            "region": REGION,
            "shape": wanted.shape.name,
            "shapeConfig": wanted.shape.config(wanted.size.ocpus, wanted.size.memory_gb),
            "sourceDetails": source,
            "systemTags": {},
            "agentConfig": body.get("agentConfig"),
            "availabilityConfig": body.get("availabilityConfig", {"recoveryAction": "RESTORE_INSTANCE"}),
            "instanceOptions": body.get("instanceOptions", {"areLegacyImdsEndpointsDisabled": False}),
        }
        return {name: value for name, value in fields.items() if value is not None}

    # -- the other operations --------------------------------------------------------------------------------------
    def _action(self, call: Call) -> Answer:
        instance, action = self._instance(call), call.query["action"]
        if action not in _ACTIONS:
            raise invalid(f"action {action} is not valid; the lab knows {', '.join(_ACTIONS)}")
        if call.body.get("actionType", action).upper() != action or call.body.get("allowDenseRebootMigration"):
            raise invalid(f"the details of the action do not fit {action}")
        if instance.state != _ACTIONS[action]:
            raise incorrect_state(f"Instance {instance.id} is {instance.state}: {action} needs {_ACTIONS[action]}")
        if action == "START":
            self._store.change(instance, lifecycleState="STARTING")
            work = self._start(instance)
        else:
            self._store.change(instance, lifecycleState="STOPPING")
            work = self._stop(instance) if action in ("STOP", "SOFTSTOP") else self._restart(instance)
        self._world.spawn(work, f"{action} {instance.id}")
        return shown(instance)

    def _update(self, call: Call) -> Answer:
        instance, body = self._instance(call), call.body
        if instance.state not in ("RUNNING", "STOPPED"):
            raise incorrect_state(f"Instance {instance.id} is {instance.state}")
        check_tags(body)
        if body.get("shape", instance.body["shape"]) != instance.body["shape"]:
            raise invalid(f"shape: the lab cannot change {instance.body['shape']} to {body['shape']}")
        if body.get("faultDomain", instance.body["faultDomain"]) not in launch.FAULT_DOMAINS:
            raise invalid(f"faultDomain {body['faultDomain']} is not valid")
        changes = {name: value for name, value in body.items() if name not in ("shapeConfig", "shape")}
        if "metadata" in body:
            launch.check_metadata(body["metadata"])
            for name in ("ssh_authorized_keys", "user_data"):
                if body["metadata"].get(name) != instance.body["metadata"].get(name):
                    raise invalid(f"metadata: {name} cannot be changed after launch")
        resized = "shapeConfig" in body and self._resize(instance, body["shapeConfig"], changes)
        self._store.change(instance, **changes)
        if resized and instance.state == "RUNNING":
            self._store.change(instance, lifecycleState="STOPPING")
            self._world.spawn(self._restart(instance, resized=True), f"resize {instance.id}")
        return shown(instance)

    def _resize(self, instance: Record, asked: Json, changes: Json) -> bool:
        check_fields(asked, "ocpus:num memoryInGBs:num", "shapeConfig: ")
        shape, old = SHAPES[instance.body["shape"]], instance.body["shapeConfig"]
        config = {name: asked.get(name, old[name]) for name in ("ocpus", "memoryInGBs")}
        size = launch.size_of(shape, config)
        changes["shapeConfig"] = shape.config(size.ocpus, size.memory_gb)
        larger = Record("instance", {**instance.body, **changes}, "")
        self._limits.check(larger, domain=instance.body["availabilityDomain"], instead_of=instance)
        return bool(changes["shapeConfig"] != old)

    def _terminate(self, call: Call) -> Answer:
        instance = self._instance(call)
        preserve = call.query.get("preserveBootVolume", "false")
        if preserve not in ("true", "false"):
            raise invalid("preserveBootVolume must be true or false")
        if instance.state == "TERMINATED":
            raise not_found()
        if instance.state == "TERMINATING":
            raise incorrect_state(f"Instance {instance.id} is already TERMINATING")
        instance.hidden["preserve"] = preserve == "true"
        self._store.change(instance, lifecycleState="TERMINATING")
        self._vnics.set_state(instance.id, "TERMINATING", "DETACHING")
        request = self._work.begin("TerminateInstance", "DELETED", instance)
        self._world.spawn(self._go(instance), f"terminate {instance.id}")
        return Answer(None, 204, {"opc-work-request-id": request})

    # -- what takes time -------------------------------------------------------------------------------------------
    def _lock(self, instance: Record) -> asyncio.Lock:
        """One thing at a time happens to a machine."""
        return self._locks.setdefault(instance.id, asyncio.Lock())

    def _reach(self, instance: Record, state: str) -> None:
        self._store.change(instance, lifecycleState=state)
        self._work.finish(instance.id)
        self._store.flush()

    async def _power_on(self, instance: Record) -> None:
        async with self._lock(instance):
            if instance.state == "RUNNING":
                await self._world.hosts.power_on(self.machine(instance))

    async def _provision(self, instance: Record) -> None:
        await self._world.clock.takes(PROVISION_S)
        if instance.state != "PROVISIONING":
            return  # terminated meanwhile
        self._vnics.set_state(instance.id, "AVAILABLE", "ATTACHED")
        self._store.change(self._store.records[instance.hidden["boot_volume"]], lifecycleState="AVAILABLE")
        attachment = self._volumes.attachment(instance.id)
        if attachment is not None:
            self._store.change(attachment, lifecycleState="ATTACHED")
        self._reach(instance, "RUNNING")
        await self._power_on(instance)

    async def _start(self, instance: Record) -> None:
        await self._world.clock.takes(START_S)
        if instance.state == "STARTING":
            self._reach(instance, "RUNNING")
            await self._power_on(instance)

    async def _stop(self, instance: Record) -> None:
        await self._world.clock.takes(STOP_S)
        async with self._lock(instance):
            if instance.state == "STOPPING":
                await self._world.hosts.power_off(instance.id)
                self._reach(instance, "STOPPED")

    async def _restart(self, instance: Record, *, resized: bool = False) -> None:
        await self._world.clock.takes(STOP_S)
        async with self._lock(instance):
            if instance.state != "STOPPING":
                return
            self._store.change(instance, lifecycleState="STARTING")
            if resized:
                await self._world.hosts.power_off(instance.id)
                await self._world.hosts.power_on(self.machine(instance))
            else:
                await self._world.hosts.reboot(instance.id)
            if instance.state == "STARTING":
                self._reach(instance, "RUNNING")

    async def _go(self, instance: Record) -> None:
        """Terminate: the machine goes, then the boot volume, and a moment later the VNIC."""
        await self._world.clock.takes(TERMINATE_S)
        if instance.state == "TERMINATING":
            async with self._lock(instance):
                await self._world.hosts.destroy(instance.id)
            boot = self._store.records[instance.hidden["boot_volume"]]
            self._store.change(boot, lifecycleState="AVAILABLE" if instance.hidden["preserve"] else "TERMINATED")
            attachment = self._volumes.attachment(instance.id)
            if attachment is not None:
                self._store.change(attachment, lifecycleState="DETACHED")
            self._reach(instance, "TERMINATED")
        await self._world.clock.takes(VNIC_LINGERS_S)
        self._vnics.detach(instance.id)
        self._store.flush()
        self._locks.pop(instance.id, None)
