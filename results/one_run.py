"""One run of an experiment: train through Conv/common_resnet, measure, write the JSON file. reproduce.py calls it.

python results/one_run.py EXPERIMENT METHOD SEED DATA_NAME [DATA_PATH]
"""

import fcntl
import json
import signal
import subprocess
import sys
import time

import reproduce
from experiments import EXPERIMENTS
from reproduce import TOP, WORK, write

CONV = TOP / "Conv/common_resnet"


def main(name: str, method: str, seed: str, data_name: str, data_path: str | None = None) -> None:
    experiment = EXPERIMENTS[name]
    folder = WORK / name / f"{method.replace(' ', '-')}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    # Held by the trainer too: one that outlived a killed reproduce.py, or belongs to a second one, is waited for.
    lock = open(folder / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    if reproduce.path(name, method, int(seed)).exists():
        return
    options = f"{experiment.options} {experiment.methods[method]} --seed {seed} --eval-every 100"
    words = [*options.split(), "--output_dir", str(folder), "--resume", "auto", "--device", "cpu"]
    words += ["--data-path", data_path] if data_path else []
    with open(folder / "train.txt", "a") as printed:
        trainer = [sys.executable, "train.py", *words]
        trained = subprocess.run(trainer, cwd=CONV, stdout=printed, stderr=printed, pass_fds=[lock.fileno()])
        if trained.returncode:
            sys.exit(f"{folder / 'train.txt'}: {(folder / 'train.txt').read_text().splitlines()[-1]}")
    from measure import measure

    start = time.time()
    metrics = measure(folder / "checkpoint.pth", experiment.transfer)
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    metrics |= {key: last[f"val_{key}"] for key in ("many", "medium", "low") if f"val_{key}" in last}
    measuring = round(time.time() - start, 1)
    write(name, method, int(seed), data_name, f"python train.py {options}", metrics, last["seconds"], measuring)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # subprocess.run then stops the trainer
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(1)
