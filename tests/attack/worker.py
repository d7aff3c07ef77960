"""A long-lived process that damages one subproject's inputs and reads them: `python worker.py Deit`, with requests on stdin.

A request is a JSON list: a reader's name, the seed of the damage, and whether to run the real command too. The two lines of the
answer are a description of the damage and a JSON object with the outcome: same, refused (one line, as a user would see it), told
(another result, with a warning), missed (another result, from undetectable damage), silent, or traceback. The caller watches for
hangs and for the death of this process.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WARNING = ("warning", "left out", "omitted", "cannot be checked", "has no effect", "is taken for")
MEMORY = 24 << 30  # bytes of address space, so that an input that claims more fails in this process only


def main(subproject: str) -> None:
    sys.path[:0] = [str(ROOT / subproject), str(ROOT / "tests")]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # everything that prints, including compiled code and child processes, prints to stderr
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    from attack import others, readers, trainers

    name = "conv" if subproject == "Conv/common_resnet" else subproject.rpartition("/")[2].lower()
    of_name = {reader.name: reader for reader in getattr(trainers if hasattr(trainers, name) else others, name)()}
    made, good, usual = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        print(json.dumps(list(of_name)), file=answers, flush=True)
        for line in sys.stdin:
            name, seed, really = json.loads(line)
            reader = of_name[name]
            if reader.make not in made:
                made[reader.make] = folder / f"made {len(made)}"
                reader.make(folder / "work")  # also the path at which it is read: runs remember the paths of their data
                (folder / "work").rename(made[reader.make])
            pristine = made[reader.make]
            if name not in good:
                (printed, good[name]), (_, again) = (read(reader, pristine, folder / "work") for _ in "ab")
                usual[name] = set(printed.splitlines())
                assert good[name] == again and again[0] == "result", (name, good[name], again)
            readers.LAST.clear()
            words = readers.LAST if really else []
            answer = attempt(reader, seed, pristine, folder / "work", good[name], usual[name], answers, words)
            print(json.dumps(answer), file=answers, flush=True)


def attempt(reader, seed: int, pristine: Path, work: Path, good: tuple, usual: set[str], answers, words: list[str]) -> dict:
    """The outcome of the damage that the seed determines. A description of the damage is written to `answers` first.

    good, usual: the result of the good inputs, and the lines that they print, including warnings. words: a reader that is a
    command leaves its words here, and the command is then also run as a user would run it.
    """
    rng = random.Random(seed)
    target, damage = rng.choice(reader.targets)
    label, content = damage((pristine / target).read_bytes(), rng) if target else damage(None, rng)
    where = f"{target or 'options'}: {label}"
    print(json.dumps(where), file=answers, flush=True)
    printed, (kind, value) = read(reader, pristine, work, target, content)
    if words and (wrong := differs(words, pristine, work, target, content, kind)):
        return {"outcome": "traceback", "where": where, "what": wrong}
    if kind == "result":
        unusual = [line for line in printed.splitlines() if line not in usual]
        told = any(word in line for line in unusual for word in WARNING)
        same = target is None or (kind, value) == good
        kind = "same" if same else "told" if told else "missed" if label.startswith("~") else "silent"
        value = "" if same else f"{value[:150]} instead of {good[1][:150]}"
    return {"outcome": kind, "where": where, "what": value[-600:]}


def differs(words: list[str], pristine: Path, work: Path, target: str, content: bytes, kind: str) -> str:
    """What is wrong with the end of the real command; empty if it ended as `kind` says, with one error line or none."""
    shutil.copytree(pristine, work)
    (work / target).write_bytes(content)
    words = [sys.executable, str(ROOT / words[0]), *words[1:]]
    found = subprocess.run(words, cwd=work, capture_output=True, text=True, errors="replace", timeout=300)
    shutil.rmtree(work)
    errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    right = found.returncode == (kind != "result") and len(errors) == found.returncode and "Traceback" not in found.stderr
    return (
        ""
        if right or kind == "traceback"
        else f"{words[1:]} ended with {found.returncode}, not with {kind}: {found.stderr[-300:]}"
    )


def read(reader, pristine: Path, work: Path, target: str | None = None, content: object = None) -> tuple[str, tuple[str, str]]:
    """What a reader prints, and its result, refusal or traceback, on a copy of its good inputs with one of them replaced."""
    shutil.copytree(pristine, work)
    if target:
        (work / target).write_bytes(content)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            result = reader.call(work) if target or content is None else reader.call(work, content)
        outcome = "result", str(result).replace(str(work), "WORK")
    except SystemExit as error:
        right = error.code in (1, 2) or isinstance(error.code, str)
        outcome = ("refused", str(error.code)) if right else ("traceback", f"exit {error.code}")
    except BaseException as error:
        refusal = type(error).__name__ in ("InputError", "ArchiveError")
        printable = str(error).isprintable() or type(error).__name__ == "ArchiveError"  # which callers wrap in their own
        outcome = "refused" if refusal and printable else "traceback", str(error)
        if not refusal:
            outcome = "traceback", "".join(traceback.format_exception(error)[-4:])
        elif outcome[0] == "traceback":
            outcome = "traceback", f"the message is not one line of printable characters: {str(error)!r}"
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return printed.getvalue(), outcome


if __name__ == "__main__":
    main(sys.argv[1])
