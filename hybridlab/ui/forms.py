"""A form drawn from the schema: it starts from the params, changes this session only, and Save writes the YAML back."""

from __future__ import annotations

import html
from typing import Any

from hybridlab.cluster import Cluster
from hybridlab.errors import ParamsError
from hybridlab.params import FieldInfo, Params, fields_of, save_params

_WIDE = {"description_width": "180px"}


def form(cluster: Cluster, section: str) -> Any:
    """The form of one section of the params, as an ipywidgets box.

    Apply takes the values for this session; Save writes them into the params file and shows the difference. Values
    that the schema refuses are shown with the reason and change nothing.
    """
    import ipywidgets as widgets

    infos = [f for f in fields_of(Params) if f.path.startswith(section + ".") and f.path.count(".") == 1]
    current = cluster.params.plain(section).get(section, {})
    inputs = {f.path: _widget(f, current.get(f.path.split(".")[-1])) for f in infos}
    said = widgets.HTML()
    apply_button = widgets.Button(description="Use for this session", button_style="primary")
    save_button = widgets.Button(description=f"Save to {cluster.params_file.name}")

    def changes() -> dict[str, Any]:
        found = {}
        for info in infos:
            value = _value(info, inputs[info.path].value)
            if value != current.get(info.path.split(".")[-1]):
                found[info.path] = value
        return found

    def use(_: Any) -> None:
        try:
            changed = changes()
            cluster.override(**changed)
        except (ParamsError, ValueError) as error:
            said.value = f"<p style='color:#c62828'>✗ {html.escape(str(error))}</p>"
            return
        said.value = f"<p>✓ {len(changed)} changed for this session: {html.escape(', '.join(changed) or 'nothing')}</p>"

    def save(_: Any) -> None:
        try:
            difference = save_params(cluster.params_file, changes())
        except (ParamsError, ValueError, OSError) as error:
            said.value = f"<p style='color:#c62828'>✗ {html.escape(str(error))}</p>"
            return
        said.value = f"<pre>{html.escape(difference) or 'nothing changed'}</pre>"

    apply_button.on_click(use)
    save_button.on_click(save)
    rows = [widgets.HBox([inputs[f.path], widgets.HTML(f"<small>{html.escape(f.description)}</small>")]) for f in infos]
    return widgets.VBox([*rows, widgets.HBox([apply_button, save_button]), said])


def _widget(info: FieldInfo, value: Any) -> Any:
    import ipywidgets as widgets

    name = info.path.split(".")[-1]
    layout = widgets.Layout(width="440px")
    if info.choices:
        return widgets.Dropdown(
            options=list(info.choices), value=str(value), description=name, style=_WIDE, layout=layout
        )
    if info.type == "bool":
        return widgets.Checkbox(value=bool(value), description=name, style=_WIDE, layout=layout, indent=True)
    if info.type == "int":
        return widgets.IntText(value=int(value), description=name, style=_WIDE, layout=layout)
    if info.type == "float":
        return widgets.FloatText(value=float(value), description=name, style=_WIDE, layout=layout)
    shown = "" if value is None else str(value)
    return widgets.Text(value=shown, description=name, style=_WIDE, layout=layout, placeholder="empty")


def _value(info: FieldInfo, entered: Any) -> Any:
    """What was entered, as the schema's type: empty text is None, lists and mappings are read as YAML."""
    if not isinstance(entered, str) or info.choices:
        return entered
    if entered.strip() == "":
        return None if "or empty" in info.type else info.default
    if info.type.startswith(("list", "dict")):
        from ruamel.yaml import YAML

        return YAML(typ="safe").load(entered)
    return entered
