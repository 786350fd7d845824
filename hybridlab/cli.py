"""The command ``hybridlab``. Everything that takes time to import is imported by the command that needs it."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

import click

from hybridlab import __version__
from hybridlab.errors import BadInput, HybridlabError, Interrupted, LabNotRunning

if TYPE_CHECKING:
    from rich.console import Console

    from hybridlab.cluster import Cluster
    from hybridlab.runner.batch import RunResult

F = TypeVar("F", bound=Callable[..., Any])


class Commands(click.Group):
    """The commands, with those of the lab imported only when asked for, and a hint for a mistyped name."""

    lazy: ClassVar = {
        "lab": ("hybridlab.lab.cli", "lab", "Start, look at, trouble and stop the lab."),
        "params": ("hybridlab.runner.params_command", "params", "List every parameter: what --set takes."),
        "params-schema": ("hybridlab.runner.params_command", "params_schema", "JSON Schema of a params file."),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.lazy])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy:
            module, name, _ = self.lazy[cmd_name]
            found: click.Command = getattr(importlib.import_module(module), name)
            return found
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if near and "did you mean" not in error.format_message().lower():
                raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does it, without importing the lazy ones for their help text."""
        rows = []
        for name in self.list_commands(ctx):
            if name in self.lazy:
                rows.append((name, self.lazy[name][2]))
            else:
                command = super().get_command(ctx, name)
                if command is not None and not command.hidden:
                    rows.append((name, command.get_short_help_str(80)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _params_option(command: F) -> F:
    option: Callable[[F], F] = click.option(
        "--params", "-p", "params_file", metavar="FILE", default="params/lab.yaml", show_default=True,
        help="The params file.",
    )  # fmt: skip
    return option(command)


def _set_option(command: F) -> F:
    option: Callable[[F], F] = click.option(
        "--set",
        "-s",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a parameter for now (hybridlab params lists them); repeatable.",
    )
    return option(command)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hybridlab")
@click.option("-v", "--verbose", count=True, help="Log what is done (-vv: in detail), and show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, verbose: int) -> None:
    """A budget ARM+AMD Kubernetes cluster as notebooks you can rehearse, run, resume and trust."""
    ctx.obj = verbose
    if verbose:
        import logging

        logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")
        logging.getLogger("hybridlab").setLevel(logging.DEBUG if verbose > 1 else logging.INFO)


# -- running -----------------------------------------------------------------------------------------------------------
@cli.command()
@click.argument("runbooks", nargs=-1)
@_params_option
@click.option("--approve", "approvals", multiple=True, metavar="all|HASH", help="Open gates: all, or a plan's hash.")
@_set_option
@click.option("--strict", is_flag=True, help="Exit 1 where a finding counts, e.g. an image that nobody has.")
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Stop after S seconds.")
@click.option("--cell-timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="The same for a cell.")
def run(
    runbooks: tuple[str, ...],
    params_file: str,
    approvals: tuple[str, ...],
    sets: tuple[str, ...],
    strict: bool,
    deadline: float | None,
    cell_timeout: float | None,
) -> NoReturn:
    """Run RUNBOOKS unattended: 010 to 090 without names.

    A runbook is named by its number (020), its name or its stage (provision). 900 and 910 run only when named.
    """
    from hybridlab.home import find_root
    from hybridlab.runner.batch import run_batch
    from hybridlab.runner.preflight import check_approvals, find_runbooks, read_runbook

    root = find_root()
    paths = find_runbooks(root, runbooks)
    check_approvals(approvals)
    _lab_for(root, params_file, sets, [read_runbook(path).stage for path in paths])
    screen = _console(stderr=True)
    result = run_batch(
        paths,
        params_file,
        root=root,
        sets=sets,
        approvals=approvals,
        strict=strict,
        deadline_s=deadline,
        cell_timeout_s=cell_timeout,
        console=screen,
        errors=screen,
    )
    _after_run(result, root, params_file)
    sys.exit(result.exit_code)


def _lab_for(root: Path, params_file: str, sets: tuple[str, ...], stages: Sequence[str] = ()) -> None:
    """Start the lab when the params are for it and it doesn't run; what was asked is checked first."""
    from hybridlab.home import lab_directory
    from hybridlab.runner.preflight import check_request, check_writable

    _, params = check_request(root, params_file, sets, stages)
    if params.site != "lab":
        return
    from hybridlab.lab.process import start_lab

    check_writable(lab_directory(root))
    # a lab that runs already keeps its settings; a new one gets the tenancy the params plan against
    lab = start_lab(lab_directory(root), speed=_lab_speed(), allowance=params.layout.allowance)
    if lab.fresh:
        click.echo(f"the lab is up ({lab.directory})", err=True)


def _lab_speed() -> float:
    text = os.environ.get("HYBRIDLAB_LAB_SPEED", "1")
    try:
        return float(text)
    except ValueError:
        raise BadInput("HYBRIDLAB_LAB_SPEED is not a number", why=text, next_move="e.g. 10") from None


def _after_run(result: RunResult, root: Path, params_file: str) -> None:
    from rich.table import Table

    console = _console()
    table = Table(box=None, pad_edge=False)
    table.add_column("runbook")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    for book in result.record.runbooks:
        table.add_row(book.name, book.state, f"{book.seconds:.1f}" if book.started else "")
    table.add_row("all", result.record.state, f"{result.record.seconds:.1f}", style="bold")
    console.print(table)
    lines = [f"report      {_shown(result.report)}"] if result.report else []
    lines.append(f"notebooks   hybridlab open --params {params_file}")
    kubeconfig = root / "state" / result.record.cluster / "kubeconfig"
    if kubeconfig.exists():
        lines.append(f"kubectl     KUBECONFIG={_shown(kubeconfig)} kubectl get nodes")
    if result.record.site == "lab":
        lines += ["lab         hybridlab lab status, hybridlab lab endpoints", "stop        make down"]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _shown(path: Path) -> str:
    """Relative to here when that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@cli.command()
@click.argument("run", default="last")
@click.option("--single-file", is_flag=True, help="One HTML file with everything in it.")
def report(run: str, single_file: bool) -> None:
    """Make the report of a RUN anew (its id or a part of it; the last one by default)."""
    from hybridlab.home import find_root
    from hybridlab.runner.report import find_run, write_report

    root = find_root()
    click.echo(write_report(find_run(root, run), root=root, single_file=single_file))


@cli.command("open")
@_params_option
@click.option("--port", type=click.IntRange(1, 65535), default=8888, show_default=True, help="Where to listen.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def open_(params_file: str, port: int, no_browser: bool) -> None:
    """Open the runbooks in JupyterLab, on this machine only; starts the lab when the params are for it."""
    from hybridlab.home import find_root, lab_directory

    root = find_root()
    _lab_for(root, params_file, ())
    env = os.environ | {"HYBRIDLAB_HOME": str(root), "HYBRIDLAB_LAB_DIR": str(lab_directory(root))}
    words = [sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    words += [f"--ServerApp.root_dir={root}", "--LabApp.default_url=/lab/tree/runbooks"]
    words += ["--no-browser"] if no_browser else []
    words += ["--allow-root"] if os.geteuid() == 0 else []
    os.execve(sys.executable, words, env)


# -- looking -----------------------------------------------------------------------------------------------------------
@cli.command()
@click.argument("stage")
@_params_option
@_set_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def plan(stage: str, params_file: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Show what STAGE would change now (a stage's word, its runbook, or all), and the hash to approve."""
    from hybridlab.runner.plans import plan_stages, show_plans

    plans = plan_stages(_open(params_file, sets), stage)
    if as_json:
        click.echo(json.dumps(plans if stage == "all" else plans[0], indent=1, ensure_ascii=False))
    else:
        show_plans(plans, _console())


def _open(params_file: str, sets: tuple[str, ...]) -> Cluster:
    from hybridlab.cluster import open_cluster
    from hybridlab.params import parse_override

    cluster = open_cluster(params_file, **dict(parse_override(item) for item in sets))
    if not click.get_current_context().find_root().obj:
        cluster.say = _silently  # progress is for those who asked for it with -v
    return cluster


def _silently(line: str) -> None:
    pass


@cli.command()
@_params_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(params_file: str, as_json: bool) -> None:
    """Show nodes, VMs, what costs money, the last run, evidence and its age, and who holds the lock."""
    from hybridlab.runner.status import look, show

    found = look(_open(params_file, ()))
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show(found, _console())


@cli.command()
@_params_option
def doctor(params_file: str) -> None:
    """Check what this machine and these params need; exit status 1 where something needed is missing."""
    from hybridlab.home import find_root
    from hybridlab.runner.doctor import examine, show

    if not show(examine(find_root(), params_file), _console()):
        sys.exit(1)


@cli.command()
@click.argument("compose", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="Folder for the manifests.")
@click.option("--params", "-p", "params_file", metavar="FILE", help="Nodes and choices; none: the images alone decide.")
@click.option("--env-file", multiple=True, type=click.Path(path_type=Path), help="As Compose's; repeatable.")
@click.option("--profile", multiple=True, help="Only this profile; repeatable. Default: all.")
@click.option("--offline", is_flag=True, help="Ask no registry: every placement stays unknown.")
@click.option("--strict", is_flag=True, help="Exit 1 where something could not be carried over.")
def convert(
    compose: Path,
    output: Path,
    params_file: str | None,
    env_file: tuple[Path, ...],
    profile: tuple[str, ...],
    offline: bool,
    strict: bool,
) -> None:
    """Turn a COMPOSE file (or a folder with one) into Kubernetes manifests with reasoned placements."""
    from hybridlab.runner.composing import convert_project, show_manifests

    done = convert_project(compose, output, params_file, env_files=env_file, profiles=profile, offline=offline)
    show_manifests(done, output, _console())
    if strict and (done.unknown() or done.refused()):
        sys.exit(1)


@cli.command()
@click.argument("compose", type=click.Path(path_type=Path))
@click.option("--params", "-p", "params_file", metavar="FILE", help="On site lab: ask the lab's registry.")
@click.option("--env-file", multiple=True, type=click.Path(path_type=Path), help="As Compose's; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def images(compose: Path, params_file: str | None, env_file: tuple[Path, ...], as_json: bool) -> None:
    """Show which architectures the images of a COMPOSE file exist for, and what changed since earlier looks."""
    from hybridlab.runner.composing import look_up_images, show_images

    found = look_up_images(compose, params_file, env_files=env_file)
    if as_json:
        rows = {r: {"known": i.known, "platforms": [str(p) for p in i.platforms], "digest": i.digest,
                    "drift": i.drift, "problem": i.problem} for r, i in found.items()}  # fmt: skip
        click.echo(json.dumps(rows, indent=1))
    else:
        show_images(found, _console())


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a SHELL: eval "$(hybridlab completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise BadInput(f"no completion for {shell}")
    click.echo(kind(cli, {}, "hybridlab", "_HYBRIDLAB_COMPLETE").source())


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit with its status; an error raised on purpose is one message on stderr."""
    signal.signal(signal.SIGTERM, _terminated)
    verbose = any(a == "--verbose" or (a.startswith("-v") and set(a[1:]) == {"v"}) for a in arguments or sys.argv[1:])
    try:
        cli.main(arguments, prog_name="hybridlab", standalone_mode=False)
        sys.exit(0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2 if isinstance(error, click.UsageError) else error.exit_code)
    except HybridlabError as error:
        if verbose:
            raise
        click.echo(f"hybridlab: {error}{_lab_hint(error)}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("hybridlab: interrupted", err=True)
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # as in Python's own documentation of SIGPIPE
        sys.exit(0)
    except OSError as error:
        if verbose:
            raise
        click.echo(f"hybridlab: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}", err=True)
        sys.exit(BadInput.exit_code)


def _lab_hint(error: HybridlabError) -> str:
    return "" if not isinstance(error, LabNotRunning) or error.next_move else "\n  next: hybridlab lab start"


def _terminated(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
