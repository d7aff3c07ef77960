"""Run main.py on a SLURM cluster: one process per GPU on any number of nodes, requeued and resumed at the time limit.

    python run_with_submitit.py --nodes 2 --ngpus 8 --partition gpu --output_dir /shared/run1 \\
        --data-path /path/to/ImageNet --batch-size 64

Options that are not listed in --help are passed to main.py. --cluster local does the same on this machine, without SLURM.
"""

import os
import socket
import sys
from pathlib import Path

from errors import InputError, Parser


class Training:
    """The callable that submitit runs in each process; submitit calls checkpoint() when SLURM is about to stop the job."""

    def __init__(self, arguments: list[str], local_port: int | None):
        self.arguments, self.local_port = arguments, local_port

    def __call__(self) -> None:
        import submitit

        sys.path.insert(0, str(Path(__file__).parent))
        import main
        import options

        args = options.get_parser().parse_args([*self.arguments, "--resume", "auto"])  # a requeued job continues its run

        job = submitit.JobEnvironment()
        os.environ.update(
            RANK=str(job.global_rank),
            LOCAL_RANK=str(job.local_rank),
            WORLD_SIZE=str(job.num_tasks),
            MASTER_ADDR="127.0.0.1" if self.local_port else job.hostnames[0],
            # Free ports on a cluster node are not known here: use one per job, below the range of ephemeral ports.
            MASTER_PORT=str(self.local_port or 10_000 + int(job.job_id.split("_")[0]) % 20_000),
        )
        main.main(args)

    def checkpoint(self):
        import submitit

        return submitit.helpers.DelayedSubmission(self)  # with --resume auto, it continues where it stopped


def get_parser() -> Parser:
    parser = Parser(
        description=__doc__.splitlines()[0],
        epilog="All other options, such as --data-path and --batch-size, go to main.py; python main.py --help lists them.",
    )
    parser.add_argument("--nodes", type=int, default=1, help="number of machines")
    parser.add_argument("--ngpus", type=int, default=8, help="processes per machine, one per GPU")
    parser.add_argument("--hours", type=float, default=72, help="time limit of the job, in hours")
    parser.add_argument("--partition", help="SLURM partition")
    parser.add_argument("--constraint", help="SLURM constraint, such as the GPU type")
    parser.add_argument("--cpus-per-task", type=int, default=10, help="cores per process")
    parser.add_argument("--cluster", default="slurm", choices=["slurm", "local"], help="where to run")
    parser.add_argument("--output_dir", "--output-dir", type=Path, required=True, help="folder of the run, on a shared disk")
    parser.add_argument("--wait", action="store_true", help="wait until the job ends, and fail if it fails")
    return parser


def submit() -> None:
    import options

    args, arguments = get_parser().parse_known_args()
    if any(word.split("=")[0] in ("--overwrite", "--resume") for word in arguments):
        raise InputError("--overwrite and --resume: a job continues the run in --output_dir, each time that it is requeued")
    if any(word in ("--eval", "--test-only", "--test_only") for word in arguments):
        raise InputError("--eval: a job trains; python main.py --eval evaluates its checkpoint")
    arguments += ["--output_dir", str(args.output_dir)]
    options.check(options.get_parser().parse_args([*arguments, "--resume", "auto"]))  # reports mistakes here, not in the job
    try:
        import submitit
    except ImportError:
        raise InputError("submitit is not installed; pip install submitit")
    try:
        # submitit's default requeues a job only three times.
        executor = submitit.AutoExecutor(folder=args.output_dir / "slurm", cluster=args.cluster, slurm_max_num_timeout=10_000)
    except RuntimeError as error:  # srun was not found
        raise InputError(f"SLURM: {error}; --cluster local runs on this machine")
    parameters = {"nodes": args.nodes, "tasks_per_node": args.ngpus, "gpus_per_node": args.ngpus, "name": "maxsup"}
    parameters["timeout_min"] = int(args.hours * 60)
    if args.cluster == "slurm":
        parameters["cpus_per_task"] = args.cpus_per_task
        # Without the first option, processes would wait for one that failed. srun does not inherit the second from sbatch.
        parameters["slurm_srun_args"] = ["--kill-on-bad-exit=1", f"--cpus-per-task={args.cpus_per_task}"]
        parameters |= {f"slurm_{key}": getattr(args, key) for key in ("partition", "constraint") if getattr(args, key)}
    executor.update_parameters(**parameters)
    port = None
    if args.cluster == "local":
        with socket.socket() as probe:  # a port that is free on this machine now; local rank 0 binds it shortly after
            probe.bind(("", 0))
            port = probe.getsockname()[1]
    job = executor.submit(Training(arguments, port))
    print(f"job {job.job_id}; its log: {job.paths.stdout}", flush=True)
    if args.wait:
        job.results()


if __name__ == "__main__":
    submit()
