"""The subprojects as the tests import them: each by itself, because several have modules with the same names.

deit = Subproject("Deit")
create_model = deit.load("models").create_model

A test module that sets SUBPROJECT = deit runs its tests with that folder on the path (see the fixture in conftest.py), so that
imports within functions and in data-loading processes find the same modules as for a user.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


class Subproject:
    """The Python modules of one folder of the repository, named from its root: "Deit", "Conv/ffcv", "viz"."""

    def __init__(self, folder: str):
        self.folder = ROOT / folder
        self.modules: dict[str, ModuleType] = {}

    def load(self, name: str) -> ModuleType:
        """Import a module of the folder by the name that its neighbours use, such as "models" or "images.archives"."""
        with self.active():
            return importlib.import_module(name)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Temporarily put the folder first on the path, and its modules in place of all others with the same names."""
        own = {path.stem for path in self.folder.glob("*.py")} | {path.parent.name for path in self.folder.glob("*/*.py")}
        hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] in own and name not in self.modules}
        hidden |= {name: sys.modules[name] for name in self.modules if name in sys.modules}
        for name in hidden:
            del sys.modules[name]
        sys.modules.update(self.modules)
        sys.path.insert(0, str(self.folder))
        try:
            yield
        finally:
            sys.path.remove(str(self.folder))
            for name in [name for name in sys.modules if name.split(".")[0] in own]:
                self.modules[name] = sys.modules.pop(name)
            sys.modules.update(hidden)
