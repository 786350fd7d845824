"""``hybridlab lab …``: start, look at, trouble and stop the lab."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import click

from hybridlab.errors import BadInput, HybridlabError
from hybridlab.lab.directory import LabDirectory, lab_directory, read_requests, request_filter, services_file
from hybridlab.lab.process import Lab, ask, lab_status, running_lab, start_lab, stop_lab

F = TypeVar("F", bound=Callable[..., Any])
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class LabGroup(click.Group):
    """Used by itself, turns errors raised on purpose into one message on stderr and their exit status.

    Under ``hybridlab`` that is done there.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HybridlabError as error:
            if ctx.parent:
                raise
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)


def _dir_option(command: F) -> F:
    option: Callable[[F], F] = click.option(
        "--dir",
        "directory",
        type=click.Path(file_okay=False, path_type=Path),
        help="The lab's folder. Default: HYBRIDLAB_LAB_DIR, else .lab beside params/.",
    )
    return option(command)


def _folder(directory: Path | None) -> Path:
    return directory.resolve() if directory else lab_directory()


@click.group(cls=LabGroup)
def lab() -> None:
    """The embedded lab: stand-ins for Oracle, hosts, K3s, registry and S3 on this machine."""


@lab.command()
@_dir_option
@click.option("--speed", type=float, default=1.0, show_default=True, help="10: what takes ten seconds takes one.")
@click.option("--allowance", help="The tenancy's allowance, a name in data/allowances.json. Default: as it was.")
@click.option(
    "--compose",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The services on a new lab's Docker host. Default: params/services/compose.yaml where there is one.",
)
def start(directory: Path | None, speed: float, allowance: str | None, compose: Path | None) -> None:
    """Start the lab in the background, or say that it runs already."""
    begun = time.monotonic()
    services = compose or services_file()
    found = start_lab(_folder(directory), speed=speed, allowance=allowance, compose=services)
    if found.fresh:
        click.echo(f"The lab is up after {time.monotonic() - begun:.1f} s (process {found.pid}, {found.directory}).")
    else:
        click.echo(f"The lab is already running (process {found.pid}, speed {found.speed:g}, {found.directory}).")
        if allowance or (_given("speed") and found.speed != speed):
            click.echo("Its settings stay as they are: stop it first to start it with others.", err=True)


def _given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


@lab.command()
@_dir_option
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def status(directory: Path | None, as_json: bool) -> None:
    """Say whether the lab runs, and what is in it. Exit status 2 when it doesn't."""
    found = lab_status(_folder(directory))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    counts = ", ".join(f"{what} {number}" for what, number in found["counts"].items())
    click.echo(f"running   process {found['pid']} for {found['uptime_s']:.0f} s, {found['memory_mb']:.0f} MB")
    click.echo(f"folder    {found['directory']}")
    click.echo(f"control   {found['control']}")
    click.echo(f"parts     {', '.join(found['parts'])} at speed {found['speed']:g}")
    click.echo(f"holds     {counts or 'nothing yet'}")
    click.echo(f"operator  {found['operator_ip']}")
    for fault in found["faults"]:
        click.echo(f"fault     {_fault_text(fault)}")


@lab.command()
@_dir_option
def stop(directory: Path | None) -> None:
    """Stop the lab; what is in it stays, and is there again after the next start."""
    folder = _folder(directory)
    click.echo("The lab has stopped." if stop_lab(folder) else f"No lab was running ({folder}).")


@lab.command()
@_dir_option
def reset(directory: Path | None) -> None:
    """Stop the lab and delete everything in it."""
    folder = _folder(directory)
    stop_lab(folder)
    click.echo(f"Deleted {folder}." if LabDirectory(folder).empty() else f"There was no lab in {folder}.")


