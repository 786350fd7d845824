"""The lab's Oracle through oci-cli, which shares nothing with our own driver but the SDK under it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle_lab import A1, MICRO, OracleLab, eventually

CLI = os.environ.get("HYBRIDLAB_OCI_CLI") or shutil.which("oci")
pytestmark = pytest.mark.skipif(
    not CLI, reason="oci-cli not found: install it in its own environment, set HYBRIDLAB_OCI_CLI"
)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[OracleLab]:
    lab = OracleLab(tmp_path)
    yield lab
    lab.close()


def run(lab: OracleLab, *words: str) -> subprocess.CompletedProcess[str]:
    config = str(lab.directory / "oci" / "config")
    head = [str(CLI), "--endpoint", lab.endpoint, "--config-file", config, "--no-retry"]
    return subprocess.run(
        [*head, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HOME": str(lab.directory)},
    )


def data(lab: OracleLab, *words: str) -> Any:
    done = run(lab, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout).get("data") if done.stdout.strip() else None


def test_cli_sees_launches_and_removes(lab: OracleLab) -> None:
    domain = lab.domains()[1]
    here = ("-c", lab.tenancy)
    shapes = data(lab, "compute", "shape", "list", *here, "--availability-domain", domain, "--all")
    assert {A1, MICRO} <= {shape["shape"] for shape in shapes}
    images = data(
        lab, "compute", "image", "list", *here, "--operating-system", "Canonical Ubuntu", "--shape", A1, "--all"
    )
    vcn = data(lab, "network", "vcn", "create", *here, "--cidr-blocks", '["10.0.0.0/16"]', "--dns-label", "cli")["id"]
    subnet = data(lab, "network", "subnet", "create", *here, "--vcn-id", vcn, "--cidr-block", "10.0.0.0/24")["id"]
    group = data(lab, "network", "nsg", "create", *here, "--vcn-id", vcn)["id"]
    ssh = {"direction": "INGRESS", "protocol": "6", "source": "198.51.100.7/32"}
    data(lab, "network", "nsg", "rules", "add", "--nsg-id", group, "--security-rules", json.dumps([ssh]))
    assert [r["source"] for r in data(lab, "network", "nsg", "rules", "list", "--nsg-id", group)] == ["198.51.100.7/32"]
    words = ["compute", "instance", "launch", *here, "--availability-domain", domain, "--subnet-id", subnet]
    size = json.dumps({"ocpus": 1, "memoryInGBs": 6})
    one = data(
        lab, *words, "--shape", A1, "--shape-config", size, "--image-id", images[0]["id"], "--display-name", "cli"
    )
    eventually(lambda: one["id"] in lab.hosts.machines)
    listed = data(lab, "compute", "instance", "list", *here)
    assert [(i["display-name"], i["lifecycle-state"]) for i in listed] == [("cli", "RUNNING")]
    assert [v["id"] for v in data(lab, "network", "vcn", "list", *here)] == [vcn]
    (private,) = data(lab, "network", "private-ip", "list", "--subnet-id", subnet)
    where = ("--scope", "AVAILABILITY_DOMAIN", "--availability-domain", domain, "--lifetime", "EPHEMERAL")
    (public,) = data(lab, "network", "public-ip", "list", *here, *where)
    assert (private["is-primary"], public["assigned-entity-id"]) == (True, private["id"])
    refused = run(lab, *words, "--shape", MICRO, "--image-id", images[0]["id"])
    assert refused.returncode == 1
    assert "is not valid for image" in refused.stderr
    data(lab, "compute", "instance", "action", "--instance-id", one["id"], "--action", "SOFTRESET")
    eventually(lambda: ("reboot", one["id"]) in lab.hosts.done)
    data(lab, "compute", "instance", "terminate", "--instance-id", one["id"], "--force")
    eventually(lambda: lab.state(one["id"]) == "TERMINATED")
    assert any("Oracle-PythonCLI" in row["actor"] for row in lab.requests())
