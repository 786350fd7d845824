"""Everything that can be wrong with what was asked, found before anything starts."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hybridlab.cluster import ON_REQUEST, STAGES, load_stage
from hybridlab.errors import BadInput
from hybridlab.ledger import locked
from hybridlab.params import Params, parse_override, read_params
from hybridlab.runner.outcome import RunbookResult
from hybridlab.stages.layout import allowance_named

PARAMETER = "params_file"
LIFECYCLE = tuple(book for stage, book in STAGES.items() if stage not in ON_REQUEST)
"""What a run without names runs: 010 to 090, without 075."""


@dataclass(frozen=True)
class Runbook:
    """A notebook that can be executed: it was read, its parameters cell has ``params_file``, its kernel exists."""

    path: Path
    name: str
    stage: str
    title: str
    kernel: str
    code_cells: int

    def waiting(self) -> RunbookResult:
        return RunbookResult(
            self.name, self.title, f"{self.name}.ipynb", self.stage, cells={"not run": self.code_cells}
        )


def find_runbooks(root: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Runbooks by number (``020``), name, stage word or path; 010 to 090 without names. Order and repeats as given.

    Raises BadInput with the nearest valid name.
    """
    folder = root / "runbooks"
    known = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    if not names:
        names = [name for name in LIFECYCLE if name in known]
        if not names:
            raise BadInput("there are no runbooks", where=str(folder), next_move="go to your clone")
    words = {**{name.split("-", 1)[0]: name for name in known}, **STAGES}
    found = []
    for name in names:
        full = name if name in known else words.get(name, name)
        if full in known:
            found.append(known[full])
        elif name.endswith(".ipynb") and Path(name).exists():
            found.append(Path(name).resolve())
        else:
            choices = [*known, *words]
            near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
            hint = f"did you mean {words.get(near[0], near[0])}?" if near else f"one of: {', '.join(known) or 'none'}"
            raise BadInput(f"no runbook is called {name!r}", where=str(folder), next_move=hint)
    return tuple(found)


def read_runbook(path: Path) -> Runbook:
    """Read a notebook and check that a run can execute it. Raises BadInput saying what is wrong with it."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise BadInput("there is no such runbook", where=str(path)) from None
    except OSError as error:
        raise BadInput("the runbook can't be read", where=str(path), why=error.strerror or str(error)) from error
    except (ValueError, AttributeError, KeyError, nbformat.ValidationError) as error:
        why = str(error).splitlines()[0][:200] if str(error) else ""
        raise BadInput("this is not a notebook", where=str(path), why=why) from error
    sources = [c.source for c in notebook.cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])]
    if not sources:
        raise BadInput(
            "the runbook has no cell tagged `parameters`",
            where=str(path),
            next_move=f"tag the cell that sets {PARAMETER} in JupyterLab's property inspector",
        )
    names = _assigned(sources[0], path)
    if PARAMETER not in names:
        near = difflib.get_close_matches(PARAMETER, names, n=1)
        hint = f"rename {near[0]} to {PARAMETER}" if near else f"add {PARAMETER}: str = 'params/lab.yaml'"
        raise BadInput(f"the parameters cell does not set {PARAMETER}", where=str(path), next_move=hint)
    kernel = notebook.metadata.get("kernelspec", {}).get("name", "python3")
    _check_kernel(kernel, path)
    stage = next((s for s, book in STAGES.items() if book == path.stem), path.stem)
    headings = re.findall(r"^#\s+(.+)$", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M)
    return Runbook(
        path=path,
        name=path.stem,
        stage=stage,
        title=headings[0].strip() if headings else path.stem.replace("-", " "),
        kernel=kernel,
        code_cells=sum(c.cell_type == "code" for c in notebook.cells),
    )


def _assigned(source: str, path: Path) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise BadInput(
            "the parameters cell is not Python", where=f"{path}, line {error.lineno} of the cell", why=error.msg
        ) from error
    names = []
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def _check_kernel(name: str, path: Path) -> None:
    from jupyter_client.kernelspec import KernelSpecManager

    known = KernelSpecManager().find_kernel_specs()
    if name not in known:
        raise BadInput(
            f"the runbook wants the kernel {name!r}, which is not installed",
            where=str(path),
            next_move=f"one of: {', '.join(sorted(known)) or 'none; pip install ipykernel'}",
        )


def find_params(root: Path, given: str | Path) -> Path:
    """The params file as given, else relative to the root."""
    path = Path(given)
    return path.absolute() if path.is_absolute() or path.exists() else root / path


def check_params(path: Path, sets: Sequence[str]) -> Params:
    """The params with their overrides. Raises ParamsError with the nearest valid name."""
    return read_params(path, dict(parse_override(item) for item in sets))


def check_request(
    root: Path, params_file: str | Path, sets: Sequence[str], stages: Sequence[str]
) -> tuple[Path, Params]:
    """Everything but the runbooks, before anything starts: the params, what they name, folders, the cluster's lock.

    Returns the params file's path and the params. Raises BadInput, ParamsError, Locked.
    """
    path = find_params(root, params_file)
    params = check_params(path, sets)
    if params.site != "byo":
        allowance_named(params.layout.allowance)
    state = root / "state" / params.cluster
    check_files(params, path.parent, state, stages)
    for folder in (state, root / "runs"):
        check_writable(folder)
    if stages and (state / "lock").exists():
        with locked(state / "lock", run="a check"):
            pass
    return path, params


def reads_compose(stage: str) -> bool:
    """Whether a stage, or one whose plan it builds on, reads the compose file."""
    return stage == "migrate" or (stage in STAGES and any(reads_compose(name) for name in load_stage(stage).NEEDS))


def check_files(params: Params, base: Path, state: Path, stages: Sequence[str]) -> None:
    """Files that the params name and these stages read, and the kubeconfig of an earlier run. Raises BadInput."""
    compose = any(reads_compose(stage) for stage in stages)
    for key, name in (("compose", params.migrate.compose), ("env_file", params.migrate.env_file)):
        if not compose:
            break
        path = base / Path(name).expanduser() if name else None
        if path is not None and not path.exists():
            folder = path.parent if path.parent.is_dir() else base
            near = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
            hint = f"did you mean {near[0]}?" if near else "the path is relative to the params file"
            raise BadInput(f"migrate.{key}: there is no such file", where=str(path), next_move=hint)
    kubeconfig = state / "kubeconfig"
    if kubeconfig.exists() and not _is_kubeconfig(kubeconfig):
        raise BadInput(
            "this is not a kubeconfig",
            where=str(kubeconfig),
            next_move="delete it: 030-bootstrap-k3s fetches it from the server again",
        )


def _is_kubeconfig(path: Path) -> bool:
    try:
        data = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError):
        return False
    return isinstance(data, dict) and all(data.get(key) for key in ("clusters", "users", "contexts"))


def check_writable(folder: Path) -> None:
    """Raises BadInput where a folder can't be made or written to; leaves nothing behind."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(
            "the folder can't be written to",
            where=str(folder),
            why=error.strerror or str(error),
            next_move="make it yours (chown), or set HYBRIDLAB_HOME to a folder you may write to",
        ) from error
    finally:
        for made in missing:
            try:
                made.rmdir()
            except OSError:
                break


def check_approvals(approvals: Sequence[str]) -> None:
    """Raises BadInput for what is neither ``all`` nor a plan's hash."""
    for given in approvals:
        if given != "all" and not re.fullmatch(r"[0-9a-f]{12}", given):
            raise BadInput(
                f"--approve {given!r} is neither all nor a plan's hash",
                next_move="hybridlab plan STAGE shows the hash, 12 hex digits",
            )
