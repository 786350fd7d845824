"""``convert`` and ``images`` on the command line: the compose package with registries and nodes around it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybridlab.compose import Manifests, Options, Preference, Project, convert, read_project, write
from hybridlab.errors import BadInput, HybridlabError, Unreachable
from hybridlab.home import find_root, lab_directory
from hybridlab.models import ImageInfo, NodeCapacity
from hybridlab.params import Params
from hybridlab.runner.preflight import check_params, find_params
from hybridlab.sites import open_site

log = logging.getLogger(__name__)


def convert_project(
    compose: Path,
    output: Path,
    params_file: str | None,
    *,
    env_files: Sequence[Path] = (),
    profiles: Sequence[str] = (),
    offline: bool = False,
) -> Manifests:
    """Read, look up, place and write. Raises BadInput for a file, folder or params that can't be used."""
    params, path = _params(params_file)
    env_files = list(env_files) or _own_env_file(compose, params, path)
    project = read_project([compose], env_files=env_files, profiles=list(profiles))
    images = {} if offline else _images(project, params, path)
    options = _options(params) if params else Options()
    nodes = _nodes(params) if params else ()
    manifests = convert(project, images, nodes, options)
    write(manifests, output)
    return manifests


def look_up_images(
    compose: Path, params_file: str | None, *, env_files: Sequence[Path] = ()
) -> Mapping[str, ImageInfo]:
    """What registries say of a project's images. Raises Unreachable when none of them could be asked."""
    params, path = _params(params_file)
    project = read_project([compose], env_files=list(env_files) or _own_env_file(compose, params, path))
    return _lookup(project, params, path)


def _params(params_file: str | None) -> tuple[Params | None, Path]:
    if params_file is None:
        return None, Path.cwd()
    path = find_params(_root(), params_file)
    return check_params(path, ()), path


def _own_env_file(compose: Path, params: Params | None, path: Path) -> list[Path]:
    """The params' env file when this is the params' compose file (or the folder it lies in)."""
    if params is None or not params.migrate.compose or not params.migrate.env_file:
        return []
    named = (path.parent / params.migrate.compose).resolve()
    mine = compose.resolve() in (named, named.parent)
    return [path.parent / params.migrate.env_file] if mine else []


def _root() -> Path:
    try:
        return find_root()
    except BadInput:
        return Path.cwd()


def _images(project: Project, params: Params | None, path: Path) -> Mapping[str, ImageInfo]:
    try:
        return _lookup(project, params, path)
    except Unreachable as error:
        log.warning("no registry answers, so placements stay unknown: %s", error)
        return {}


def _lookup(project: Project, params: Params | None, path: Path) -> Mapping[str, ImageInfo]:
    from hybridlab.drivers.registry import RegistryDriver

    def real(host: str) -> str | None:
        return None

    endpoint = real
    if params is not None and params.site == "lab":
        endpoint = open_site(params, path.parent, lab_directory(_root())).registry_endpoint
    cache = Path.home() / ".cache" / "hybridlab" / "images"
    if params is not None:
        cache = _root() / "state" / "image-cache"
    references = sorted({s["image"] for s in project.services.values() if s.get("image")})
    return RegistryDriver(cache=cache, endpoint_for=endpoint).lookup(references) if references else {}


def _options(params: Params) -> Options:
    choice = params.migrate.prefer
    other = "amd64" if choice == "arm64" else "arm64"
    return Options(
        namespace=params.migrate.namespace,
        storage_class=params.storage.storage_class,
        claim_size=f"{params.migrate.claim_gb}Gi",
        preference=Preference({choice: 100, other: 1}, "migrate.prefer"),
        publish="load-balancer" if params.expose.method == "traefik" else "cluster-ip",
    )


def _nodes(params: Params) -> tuple[NodeCapacity, ...]:
    """The nodes as they are, or as the params wish them while no cluster answers."""
    from hybridlab.stages.migrate.project import capacities

    kubeconfig = _root() / "state" / params.cluster / "kubeconfig"
    if kubeconfig.exists():
        from hybridlab.drivers.kube import KubeDriver

        try:
            return capacities(KubeDriver(kubeconfig), params)
        except HybridlabError as error:
            log.info("the cluster does not answer, so the params' nodes are taken: %s", error)
    return capacities(None, params)


def show_manifests(manifests: Manifests, output: Path, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("service", "runs on", "why"):
        table.add_column(title, overflow="fold")
    for service, placement in manifests.placements.items():
        where = ", ".join(placement.architectures) or placement.kind
        style = {"none": "red", "unknown": "yellow"}.get(placement.kind, "")
        table.add_row(Text(service), Text(where, style=style), Text(placement.remedy or placement.reason, style="dim"))
    console.print(table)
    refused = manifests.refused()
    for finding in refused:
        console.print(Text(f"not carried over: {finding.service or 'project'} {finding.key}: {finding.note}", "yellow"))
    console.print(
        f"{len(manifests.objects)} objects in {output}; {len(refused)} keys not carried over; see its report",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def show_images(found: Mapping[str, ImageInfo], console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("image", "platforms", ""):
        table.add_column(title, overflow="fold")
    for reference, info in sorted(found.items()):
        platforms = ", ".join(str(p) for p in info.platforms) if info.known else "unknown"
        drift, problem = info.drift, info.problem
        note = Text("; ".join(text for text in (drift, problem) if text), "yellow" if drift else "dim")
        table.add_row(Text(reference), Text(platforms, "" if info.known else "yellow"), note)
    console.print(table)
