"""Launching one VM: the hunt for capacity over availability domains, never doubling a launch, never hammering."""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence

from hybridlab.errors import (
    BadInput,
    DeadlineExceeded,
    LimitReached,
    NotFound,
    OutOfCapacity,
    Refused,
    TooManyRequests,
    Unreachable,
)
from hybridlab.models import CloudInstance, HostAddress, Json, LaunchRequest, NodeWish
from hybridlab.plan import Step
from hybridlab.ports import Context
from hybridlab.stages.nodes import instances_by_node
from hybridlab.wait import wait_until

RUNNING_DEADLINE_S = 600.0
SSH_DEADLINE_S = 300.0
CLOUD_INIT_DEADLINE_S = 600.0
PAUSE_MAX_S = 600.0
DEGRADED = (1.0, 6.0)  # OCPU, GB: what the article's second node has


def launch_node(
    ctx: Context, step: Step, wish: NodeWish, subnet_id: str, nsg_id: str, tags: Mapping[str, str]
) -> Mapping[str, Json]:
    """Launch a node's VM and wait until it runs and answers SSH.

    A VM of that node that is there already (an earlier launch whose answer was lost) is taken, not doubled.
    """
    attempts: list[dict[str, Json]] = []
    vm = _existing(ctx, wish.name)
    if vm is None:
        vm = _hunt(ctx, step, wish, subnet_id, nsg_id, tags, attempts)
    vm = _wait_running(ctx, wish.name)
    if vm.boot_volume_id:
        ctx.oracle.tag_boot_volume(vm.boot_volume_id, tags)
    wait_for_ssh(ctx, vm)
    return {"id": vm.id, "availability_domain": vm.availability_domain, "attempts": attempts}


