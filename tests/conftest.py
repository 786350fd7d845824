"""For every test: the caller's own hybridlab settings don't reach in (HYBRIDLAB_TEST_… and HYBRIDLAB_OCI_CLI do)."""

from __future__ import annotations

import os

for _name in list(os.environ):
    if _name.startswith("HYBRIDLAB_") and not _name.startswith(("HYBRIDLAB_TEST_", "HYBRIDLAB_OCI_CLI")):
        del os.environ[_name]
