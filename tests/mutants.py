"""Plants small faults in a copy of the repository, one at a time, and runs the test that should notice each.

python tests/mutants.py                   all of them, one after the other; prints the survivors and a count
python tests/mutants.py --only 3 17 40    only those with these numbers
python tests/mutants.py Conv/ffcv viz     only those whose file or test contains one of these words
python tests/mutants.py --jobs 8          eight at a time

It is run by hand. A fault is reported as stale if its old text does not occur exactly once in its file, or if its test is missing
or fails on the unchanged copy.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tqdm import tqdm

from mutants_list import FAULTS

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 900  # seconds for one test; a longer one counts as a hang, and the fault as noticed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of the files' or tests' names")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers of faults, counted from 1")
    parser.add_argument("--jobs", type=int, default=1, help="faults planted at a time, each in a copy of its own (%(default)s)")
    args = parser.parse_args()
    faults = [
        (file, old, new, test.replace("::", "::test_"))
        for file, tests in FAULTS.items()
        for test, pairs in tests.items()
        for old, new in pairs
    ]
    chosen = [
        (number, fault)
        for number, fault in enumerate(faults, 1)
        if (not args.only or number in args.only) and (not args.words or any(word in fault[0] + fault[3] for word in args.words))
    ]
    if not chosen:
        sys.exit("no fault has such a number or name")
    os.nice(19)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(args.jobs):
            copies.put(copy_to(Path(folder) / str(job)))
        tests = sorted({fault[3] for _, fault in chosen})
        passing = dict(zip(tests, pool.map(lambda test: tried(copies, test), tests), strict=True))
        found = pool.map(lambda pair: outcome(copies, *pair[1]) if passing[pair[1][3]] == "passed" else "stale", chosen)
        counts = dict.fromkeys(("noticed", "survived", "stale"), 0)
        bar = tqdm(zip(chosen, found, strict=True), "faults", len(chosen), disable=None)
        for (number, (file, old, new, test)), result in bar:
            counts[result] += 1
            if result != "noticed":
                why = f" (without the fault: {passing[test]})" if passing[test] != "passed" else ""
                print(f"{result}: {number} {file}: {old!r} -> {new!r}, {test}{why}", flush=True)
    print(f"{len(chosen)} planted, " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    sys.exit(counts["noticed"] != len(chosen))


def copy_to(folder: Path) -> Path:
    """Copy the files that git tracks or could track, without those that it ignores."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def tried(copies: SimpleQueue, test: str) -> str:
    """The result of a test in a copy: passed, failed, skipped, hung, or missing."""
    copy = copies.get()
    try:
        words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{test}"]
        result = subprocess.run(words, cwd=copy, capture_output=True, timeout=LIMIT)
        passed = "passed" if b" passed" in result.stdout else "skipped"  # status 0 says only that no test failed
        return {0: passed, 1: "failed"}.get(result.returncode, "missing")
    except subprocess.TimeoutExpired:
        return "hung"
    finally:
        copies.put(copy)


def outcome(copies: SimpleQueue, file: str, old: str, new: str, test: str) -> str:
    """The outcome of one fault planted in a copy: noticed, survived or stale."""
    copy = copies.get()
    try:
        good = (copy / file).read_text() if (copy / file).is_file() else ""
        if good.count(old) != 1:
            return "stale"
        (copy / file).write_text(good.replace(old, new))
        own: SimpleQueue[Path] = SimpleQueue()
        own.put(copy)
        result = tried(own, test)
        (copy / file).write_text(good)
        return "survived" if result == "passed" else "noticed"
    finally:
        copies.put(copy)


if __name__ == "__main__":
    main()