def start_node(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Start a stopped VM and wait until it answers SSH."""
    name = step.args["node"]
    vm = _existing(ctx, name)
    if vm is None:
        raise NotFound(f"node {name} has no VM", next_move="run 020 again")
    if vm.state == "STOPPING":
        vm = wait_until(
            lambda: _need(ctx, name),
            lambda v: v.state == "STOPPED",
            what=f"VM {name} to stop",
            deadline_s=RUNNING_DEADLINE_S,
            clock=ctx.clock,
            describe=lambda v: v.state,
        )
    ctx.oracle.start_instance(vm.id)
    wait_for_ssh(ctx, _wait_running(ctx, name))
    return {"id": vm.id}


def make_ssh_key(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Make the cluster's SSH key pair (Ed25519); both halves go into the secret store before their first use."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if ctx.secrets.get("ssh_key") is not None:
        return {"changed": False}
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    ctx.secrets.put("ssh_key.pub", f"{public.decode()} hybridlab-{ctx.params.cluster}\n")
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    ctx.secrets.put("ssh_key", private.decode())
    return {"public_key": public.decode()}


def public_key(ctx: Context) -> str:
    """The public half of the cluster's SSH key."""
    public = ctx.secrets.get("ssh_key.pub")
    if public is None:
        raise BadInput("the public half of the SSH key is missing", where=str(ctx.secrets.path("ssh_key.pub")))
    return public.reveal().strip()


def _existing(ctx: Context, name: str) -> CloudInstance | None:
    return instances_by_node(ctx.oracle.instances(), ctx.params.cluster).get(name)


def _need(ctx: Context, name: str) -> CloudInstance:
    vm = _existing(ctx, name)
    if vm is None:
        raise NotFound(f"the VM of node {name} is gone", next_move="run 020 again")
    return vm


def _hunt(
    ctx: Context,
    step: Step,
    wish: NodeWish,
    subnet_id: str,
    nsg_id: str,
    tags: Mapping[str, str],
    attempts: list[dict[str, Json]],
) -> CloudInstance:
    """Ask one availability domain after another, then pause and begin again, until the deadline."""
    params = ctx.params.provision
    image = ctx.oracle.newest_image(wish.shape, wish.arch, os=params.image_os, version=params.image_version)
    domains = [s.availability_domain for s in ctx.oracle.shapes() if s.name == wish.shape]
    if not domains:
        raise NotFound(f"no availability domain offers {wish.shape}", next_move="drop the node from the params")
    end, pause = ctx.clock.now() + params.capacity_deadline_s, params.capacity_pause_s
    while True:
        for ocpus, memory_gb in _sizes(wish, degrade=params.degrade):
            for domain in tuple(domains):
                request = LaunchRequest(
                    name=wish.name,
                    shape=wish.shape,
                    ocpus=ocpus,
                    memory_gb=memory_gb,
                    boot_volume_gb=wish.boot_volume_gb,
                    image_id=image.id,
                    availability_domain=domain,
                    subnet_id=subnet_id,
                    nsg_id=nsg_id,
                    authorized_keys=public_key(ctx),
                    tags=tags,
                )
                vm, answer = _attempt(ctx, step, request)
                attempts.append({"availability_domain": domain, "ocpus": ocpus, "answer": answer})
                if vm is not None:
                    return vm
                if answer.startswith("not offered"):
                    domains.remove(domain)
        if not domains:
            raise NotFound(f"no availability domain takes {wish.shape}", why=str(attempts[-1]["answer"]))
        left = end - ctx.clock.now()
        if left <= 0:
            raise DeadlineExceeded(
                f"no capacity for {wish.name} within {params.capacity_deadline_s:g} s",
                where=f"{wish.shape} in {', '.join(domains)}",
                why=f"{len(attempts)} attempts, last answer: {attempts[-1]['answer']}",
                next_move="run 020 again later (it goes on), raise provision.capacity_deadline_s, or allow degrade",
            )
        nap = min(pause * random.uniform(0.75, 1.25), left)
        ctx.say(f"VM {wish.name}: no capacity in any domain; {len(attempts)} attempts, next in {nap:.0f} s")
        ctx.clock.sleep(nap)
        pause = min(pause * 1.5, PAUSE_MAX_S)


def _sizes(wish: NodeWish, *, degrade: bool) -> Sequence[tuple[float, float]]:
    wanted = (wish.ocpus, wish.memory_gb)
    return (wanted, DEGRADED) if degrade and wish.arch == "arm64" and wanted != DEGRADED else (wanted,)


def _attempt(ctx: Context, step: Step, request: LaunchRequest) -> tuple[CloudInstance | None, str]:
    """One launch in one domain: the VM, or None and the answer. What no other domain will change is raised.

    The same retry token is used again only while the outcome is unknown, so that Oracle itself can't double it.
    """
    token, throttled = uuid.uuid4().hex, 0
    while True:
        try:
            vm = ctx.oracle.launch(request, retry_token=token)
        except OutOfCapacity as error:
            ctx.say(f"VM {request.name}: {request.availability_domain}: {error.why or error.what}")
            return None, "out of capacity"
        except TooManyRequests:
            throttled += 1
            if throttled > 6:
                return None, "too many requests"
            ctx.clock.sleep(min(2.0**throttled, 60) * random.uniform(0.5, 1.0))
            token = uuid.uuid4().hex
        except NotFound as error:
            ctx.say(f"VM {request.name}: {request.availability_domain}: {error.why or error.what}")
            return None, f"not offered here ({error.code})"
        except LimitReached as error:
            if _used(ctx, request.shape):
                raise
            # with nothing of the kind in use the limit can't be reached: a phantom, which clears by itself
            return None, f"phantom limit ({error.why})"
        except Unreachable as error:
            found = _existing(ctx, request.name)
            if found is not None:
                return found, "answer lost, VM found"
            throttled += 1
            if throttled > 3:
                raise
            ctx.say(f"VM {request.name}: answer lost ({error.why}); asking again with the same token")
            ctx.clock.sleep(2.0)
        else:
            ctx.ledger.add("provision", step.id, "started", effect="create", target=step.target, detail={"id": vm.id})
            return vm, "accepted"


def _used(ctx: Context, shape: str) -> bool:
    return any(vm.shape == shape and vm.state != "TERMINATED" for vm in ctx.oracle.instances())


def _wait_running(ctx: Context, name: str) -> CloudInstance:
    def done(vm: CloudInstance) -> bool:
        if vm.state in ("TERMINATED", "TERMINATING"):
            raise Refused(f"VM {name} was terminated while it started", where=vm.id)
        return vm.state == "RUNNING" and bool(vm.public_ip)

    return wait_until(
        lambda: _need(ctx, name),
        done,
        what=f"VM {name} to run",
        deadline_s=RUNNING_DEADLINE_S,
        clock=ctx.clock,
        interval_s=1.0,
        describe=lambda vm: vm.state,
        next_move="look at the instance in Oracle's console, then run 020 again",
    )


def wait_for_ssh(ctx: Context, vm: CloudInstance) -> None:
    if vm.public_ip is None:
        raise NotFound(f"VM {vm.name} has no public address", where=vm.id)
    host = HostAddress(vm.name, vm.public_ip, ctx.params.bootstrap.ssh_user)
    ctx.hosts.wait_for_ssh(host, SSH_DEADLINE_S)
    # packages can't be installed before cloud-init is done; it exits 2 for warnings, and not every image has it
    ctx.hosts.run(host, ["cloud-init", "status", "--wait"], check=False, timeout_s=CLOUD_INIT_DEADLINE_S)
