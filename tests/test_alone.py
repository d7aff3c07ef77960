"""One folder copied out of the repository works by itself; and the environment that the scripts choose or create."""

import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

# Imports every module of the folder that it runs in, as its own scripts do. FFCV and submitit need not be installed.
IMPORT_ALL = """
import importlib, pathlib, sys
sys.path.insert(0, "")
files = sorted(pathlib.Path().rglob("*.py"))
for file in files:
    name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in ("ffcv", "submitit"):
            raise
    except Exception as error:
        if "FFCV does not import here" not in str(error):
            raise
print(len(files))
"""


@pytest.mark.parametrize(
    "folder", ["Deit", "Conv/common_resnet", "Conv/ffcv", "viz", "Tasks/segmentation", "Tasks/text", "Tasks/tabular"]
)
def test_each_subproject_works_without_the_repository(folder, tmp_path):
    shutil.copytree(ROOT / folder, tmp_path / "copy", ignore=shutil.ignore_patterns("output", "__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-c", IMPORT_ALL]
    result = subprocess.run(words, cwd=tmp_path / "copy", env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and int(result.stdout.split()[-1]) > 10, result.stderr


def test_scripts_take_the_active_environment_if_it_has_what_they_need(tmp_path):
    """Otherwise they create .venv and say what was missing. Without a package index the installation fails with one line."""
    shutil.copy(ROOT / "environment.sh", tmp_path)
    (tmp_path / "requirements-tested.txt").touch()
    active = tmp_path / "active"
    subprocess.run([sys.executable, "-m", "venv", active], check=True)
    environment = os.environ | {"VIRTUAL_ENV": str(active), "PATH": f"{active}/bin:{os.environ['PATH']}", "PIP_NO_INDEX": "1"}

    def chosen(requirement):
        (tmp_path / "needs.txt").write_text(requirement)
        words = ["bash", "-c", '. ./environment.sh "$PWD/needs.txt"; echo "$PYTHON"']
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    result = chosen("pip>=20")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{active}/bin/python3\n", "")
    assert not (tmp_path / ".venv").exists()
    result = chosen("a-package-that-nobody-has")
    assert result.returncode == 1 and result.stdout == "" and (tmp_path / ".venv/bin/python").exists()
    assert f"the active environment lacks a-package-that-nobody-has; using {tmp_path}/.venv instead" in result.stderr
    assert "error: the installation failed" in result.stderr
