"""900 takes what is ours and nothing else; 910 replaces a worker; 020 begins anew."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import oci
import pytest
from life import NODES, Life, promptly, ready

OCI_CLI = os.environ.get("HYBRIDLAB_OCI_CLI") or shutil.which("oci")
PAUSE = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "worker", "namespace": "default"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "worker"}},
        "template": {
            "metadata": {"labels": {"app": "worker"}},
            "spec": {
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "worker", "image": "docker.io/library/mariadb:11"}],
            },
        },
    },
}


@pytest.fixture(scope="module")
def built(life: Life) -> Life:
    """A cluster of three nodes on which nothing runs yet."""
    life.make("provision", "bootstrap")
    return life


def running(life: Life) -> dict[str, str]:
    return {vm.display_name: vm.id for vm in life.instances()}


def network(life: Life) -> list[tuple[str, str]]:
    """Every resource of the compartment that is not a machine, whoever it belongs to."""
    return sorted((r.kind, r.name) for r in life.cluster().oracle.resources() if r.state != "TERMINATED")


def launch_a_guest(life: Life) -> str:
    """A VM that isn't ours in our subnet, made with no tag by oci-cli, else by the SDK; returns its id."""
    compute, compartment = life.oci(oci.core.ComputeClient)
    net, _ = life.oci(oci.core.VirtualNetworkClient)
    ours = next(vm for vm in life.instances() if vm.display_name == "amd-1")
    subnet = net.list_subnets(compartment).data[0]
    if OCI_CLI:
        words = ["compute", "instance", "launch", "--compartment-id", compartment, "--subnet-id", subnet.id]
        words += ["--availability-domain", ours.availability_domain, "--shape", ours.shape, "--display-name", "guest"]
        by_cli: str = oci_cli(life, *words, "--image-id", ours.source_details.image_id)["id"]
        promptly(lambda: compute.get_instance(by_cli).data.lifecycle_state, "RUNNING".__eq__, "the guest to run")
        return by_cli
    guest = oci.core.models.LaunchInstanceDetails(
        compartment_id=compartment,
        availability_domain=ours.availability_domain,
        shape=ours.shape,
        display_name="guest",
        source_details=oci.core.models.InstanceSourceViaImageDetails(image_id=ours.source_details.image_id),
        create_vnic_details=oci.core.models.CreateVnicDetails(subnet_id=subnet.id),
    )
    made: str = compute.launch_instance(guest).data.id
    promptly(lambda: compute.get_instance(made).data.lifecycle_state, "RUNNING".__eq__, "the guest to run")
    return made


def oci_cli(life: Life, *words: str) -> Any:
    where = life.lab.endpoints["oracle"]
    head = ["--config-file", where["config_file"], "--endpoint", where["endpoint"], "--no-retry"]
    done = life.command(str(OCI_CLI), *head, *words, HOME=str(life.home))
    assert done.status == 0, done.said
    return json.loads(done.out)["data"] if done.out.strip() else None


def test_replace_brings_a_fresh_machine_of_the_same_name(built: Life) -> None:
    before, uids = running(built), {n: o["metadata"]["uid"] for n, o in built.nodes().items()}
    kube = built.cluster().kube
    kube.apply(PAUSE)

    def pods() -> list[Any]:
        return [p for p in kube.list("v1", "Pod", "default") if p.get("status", {}).get("phase") == "Running"]

    promptly(pods, lambda found: len(found) == 2, "the Deployment's pods")
    done = built.run("910", "--set", "maintain.node=arm-2")
    assert done.status == 0, done.said
    after, nodes = running(built), built.nodes()
    assert sorted(after) == sorted(NODES)
    assert {name for name in NODES if after[name] != before[name]} == {"arm-2"}
    assert {name for name in NODES if nodes[name]["metadata"]["uid"] != uids[name]} == {"arm-2"}
    assert all(ready(node) for node in nodes.values())
    assert not nodes["arm-2"]["spec"].get("unschedulable")
    promptly(pods, lambda found: len(found) == 2, "the pods to have moved")
    drained = [row.detail["pods"] for row in built.ledger() if row.step == "drain" and row.event == "done"]
    assert len(drained) == 1
    assert drained[0] >= 1
    kube.delete("apps/v1", "Deployment", "worker", "default")
    assert built.steps().keys().isdisjoint({"provision", "bootstrap"})


def test_what_is_not_ours_is_left_alone_and_said_so(built: Life) -> None:
    guest = launch_a_guest(built)
    compute, compartment = built.oci(oci.core.ComputeClient)
    shown = built.hybridlab("plan", "teardown")
    assert shown.status == 0
    assert "guest" in shown.out
    assert "not ours" in " ".join(shown.out.split())
    if OCI_CLI:
        seen = oci_cli(built, "compute", "instance", "list", "--compartment-id", compartment, "--all")
        states = {i["display-name"]: i["lifecycle-state"] for i in seen if i["lifecycle-state"] != "TERMINATED"}
        assert states == dict.fromkeys((*NODES, "guest"), "RUNNING")
    done = built.run("900")
    assert done.status == 0, done.said
    assert running(built) == {"guest": guest}
    assert {"vcn", "subnet"} <= {kind for kind, _ in network(built)}, "the guest's network stays with it"
    assert "left alone" in (built.runs()[-1] / "900-tear-down.ipynb").read_text(encoding="utf-8")
    assert "left alone" in (built.runs()[-1] / "report" / "index.html").read_text(encoding="utf-8")
    assert not built.kubeconfig.exists()
    # the guest's owner takes it away: now the network can go, too
    compute.terminate_instance(guest)
    promptly(lambda: running(built), lambda vms: not vms, "the guest to be gone")
    done = built.run("900")
    assert done.status == 0, done.said
    assert network(built) == []
    assert built.hybridlab("plan", "teardown", "--json").out.count('"effect"') == 0
    # and the life begins anew
    built.make("provision", "bootstrap")
    assert sorted(running(built)) == sorted(NODES)
    assert {name: ready(node) for name, node in built.nodes().items()} == dict.fromkeys(NODES, True)
