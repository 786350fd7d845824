"""Image references: their parts, an architecture written into the name, and what to build when nothing fits."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from hybridlab import references
from hybridlab.compose.env import secret_like
from hybridlab.errors import BadInput
from hybridlab.models import Json
from hybridlab.references import Reference

# How architectures are spelled in tags and names → what kubernetes.io/arch says.
SPELLINGS = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "amd64": "amd64",
    "x64": "amd64",
    "arm64v8": "arm64",
    "arm64": "arm64",
    "aarch64": "arm64",
    "arm32v7": "arm",
    "arm32v6": "arm",
    "arm32v5": "arm",
    "armv7": "arm",
    "armv6": "arm",
    "armhf": "arm",
    "arm": "arm",
    "i386": "386",
    "386": "386",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
_WORDS = "|".join(re.escape(word) for word in sorted(SPELLINGS, key=len, reverse=True))
_IN_TAG = re.compile(rf"(?:^|(?<=[-_.]))({_WORDS})(?=$|[-_.])")
_IN_NAME = re.compile(rf"(?:^|(?<=[-_.]))({_WORDS})$")


def parse_reference(text: str) -> Reference:
    """As ``references.parse_reference``, for what a compose file says. Raises BadInput."""
    try:
        return references.parse_reference(text)
    except ValueError as error:
        raise BadInput("this is not an image name", where=text, why=str(error)) from error


@dataclass(frozen=True)
class NamedArchitecture:
    """An architecture that a reference itself spells out, and how to get rid of it."""

    architecture: str
    spelled: str
    joined: str  # the same reference without it
    remedy: str


def architecture_in_name(text: str) -> NamedArchitecture | None:
    """Whether the reference itself names an architecture: tag ``x86_64-v17``, ``arm64v8/nginx``, ``foo-amd64``."""
    try:
        reference = parse_reference(text)
    except BadInput:
        return None
    match = _IN_TAG.search(reference.tag)
    if match:
        return _from_tag(reference, match)
    parts = reference.repository.split("/")
    if len(parts) == 2 and parts[0] in SPELLINGS and reference.registry == "docker.io":
        joined = Reference("docker.io", f"library/{parts[1]}", reference.tag).familiar
        remedy = f"use {joined}: the official image covers all architectures under one name"
        return NamedArchitecture(SPELLINGS[parts[0]], parts[0], joined, remedy)
    match = _IN_NAME.search(parts[-1])
    if match and match.start() > 0:
        plain = "/".join([*parts[:-1], parts[-1][: match.start()].rstrip("-_.")])
        siblings = [
            f"{reference.registry}/{plain}{parts[-1][match.start() - 1]}{s}:{reference.tag}"
            for s in _siblings(match[1])
        ]
        joined = Reference(reference.registry, plain, reference.tag).familiar
        return NamedArchitecture(SPELLINGS[match[1]], match[1], joined, _join_command(joined, siblings))
    return None


def _from_tag(reference: Reference, match: re.Match[str]) -> NamedArchitecture:
    before, after = reference.tag[: match.start()], reference.tag[match.end() :]
    tag = (before.rstrip("-_.") + after if before else after.lstrip("-_.")) or "latest"
    joined = Reference(reference.registry, reference.repository, tag)
    name = f"{reference.registry}/{reference.repository}"
    siblings = [f"{name}:{before}{spelling}{after}" for spelling in _siblings(match[1])]
    remedy = _join_command(joined.familiar, siblings)
    if reference.repository.endswith("gitlab-runner-helper"):
        remedy = f'in config.toml: helper_image = "{name}:${{CI_RUNNER_ARCH}}-v${{CI_RUNNER_VERSION}}"; or {remedy}'
    return NamedArchitecture(SPELLINGS[match[1]], match[1], joined.familiar, remedy)


def _siblings(spelled: str) -> tuple[str, str]:
    """The two tags to join, in the spelling family of the one that was found."""
    if spelled in ("x86_64", "x86-64"):
        return spelled, "arm64"
    if spelled == "aarch64":
        return "x86_64", "aarch64"
    if SPELLINGS[spelled] == "arm64":
        return "amd64", spelled
    return "amd64", "arm64"


def _join_command(joined: str, siblings: Sequence[str]) -> str:
    private = "REGISTRY/" + joined.rsplit("/", 1)[-1]
    return f"docker buildx imagetools create -t {private} {' '.join(siblings)}"


def buildx_command(image: str, architectures: Sequence[str], build: Json = None) -> str:
    """The command that makes an image for these architectures; ``build`` is the service's build section, if any."""
    platforms = ",".join(f"linux/{architecture}" for architecture in architectures or ("arm64", "amd64"))
    words = ["docker", "buildx", "build", "--platform", platforms, "--tag", image]
    build = build or {}
    context = str(build.get("context") or "")
    dockerfile = str(build.get("dockerfile") or "")
    if dockerfile and dockerfile != "Dockerfile":
        # --file is relative to where the command runs, the compose key to the context.
        remote = "://" in context or context.startswith("git@")
        words += [
            "--file",
            dockerfile if remote or dockerfile.startswith("/") else f"{context.rstrip('/') or '.'}/{dockerfile}",
        ]
    if build.get("target"):
        words += ["--target", str(build["target"])]
    for key, value in (build.get("args") or {}).items():
        # A secret's value is for the shell's environment, not for a command that ends up in a report.
        bare = value is None or secret_like(str(key), str(value))
        words += ["--build-arg", key if bare else f"{key}={value}"]
    for key, value in (build.get("additional_contexts") or {}).items():
        words += ["--build-context", f"{key}={value}"]
    text = shlex.join([*words, "--push"])
    if context:
        return f"{text} {shlex.quote(context)}"
    return f"{text} FOLDER_WITH_ITS_DOCKERFILE"
