"""Launching one VM and starting a stopped one: until it runs, is tagged, and answers SSH."""

from __future__ import annotations

from collections.abc import Mapping

from hybridlab.errors import BadInput, NotFound, Refused
from hybridlab.models import CloudInstance, HostAddress, Json, LaunchRequest, NodeWish
from hybridlab.plan import Step
from hybridlab.ports import Context
from hybridlab.stages.provision.hunt import Hunt, existing, hunt_for
from hybridlab.wait import wait_until

RUNNING_DEADLINE_S = 600.0
SSH_DEADLINE_S = 300.0
CLOUD_INIT_DEADLINE_S = 600.0


def launch_node(
    ctx: Context, step: Step, wish: NodeWish, subnet_id: str, nsg_id: str, tags: Mapping[str, str]
) -> Mapping[str, Json]:
    """Launch a node's VM and wait until it runs and answers SSH.

    A VM of that node that is there already (an earlier launch whose answer was lost) is taken, not doubled.
    """
    params = ctx.params.provision
    where = ctx.state / "hunts" / f"{wish.name}.json"
    hunt = Hunt(where, wish, ctx.clock, deadline_s=params.capacity_deadline_s, pause_s=params.capacity_pause_s)
    if existing(ctx, wish.name) is None:
        request = LaunchRequest(
            name=wish.name,
            shape=wish.shape,
            ocpus=wish.ocpus,
            memory_gb=wish.memory_gb,
            boot_volume_gb=wish.boot_volume_gb,
            image_id="",
            availability_domain="",
            subnet_id=subnet_id,
            nsg_id=nsg_id,
            authorized_keys=public_key(ctx),
            tags=tags,
        )
        hunt_for(ctx, step, wish, hunt, request)
    attempts = hunt.over()
    vm = _wait_running(ctx, wish.name)
    if vm.boot_volume_id:
        ctx.oracle.tag_boot_volume(vm.boot_volume_id, tags)
    wait_for_ssh(ctx, vm)
    return {"id": vm.id, "availability_domain": vm.availability_domain, "attempts": attempts}


def start_node(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Start a stopped VM and wait until it answers SSH."""
    name = step.args["node"]
    vm = existing(ctx, name)
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


def _need(ctx: Context, name: str) -> CloudInstance:
    vm = existing(ctx, name)
    if vm is None:
        raise NotFound(f"the VM of node {name} is gone", next_move="run 020 again")
    return vm


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