@lab.command()
@_dir_option
@click.argument("name", required=False)
@click.option("--count", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many times it strikes.")
@click.option("--match", default="", help="Only where this text occurs in what it strikes.")
@click.option("--list", "listing", is_flag=True, help="The faults there are, and those still to come.")
def fault(directory: Path | None, name: str | None, count: int, match: str, listing: bool) -> None:
    """Ask the lab to misbehave: NAME, COUNT times, where MATCH fits."""
    found = running_lab(_folder(directory))
    if listing:
        faults = ask(found, "/faults")
        width = max(map(len, faults["known"]), default=0)
        for known, description in sorted(faults["known"].items()):
            click.echo(f"{known:<{width}}  {description}")
        for active in faults["active"]:
            click.echo(f"to come: {_fault_text(active)}")
        return
    if name is None:
        raise BadInput("name a fault", next_move="hybridlab lab fault --list")
    answer = ask(found, "/faults", body={"name": name, "count": count, "match": match})
    for done in answer["done"]:
        click.echo(f"{name}: {done}")
    if not answer["done"]:
        click.echo(f"to come: {_fault_text({'name': name, 'remaining': count, 'match': match})}")


def _fault_text(fault: dict[str, Any]) -> str:
    where = f" where {fault['match']!r} fits" if fault["match"] else ""
    return f"{fault['name']}, {fault['remaining']} times{where}"


@lab.command()
@_dir_option
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one row a line.")
@click.option("--mutating", is_flag=True, help="Only requests that were meant to change something.")
@click.option("--part", help="Only this part: oracle, hosts, kube, registry, s3, lab.")
@click.option("--since", metavar="TIME", help="Unix time, ISO time (UTC unless it says), or an age like 90s, 5m, 2h.")
@click.option("--count", is_flag=True, help="Only how many.")
def log(
    directory: Path | None, as_json: bool, mutating: bool, part: str | None, since: str | None, count: bool
) -> None:
    """The requests the lab answered, oldest first. Also when it doesn't run."""
    folder = LabDirectory(_folder(directory))
    keep = request_filter(since=_point_in_time(since) if since else None, part=part, mutating=mutating)
    rows = read_requests(folder.requests_file, keep)
    if count:
        click.echo(sum(1 for _ in rows))
    elif as_json:
        lines = ",\n".join(json.dumps(row) for row in rows)
        click.echo(f"[\n{lines}\n]" if lines else "[]")
    else:
        for row in rows:
            at = datetime.fromtimestamp(row["time"]).strftime("%H:%M:%S.%f")[:-3]
            mark = "*" if row["mutating"] else " "
            click.echo(f"{at} {mark} {row['part']:<8} {row['status']:>3} {row['verb']:<9} {row['target']}")


def _point_in_time(text: str) -> float:
    age = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if age:
        return time.time() - float(age[1]) * UNITS_S[age[2]]
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(
            f"--since {text!r} is not a time", next_move="Unix seconds, 2026-01-31T12:00:00Z, or an age like 5m"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@lab.command()
@_dir_option
@click.argument("ip")
def operator(directory: Path | None, ip: str) -> None:
    """Move the operator (you, as the cloud sees you) to another public address."""
    answer = ask(running_lab(_folder(directory)), "/operator", body={"ip": ip})
    click.echo(f"The operator comes from {answer['operator_ip']} now (before: {answer['before']}).")


@lab.command()
@_dir_option
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
def dial(directory: Path | None, host: str, port: int) -> None:
    """Where a logical address is served on this machine: prints ADDRESS:PORT, or why not (exit status 1)."""
    answer = ask(running_lab(_folder(directory)), "/dial?" + urlencode({"host": host, "port": port}))
    if answer["state"] == "open":
        click.echo(f"127.0.0.1:{answer['port']}")
        return
    why = answer.get("why") or {
        "filtered": "connection timed out: a security rule drops it",
        "refused": "connection refused: nothing listens there",
    }.get(answer["state"])
    click.echo(f"{host}:{port}: {why}", err=True)
    sys.exit(1)


@lab.command()
@_dir_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def endpoints(directory: Path | None, as_json: bool) -> None:
    """How to reach the lab with oci, kubectl, skopeo, ssh, aws and restic."""
    found = running_lab(_folder(directory))
    if as_json:
        click.echo(json.dumps(found.endpoints, indent=1))
        return
    for title, lines in usage(found):
        click.echo(f"# {title}")
        for line in lines:
            click.echo(line)
        click.echo()


def usage(found: Lab) -> list[tuple[str, list[str]]]:
    """Commands to copy, a title and lines for each part that the lab has."""
    ends = found.endpoints
    said: list[tuple[str, list[str]]] = []
    if "oracle" in ends:
        oci = ends["oracle"]
        where = f"--config-file {oci['config_file']} --profile {oci['profile']} --endpoint {oci['endpoint']}"
        command = f"oci {where} compute instance list --all --compartment-id {oci['compartment_id']}"
        said.append(("Oracle, with oci-cli", [command]))
    kubeconfigs = sorted(found.directory.parent.glob("state/*/kubeconfig"))
    if "kube" in ends and kubeconfigs:
        commands = [f"kubectl --kubeconfig {path} get nodes -o wide" for path in kubeconfigs]
        said.append(("Kubernetes", commands))
    if "docker_host" in ends:
        host = ends["docker_host"]
        options = f"-o UserKnownHostsFile={found.directory / 'known_hosts'} -o StrictHostKeyChecking=accept-new"
        local = f"$(hybridlab lab dial --dir {found.directory} {host['address']} 22 | cut -d: -f2)"
        command = f"ssh -i {host['key_file']} {options} -o HostKeyAlias={host['address']} -p {local} "
        said.append(("SSH: a logical address is a port of this machine", [f"{command}{host['user']}@127.0.0.1"]))
    if "registry" in ends:
        address = ends["registry"]["endpoint"].removeprefix("http://")
        said.append(
            (
                "Registries, with skopeo (other hosts: put the host first, as in ghcr.io/NAME)",
                [f"skopeo inspect --raw --tls-verify=false docker://{address}/library/mariadb:11"],
            )
        )
    if "s3" in ends:
        s3 = ends["s3"]
        said.append(
            (
                "S3, with restic or aws",
                [
                    f"export AWS_SHARED_CREDENTIALS_FILE={s3['credentials_file']} AWS_REGION=us-east-1",
                    f"restic -r s3:{s3['endpoint']}/BUCKET/restic snapshots",
                    f"aws --endpoint-url {s3['endpoint']} s3 ls",
                ],
            )
        )
    return said
