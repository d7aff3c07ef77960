"""Damaged inputs for every reader of the repository: python tests/attack/run.py [--minutes 60] [--inputs N] [--seed N]

For each reader the table gives the number of inputs tried, and how many of them ended in a traceback, did not end (a hang, or the
death of the process), or silently gave a result other than that of the good input. Each kind of fault is listed once below it.
"""

import argparse
import contextlib
import itertools
import json
import queue
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUBPROJECTS = ("Deit", "Conv/common_resnet", "Conv/ffcv", "Tasks/tabular", "Tasks/text", "Tasks/segmentation", "viz", "data")
PATIENCE = 20  # seconds for one input
EVERY = 40  # one in this many inputs is given to the real command too
FAULTS = ("traceback", "hang", "silent")


class Worker:
    """The process of one subproject; ask() restarts it if it has hung or died."""

    def __init__(self, subproject: str):
        self.subproject, self.process, self.readers = subproject, None, []
        self.start()

    def start(self) -> None:
        words = [sys.executable, str(HERE / "worker.py"), self.subproject]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process, self.answers, self.said = subprocess.Popen(words, text=True, **pipes), queue.Queue(), []
        self.asked = set()  # readers whose good inputs it has made, which may include training
        threading.Thread(target=self._listen, args=(self.process.stdout, self.answers.put), daemon=True).start()
        threading.Thread(target=self._listen, args=(self.process.stderr, self.said.append), daemon=True).start()
        self.readers = self._answer(120)
        if self.readers is None:
            raise SystemExit(f"{self.subproject}: does not start:\n{''.join(self.said[-20:])}")

    @staticmethod
    def _listen(stream, take) -> None:
        for line in stream:
            take(line)
        take("")

    def _answer(self, seconds: float) -> object:
        try:
            line = self.answers.get(timeout=seconds)
        except queue.Empty:
            return None
        return json.loads(line) if line else None

    def ask(self, reader: str, seed: int, really: bool) -> dict:
        patience = PATIENCE if reader in self.asked else 600
        self.process.stdin.write(json.dumps([reader, seed, really]) + "\n")
        self.process.stdin.flush()
        where = self._answer(patience)
        if where is None and patience == PATIENCE:
            raise SystemExit(f"{self.subproject} {reader}, damage {seed}: cannot be made\n{''.join(self.said[-20:])}")
        answer = where and self._answer(PATIENCE + 300 * really)
        if answer is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
            died = self.process.poll()
            self.close()
            what = f"no end after {patience} s" if died is None else f"the process died ({died}): {''.join(self.said[-12:])}"
            self.start()
            return {"outcome": "hang", "where": where or "the good inputs", "what": what}
        self.asked.add(reader)
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def run(seconds: float, inputs: int | None, seed: int, subprojects: tuple = SUBPROJECTS, only: str = "") -> tuple[dict, dict]:
    """Outcomes by reader, and the examples of each kind of fault. The time is shared evenly among the subprojects."""
    counts, examples, end = {}, {}, time.monotonic() + seconds
    for index, subproject in enumerate(subprojects):
        worker = Worker(subproject)
        share = (end - time.monotonic()) / (len(subprojects) - index)
        stop, names = time.monotonic() + share, [name for name in worker.readers if only in f"{subproject} {name}"]
        for number in range(inputs) if inputs else itertools.count():
            for name in names:
                own = random.Random(f"{seed} {subproject} {name} {number}").randrange(2**32)
                answer = worker.ask(name, own, number % EVERY == EVERY - 1)
                if number == 0 and answer["outcome"] == "hang":
                    raise SystemExit(f"{subproject} {name}: the good inputs cannot be made or read\n{answer['what']}")
                counts.setdefault((subproject, name), Counter())[answer["outcome"]] += 1
                if answer["outcome"] in FAULTS:
                    last = re.sub(r"\d+|0x\w+|'[^']*'", "N", answer["what"].strip().splitlines()[-1][:80])
                    where = "" if answer["outcome"] == "traceback" else re.sub(r"\d+", "N", answer["where"])
                    examples.setdefault((subproject, name, answer["outcome"], where, last), []).append((own, answer))
            if not names or (time.monotonic() > stop and not inputs):
                break
        worker.close()
    return counts, examples


def table(counts: dict) -> str:
    rows = [f"{'reader':42}{'tried':>8}{'refused':>9}{'tracebacks':>12}{'hangs':>7}{'silent':>8}"]
    for (subproject, name), found in [*counts.items(), (("all", ""), sum(counts.values(), Counter()))]:
        faults = "".join(f"{found[kind]:>{width}}" for kind, width in zip(FAULTS, (12, 7, 8), strict=True))
        rows.append(f"{subproject + ' ' + name:42}{found.total():>8}{found['refused']:>9}{faults}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="time for all readers together (%(default)s)")
    parser.add_argument("--inputs", type=int, help="inputs for each reader, instead of a time")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other damages (%(default)s)")
    parser.add_argument("--subprojects", nargs="+", default=SUBPROJECTS, choices=SUBPROJECTS, metavar="FOLDER")
    parser.add_argument("--only", default="", metavar="WORDS", help="readers whose line in the table holds this")
    args = parser.parse_args()
    counts, examples = run(60 * args.minutes, args.inputs, args.seed, tuple(args.subprojects), args.only)
    if not counts:
        parser.error(f"--only {args.only}: no reader of {', '.join(args.subprojects)} has that in its line")
    print(table(counts))
    for (subproject, name, kind, *_), found in examples.items():
        own, answer = found[0]
        print(f"\n{kind} ({len(found)} times), {subproject} {name}, {answer['where']}, damage {own}\n{answer['what']}")
    sys.exit(any(found[kind] for found in counts.values() for kind in FAULTS))


if __name__ == "__main__":
    main()
