"""With this folder on PYTHONPATH, a process and its children use the extension $ALIGNMASK_CORE, not
the installed one."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any


class BuiltCore(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "alignmask._core":
            return None
        return importlib.util.spec_from_file_location(fullname, os.environ["ALIGNMASK_CORE"])


sys.meta_path.insert(0, BuiltCore())
