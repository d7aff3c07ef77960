"""benchmarks/gpu.sh without a GPU: all parts in miniature, fresh results are kept, and packs give back what went in."""

import json
import os
import subprocess
import sys
import time

import pytest

from conftest import ROOT, complains, run
from subprojects import Subproject

SUBPROJECT = benchmarks = Subproject("benchmarks")
gpu, packs, scale = (benchmarks.load(name) for name in ("gpu", "packs", "scale"))
SCRIPT = ROOT / "benchmarks/gpu.sh"


def rehearse(folder, *words):
    """Run a rehearsal of gpu.py as gpu.sh does."""
    words = ["--cpu-rehearsal", "--output", folder, "--packs", folder / "none", *words]
    return run(ROOT / "benchmarks/gpu.py", *words, timeout=600)


def results():
    """The files that a rehearsal must not touch, with their modification times. Runs that git does not track yet may belong to an
    experiment in progress."""
    words = ["git", "ls-files", "results/runs"]
    known = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    files = [*(ROOT / name for name in known), *(ROOT / "results/tables").iterdir()]
    return {path: path.stat().st_mtime_ns for path in files if path.exists()}


def test_the_rehearsal_measures_every_part_once(tmp_path):
    before = results()
    result = rehearse(tmp_path, "--minutes", "60")  # a busy machine needs more than the default of nine
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["parts"].keys() == gpu.TINY.keys()
    assert all(part["status"] == 0 and part["gpu"] == "CPU rehearsal" for part in found["parts"].values()), found["parts"]
    assert any("skipped" in line for line in found["parts"]["tests"]["said"])
    tables = {name for name, part in found["parts"].items() if part.get("table", {}).get("rows")}
    assert tables == gpu.TINY.keys() - {"tests"}
    assert "runs: 0 of this GPU" in result.stdout and "runs asked for are left" in result.stdout
    again = rehearse(tmp_path, "--minutes", "0.5").stdout
    assert [f"{name}: fresh" in again for name in gpu.TINY] == [True] * len(gpu.TINY)
    assert "runs: less than a minute is left" in again
    found["parts"]["loss"]["torch"] = "1.0"  # another version's result
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert "loss: needs 1 minutes; give --minutes 2 or more" in rehearse(tmp_path, "--minutes", "0.5").stdout
    assert results() == before


def test_checks_for_a_gpu_pass_on_a_cpu_where_they_have_a_meaning(monkeypatch):
    """This is a run with --deterministic, which no other test here uses."""
    monkeypatch.setenv("GPU_TESTS_ON", "cpu")
    words = ["-p", "no:cacheprovider", "-k", "deit-off", ROOT / "tests/test_gpu.py"]
    result = run(sys.executable, "-m", "pytest", *words, timeout=600)
    assert result.returncode == 0 and "1 passed" in result.stdout, result.stdout


@pytest.mark.parametrize(
    "script", ["cifar", "ffcv_agreement", "gpu", "loading", "logits", "loss", "report", "scale", "train_step"]
)
def test_a_benchmark_finds_what_it_imports(script):
    if script == "ffcv_agreement":
        pytest.importorskip("ffcv", reason="FFCV is not installed; bash Conv/ffcv/install.sh installs it")
    result = run(ROOT / f"benchmarks/{script}.py", "--help")
    assert result.returncode == 0 and "usage: " in result.stdout, result.stderr


def test_without_a_gpu_it_is_one_line(tmp_path):
    result = subprocess.run(
        ["bash", SCRIPT, "--output", tmp_path], capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    complains(result, "no GPU that PyTorch can use", "--cpu-rehearsal")


def test_packs_that_come_one_by_one_give_back_the_archives(tmp_path, monkeypatch, capsys):
    data, made = tmp_path / "data", tmp_path / "made"
    data.mkdir()
    contents = {"train.zip": os.urandom(2500), "train_map.txt": b"a/0.png\t0\n", "val.zip": os.urandom(700)}
    for name, content in contents.items():
        (data / name).write_bytes(content)
    monkeypatch.setattr(packs, "PIECE", 1000)
    monkeypatch.setattr(packs, "WHEELS", ())
    monkeypatch.setattr(packs, "DATA", tmp_path / "kept")
    monkeypatch.setattr(packs, "SITE", tmp_path / "kept/site")
    packs.pack(made, data)
    parts = sorted(made.iterdir())
    assert len(parts) == 4 and all(sum(file.stat().st_size for file in part.iterdir()) < 2000 for part in parts)
    for number, part in enumerate(parts):
        part.rename(tmp_path / "part1")
        folder = packs.receive(tmp_path)
        assert (folder is not None) == (number == 3)
        (tmp_path / "part1").rename(made / f"done{number}")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents
    with pytest.raises(SystemExit, match="train.zip and val.zip"):
        packs.pack(made, tmp_path)


def test_the_last_lines_are_those_of_the_last_command(tmp_path):
    """A progress bar earlier in the log consists of three-byte characters."""
    (tmp_path / "log.txt").write_text("\u2588" * 5000 + "\nearlier\n")
    status, said = gpu.run(
        ["-c", "import sys; print('one'); sys.exit('two')"], time.time() + 60, dict(os.environ), tmp_path / "log.txt"
    )
    assert (status, sorted(said)) == (1, ["one", "two"])


def test_tables_and_runs_are_filled_in(tmp_path, monkeypatch):
    """The rows of several models become one table."""
    monkeypatch.setattr(gpu, "TOP", tmp_path)
    (tmp_path / "results/tables").mkdir(parents=True)
    table = {"command": "python benchmarks/train_step.py --models a", "environment": "e", "columns": [["x", "d"]]}
    done, failed = ({"gpu": "H200", "torch": "2.11", "status": status} for status in (0, 1))
    parts = {f"train_step {n}": done | {"table": table | {"rows": [[n]]}} for n in (1, 2)}
    parts |= {"tests": failed, "train_step 3": failed | {"table": table | {"rows": [[3]]}}}
    runs = {"results/runs/x/CE-seed0.json": "{}\n", "../evil.json": "{}"}
    (tmp_path / "results.json").write_text(json.dumps({"parts": parts, "runs": runs}))
    gpu.fill(tmp_path)
    (file,) = (tmp_path / "results/tables").iterdir()
    filled = json.loads(file.read_text())
    assert file.name == "gpu_train_step.json" and filled["rows"] == [[1], [2]] and "--models" not in filled["command"]
    parts["tests"]["gpu"] = gpu.REHEARSAL
    (tmp_path / "results.json").write_text(json.dumps({"parts": parts, "runs": {}}))
    with pytest.raises(SystemExit, match="rehearsal"):
        gpu.fill(tmp_path)
    for key, other in (("gpu", "A100"), ("torch", "2.12")):
        parts["tests"]["gpu"], parts["train_step 2"] = "H200", parts["train_step 1"] | {key: other}
        (tmp_path / "results.json").write_text(json.dumps({"parts": parts, "runs": {}}))
        with pytest.raises(SystemExit, match=f"measured on H200 with torch 2.11 and on .*{other}"):
            gpu.fill(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(SystemExit, match="not a whole JSON file"):
        gpu.fill(tmp_path)
    assert (tmp_path / "results/runs/x/CE-seed0.json").exists() and not (tmp_path.parent / "evil.json").exists()


def test_the_page_on_scale_is_that_of_the_tables():
    assert scale.PAGE.read_text() == scale.page(), "python benchmarks/scale.py writes it anew"
