"""docs/params.md and params/params.schema.json, made from the schema: ``python tests/unit/params_page.py`` writes both.

test_docs.py and test_params_files.py compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from hybridlab.params import FieldInfo, Params, fields_of
from hybridlab.runner.params_command import schema_text
from hybridlab.sections import Node

PAGE = Path(__file__).parents[2] / "docs" / "params.md"
SCHEMA = Path(__file__).parents[2] / "params" / "params.schema.json"
HEAD = """\
# Params: every choice, in one file

A cluster is described by one YAML file in `params/`. It is the only source of choices: the form in JupyterLab, the
parameters cell of a runbook, `--set` and this page all come from the same schema. This page is generated from it; a
test fails when it is out of date (`python tests/unit/params_page.py` writes it anew).

The four files that come with hybridlab:

| file | what for |
|---|---|
| `params/lab.yaml` | the article's layout, rehearsed in the lab against the allowance of its time |
| `params/free-now.yaml` | what fits Oracle's free allowance since June 2026, in the lab |
| `params/oracle.yaml` | template for a real Oracle account |
| `params/byo.yaml` | template for hosts you already have |

Rules:

- An unknown key, a wrong type or a value out of range is refused before anything is touched (exit status 2), with the
  nearest valid name.
- A relative path starts from the params file's folder.
- Only `cluster`, `site` and `nodes` (with `name` and, but for site `byo`, `arch` for each) are required.
- No secret belongs in this file. It holds where a secret lies: a file, or the name of an environment variable.
- Exactly one node has `role: server`. Names of nodes are unique. On site `byo` every node needs an `address`.
- The VCN must not overlap 10.42.0.0/16 or 10.43.0.0/16: K3s uses them for pods and Services.

Overriding, without touching the file:

```
hybridlab run 050 --set storage.engine=local-path --set storage.replicas=1
hybridlab plan provision --set nodes.arm-2.memory_gb=12
```

A value is read as YAML. A list item that has a name is addressed by it. In a runbook the parameters cell holds the
flat names of its own section; `None` leaves the file's value. In JupyterLab the form changes this session only;
*Save* writes the file back with its comments and shows the difference.

Editors with a YAML language server (VS Code's YAML extension, JupyterLab with jupyterlab-lsp, Neovim, Emacs, Helix)
complete and check these files: the first line of each names `params/params.schema.json`, which lies beside them. Keep
that line in a copy. Elsewhere `hybridlab params-schema -o FILE` writes the schema, ranges included.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, "\n## The file itself\n\n", *_table(f for f in fields_of(Params) if "." not in f.path)]
    parts += ["\n## `nodes`: one entry a node\n\n", *_table(fields_of(Node, "nodes[]."))]
    for name, info in Params.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            parts += [f"\n## `{name}`\n\n{(kind.__doc__ or '').strip()}\n\n", *_table(fields_of(kind, f"{name}."))]
    return "".join(parts)


def _table(fields: Iterator[FieldInfo]) -> Iterator[str]:
    yield "| parameter | type | default | meaning |\n|---|---|---|---|\n"
    for field in fields:
        kind = " \\| ".join(f"`{c}`" for c in field.choices) or _words(field.type)
        yield f"| `{field.path}` | {kind} | {_default(field)} | {field.description} |\n"


def _words(kind: str) -> str:
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "list": "list",
             "dict": "mapping"}  # fmt: skip
    base, empty, _ = kind.partition(" or empty")
    return names.get(base.partition("[")[0], base) + empty


def _default(field: FieldInfo) -> str:
    if field.required:
        return "**required**" if not field.path.startswith("migrate.docker_host.") else "required with `docker_host`"
    return "empty" if field.default in (None, {}, []) else f"`{json.dumps(field.default)}`".replace('"', "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")
