"""Showing things, applying with progress, and the gate's button: the same calls in JupyterLab and unattended."""

from __future__ import annotations

from typing import Any

from hybridlab.cluster import StageRun, in_jupyterlab
from hybridlab.ledger import user_name
from hybridlab.stages.base import StepOutcome
from hybridlab.ui.tables import NOTE, WARN, Line, Mark, Table
from hybridlab.ui.views import OUTCOME_COLUMNS, outcome_row, view, view_gate


def _in_kernel() -> bool:
    from IPython import get_ipython

    return get_ipython() is not None


def show(*things: Any) -> None:
    """Show results: tables in a notebook, text elsewhere."""
    if not _in_kernel():
        import sys

        for thing in things:
            for part in view(thing):
                sys.stdout.write(repr(part) + "\n")
        return
    from IPython.display import display

    for thing in things:
        for part in view(thing):
            display(part)  # type: ignore[no-untyped-call]


def gate(stage: StageRun) -> None:
    """Show whether the plan may be applied. In JupyterLab a closed gate shows a button that opens it.

    Elsewhere a closed gate raises GateClosed, so that nothing blocks and nothing is applied unasked.
    """
    state = stage.gate()
    if state.open or not in_jupyterlab():
        show(state)
        return
    import ipywidgets as widgets
    from IPython.display import display

    button = widgets.Button(
        description=f"Approve plan {state.hash}",
        button_style="warning",
        icon="check",
        layout=widgets.Layout(width="auto"),
    )
    said = widgets.HTML(view_gate(state)._repr_html_())

    def approve(_: Any) -> None:
        said.value = view_gate(stage.approve(f"{user_name()} in JupyterLab"))._repr_html_()
        button.disabled = True

    button.on_click(approve)
    display(widgets.VBox([said, button]))  # type: ignore[no-untyped-call]


def progress(stage: StageRun) -> tuple[StepOutcome, ...]:
    """Apply the approved plan with a table that fills as steps end; returns the outcomes."""
    if not _in_kernel():
        return stage.apply()
    from IPython.display import display

    outcomes: list[StepOutcome] = []
    handle = display(Line(Mark(NOTE, "applying"), stage.name), display_id=True)  # type: ignore[no-untyped-call]
    before = stage.cluster.say

    def draw(line: str) -> None:
        rows: list[tuple[Any, ...]] = [outcome_row(o) for o in outcomes]
        if line:
            rows.append((Mark(WARN, "running"), line, "", ""))
        handle.update(Table("Applied", OUTCOME_COLUMNS, rows))

    def ended(outcome: StepOutcome) -> None:
        outcomes.append(outcome)
        draw("")

    stage.cluster.say = draw
    try:
        done = stage.apply(on_step=ended)
    finally:
        stage.cluster.say = before
    if not done:
        handle.update(Line(Mark("good", "no change"), "nothing had to be applied"))
    return done
