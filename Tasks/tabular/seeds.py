"""--seeds: train every seed in its own folder and summarise. This file is the same in Tasks/text and Tasks/tabular."""

import copy
import json
import statistics
from collections.abc import Callable

from errors import InputError

import checkpoint
import run_folder
import states


def train_seeds(args, run: Callable[..., dict], keys: tuple[str, ...]) -> None:
    """Train every seed by run(args) in a sub-folder of --output_dir; print means and standard deviations of the final metrics.

    keys: the metrics to summarise. Writes summary.json. Raises InputError if that file already summarises other runs, or if
    another command is using the folder.
    """
    with run_folder.locked(args.output_dir):
        _train_seeds(args, run, keys)


def _train_seeds(args, run: Callable[..., dict], keys: tuple[str, ...]) -> None:
    path, found = args.output_dir / "summary.json", []
    folders = {seed: args.output_dir / f"seed{seed}" for seed in range(args.seed, args.seed + args.seeds)}
    if args.overwrite and args.resume:
        raise InputError(f"--resume continues the runs in {args.output_dir}, --overwrite replaces them: give one of them")
    if path.exists() and not (args.overwrite or args.resume):
        raise InputError(f"{path} already summarises other runs: --resume auto continues them, --overwrite replaces them")
    if args.overwrite:
        path.unlink(missing_ok=True)  # it does not describe the coming runs
        for folder in folders.values():  # all of them now, so that --resume auto after a kill does not continue old runs
            with run_folder.locked(folder):
                (folder / checkpoint.NAME).unlink(missing_ok=True)
    for seed, folder in folders.items():
        own = copy.copy(args)
        own.seed, own.output_dir = seed, folder
        own.logits = args.logits and args.logits.with_name(f"{args.logits.stem}-seed{seed}{args.logits.suffix}")
        found.append(run(own) | {"seed": seed})
        path.unlink(missing_ok=True)  # only now: run(own) refuses a command that does not fit the first seed's run
    print(f"{len(found)} seeds, mean (standard deviation)")
    summary = {}
    for key in keys:
        values = [metrics[key] for metrics in found]
        summary[key] = {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
        spread = "" if summary[key]["std"] is None else f" ({summary[key]['std']:.5f})"
        print(f"  {key:14} {summary[key]['mean']:9.5f}{spread}")
    text = json.dumps({"seeds": found, "summary": summary}, indent=1) + "\n"
    states.write_whole(path, lambda file: file.write(text.encode()))
    print(f"summary: {path}")
