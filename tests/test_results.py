"""results/: statistics against scipy and brute force, claims at matched strength, runs killed and resumed, pages from JSON."""

import dataclasses
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, norm, ttest_1samp

from browser import CHROMIUM, Browser
from conftest import ROOT, complains, on_terminal, run, warm
from subprojects import Subproject
from training import PATIENCE

SUBPROJECT = results = Subproject("results")
MODULES = "claims claims_tables experiments finished index_page render runs_tables sentences tables verdicts"
claims, claims_tables, experiments, finished, index_page, render, runs_tables, sentences, tables, verdicts = map(
    results.load, MODULES.split()
)
running = results.load("run")
Claim = claims.Claim


def test_intervals_and_p_are_students():
    values = [0.3, -0.1, 0.25, 0.4, 0.05]
    expected = ttest_1samp(values, 0)
    ends = expected.confidence_interval(0.95)
    assert verdicts.interval(values) == pytest.approx((np.mean(values), ends.low, ends.high), rel=1e-12)
    assert verdicts.p_value(values) == pytest.approx(expected.pvalue, rel=1e-12)
    # Three equal differences do not tell their spread, although the computed values differ in the last bits.
    equal = [0.9 - 0.85, 0.8 - 0.75, 0.7 - 0.65]
    assert np.std(equal) > 0 and verdicts.p_value(equal) == verdicts.p_value([0.25] * 3) == verdicts.p_value([0.0] * 3) == 1
    assert verdicts.deviation(equal) == verdicts.detectable(verdicts.deviation(equal), 3) == 0


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.2, 0.001, 0.001, 0.9, 0.02], [0.5], []])
def test_holm_is_the_closed_test_of_bonferroni(p):
    """A hypothesis is rejected if every set that contains it is rejected, by the set's smallest p times its size."""
    sets = [set_ for size in range(1, len(p) + 1) for set_ in itertools.combinations(range(len(p)), size)]
    expected = [max(min(1, len(s) * min(p[i] for i in s)) for s in sets if index in s) for index in range(len(p))]
    assert verdicts.holm(p) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("difference", "seeds", "level"), [(1.2, 5, 0.05), (-0.8, 10, 0.05), (2.0, 3, 0.05), (2.0, 5, 0.005)])
def test_power_is_what_a_simulation_finds(difference, seeds, level):
    """With 40,000 experiments the standard error of the share is at most 0.0025; four standard errors are allowed."""
    samples = np.random.default_rng(0).normal(difference, 1, (40_000, seeds))
    share = (ttest_1samp(samples, 0, axis=1).pvalue < level).mean()
    assert verdicts.power_of(difference, 1, seeds, level) == pytest.approx(share, abs=0.01)


def test_detectable_differences_and_seeds_are_those_of_80_percent():
    for seeds, deviation in ((3, 0.2), (5, 1.0), (20, 7.0)):
        least = verdicts.detectable(deviation, seeds)
        assert verdicts.power_of(least, deviation, seeds) == pytest.approx(0.8, abs=1e-6)
    for difference, level in ((1.0, 0.05), (-0.3, 0.05), (0.1, 0.05), (0.5, 0.001)):
        found = verdicts.seeds_needed(difference, 1.0, level)
        assert verdicts.power_of(difference, 1.0, found, level) >= 0.8 > verdicts.power_of(difference, 1.0, found - 1, level)
    # With many seeds the t test is a z test: n = ((z_0.975 + z_0.8) / d)^2, to within three seeds.
    expected = ((norm.ppf(0.975) + norm.ppf(0.8)) / 0.1) ** 2
    assert verdicts.seeds_needed(0.1, 1.0) == pytest.approx(expected, abs=3)
    assert verdicts.seeds_needed(1e-4, 1.0) is None and verdicts.seeds_needed(1.0, 0.0) is None


def test_wilson_is_scipys():
    for right, images in ((390, 397), (397, 397), (5, 10)):
        expected = binomtest(right, images).proportion_ci(method="wilson")
        found = verdicts.wilson(100 * right / images, images)
        assert found == pytest.approx((100 * expected.low, 100 * expected.high), rel=1e-9)


def runs(**methods):
    """runs[method][seed] with metrics m and n; in a method's name _ stands for a space and __ for a dot."""
    names = {name: name.replace("__", ".").replace("_", " ") for name in methods}
    return {names[k]: {seed: {"m": value, "n": 2 * value} for seed, value in enumerate(v)} for k, v in methods.items()}


STRENGTHS = {"LS": "0.1", "MaxSup": "0.1"}


def test_differences_of_claims():
    found = runs(CE=[1.0, 1.2, 1.1], LS_0__1=[0.5, 0.8, 0.6], LS_0__2=[0.0, 0.4, 0.1])

    def of(*words, **more):
        claim = Claim("C", "", "", *words, **more)
        return claims.differences(claim, claims.arms_of(claim, STRENGTHS, found), found)

    assert of("m", "CE", "LS") == pytest.approx([0.5, 0.4, 0.5])
    assert of("n", "LS", "LS", less="m") == pytest.approx([0.5, 0.8, 0.6])
    assert of("m", None, "LS") == pytest.approx([-0.5, -0.8, -0.6])
    lines = [np.polyfit([0, 0.1, 0.2], [found[arm][seed]["m"] for arm in ("CE", "LS 0.1", "LS 0.2")], 1)[0] for seed in range(3)]
    assert of("m", slope="LS") == pytest.approx(lines)
    assert of("m", "CE", "MaxSup") is None and of("o", "CE", "LS") is None
    found["CE"] = {seed + 1: metrics for seed, metrics in found["CE"].items()}  # two of three seeds are common
    assert of("m", "CE", "LS") is None
    found["LS 0.1"][3] = {"m": 0.7, "n": 0}
    assert of("m", "CE", "LS") == pytest.approx([1.0 - 0.8, 1.2 - 0.6, 1.1 - 0.7])


def test_verdicts_are_corrected_over_the_claims_of_an_experiment():
    """Of two tests with p = 0.0253 neither is decided after the correction; a single one is. Other experiments change nothing.

    Where seeds were, or may be, added after a first look, p is doubled, so a single test is not decided either."""
    one = runs(CE=[1.0, 1.3, 0.9, 1.4], LS_0__1=[0.5, 0.6, 0.7, 0.6])
    up, down = Claim("A", "", "", "m", "CE", "LS"), Claim("B", "", "", "m", "LS", "CE")
    (alone,) = claims.tests([up], {"bank": one}, lambda name: STRENGTHS, True)
    claims.correct([alone])
    assert alone.verdict == "supported" and alone.p == alone.corrected and alone.level == verdicts.LEVEL
    assert alone.p == pytest.approx(ttest_1samp([0.5, 0.7, 0.2, 0.8], 0).pvalue)
    for name in ("cifar10-coarse", "fashion-fine"):
        (twice,) = claims.tests([up], {name: one}, lambda name: STRENGTHS, True)
        claims.correct([twice])
        assert (
            twice.verdict == "undecided"
            and twice.p == alone.p
            and twice.corrected == 2 * alone.p
            and twice.level == verdicts.LEVEL / 2
        )
    (against,) = claims.tests([down], {"bank": one}, lambda name: STRENGTHS, True)
    claims.correct([against])
    assert against.verdict == "contradicted"
    found = claims.tests([up, down], {"bank": one, "shoppers": one}, lambda name: STRENGTHS, True)
    claims.correct(found)
    assert len(found) == 4 and all(test.corrected == pytest.approx(2 * alone.p) for test in found)
    assert all(test.verdict == "undecided" and test.level == verdicts.LEVEL / 2 for test in found)


def test_families_of_tests():
    """The topics of an experiment form one family; rising strengths and recipes form one each."""
    found = claims.tables(finished.metrics_of(made_up("fashion-fine", "bank", seeds=20)))
    for name in ("fashion-fine", "bank"):
        own = {title: [test for test in of_title if test.experiment == name] for title, of_title in found.items()}
        topics = sum(len(own[title]) for title in claims.TOPICS)
        assert topics > 10 and (len(own.keys() - claims.TOPICS) == 2)
        for title, of_title in own.items():
            size = (topics if title in claims.TOPICS else len(of_title)) * {"fashion-fine": 2, "bank": 1}[name]
            assert all(test.level == verdicts.LEVEL / size for test in of_title)


def test_runs_that_two_experiments_have_are_tested_once():
    """distillation-fashion trains CE, LS and MaxSup exactly as fashion-fine does; distillation-cifar10 does not."""
    found = made_up("distillation-fashion", "distillation-cifar10")
    tested = {name: set() for name in found}
    for test in sum(claims.tables(finished.metrics_of(found)).values(), []):
        tested[test.experiment].add(test.claim.id)
    assert tested["distillation-fashion"] == {"C17a", "C17b", "C18"} < tested["distillation-cifar10"]
    said = "CE, LS 0.1, MaxSup 0.1: the same commands as in fashion-fine, where the claims about them are tested."
    tables = {name: runs_tables.table_of_runs(name, methods) for name, methods in found.items()}
    assert said in tables["distillation-fashion"] and "the same commands" not in tables["distillation-cifar10"]


def test_each_table_is_one_family_and_what_more_seeds_would_decide_is_named():
    """Five seeds, of which one shows almost no effect, decide nothing after the correction; ten would."""
    found = made_up("cifar10-long")
    of_ls = found["cifar10-long"]["LS 0.1"]
    for seed, value in enumerate((-0.05, -0.04, -0.06, -0.05, -0.005)):
        of_ls[seed]["metrics"]["d_within_val"] = value
    of_ls[3]["hardware"] = of_ls[3]["hardware"] | {"instructions": "AVX512"}
    judged = claims.tables(finished.metrics_of(found))
    page = render.page(found, judged)
    assert "those observed: cifar10-long." in page
    assert "The runs of seed 3 come from different machines" in page
    assert "Methods by machine: CE, LS 0.1, MaxSup 0.1, LS 0.1-0.2, MaxSup 0.1-0.2 on CPU with AVX2, 1 thread; LS 0.1 on" in page
    for title, claimed in judged.items():
        titled = title if title in claims.OTHER_STRENGTHS else None
        part = page.partition("## cifar10-long")[2].partition(f"**{titled}**" if titled else "\n| id |")[2].split("\n\n**")[0]
        assert all(f"\n| {test.claim.id} |" in part for test in claimed)


@pytest.mark.parametrize("early", [True, False])
def test_a_page_says_which_verdicts_the_added_seeds_changed(early):
    """LS raises ECE in all seeds, or only in the first five; accuracy is noise."""
    found = made_up("cifar10-coarse", seeds=10)
    for seed in range(5, 10) if early else ():
        found["cifar10-coarse"]["LS 0.1"][seed]["metrics"]["ece"] = -0.1
    page = render.page(found, claims.tables(finished.metrics_of(found)))
    (line,) = [line for line in page.splitlines() if line.startswith("By the same rules, the first 5 seeds alone would have")]
    if early:
        assert line.endswith("claims: C9 contradicted, C23a supported, C23a (recipes) supported.")
    else:
        assert line.endswith("given the same verdicts.")


def test_seeds_beyond_the_plan_change_no_page(tmp_path, monkeypatch):
    monkeypatch.setattr(finished, "RUNS", tmp_path / "runs")
    (tmp_path / "runs/bank").mkdir(parents=True)
    for seed in (0, 19, 20):
        run = {"method": "CE", "seed": seed, "command": finished.Run("bank", "CE", seed).command}
        (tmp_path / f"runs/bank/CE-seed{seed}.json").write_text(json.dumps(run))
    assert list(finished.read_runs()["bank"]["CE"]) == [0, 19]
    (tmp_path / "runs/bank/CE-seed0.json").write_text(json.dumps(run | {"seed": 0, "command": "python train.py --epochs 1"}))
    with pytest.raises(SystemExit, match="runs/bank/CE-seed0.json: the recipe in experiments.py has changed since"):
        finished.read_runs()


def test_an_unfinished_experiment_says_so():
    found = made_up("fashion-fine", "fashion-longtail-50", seeds=4)
    for one in found["fashion-longtail-50"]["CE"].values():
        one["metrics"]["many"] = 90.0
    page = render.page(found, claims.tables(finished.metrics_of(found)))
    assert "many %" not in page  # all classes have many images, so this is the top-1
    planned = experiments.EXPERIMENTS["fashion-longtail-50"].planned
    assert f"28 of {planned} runs are finished: further tests may change verdicts." in page
    assert f"fashion-longtail-50 (28 of {planned}). Not started: digits-parity," in page


def test_a_claim_waits_for_all_seeds_of_the_experiment():
    """Four of five seeds give no verdict, but are enough for planning."""
    early, whole = (finished.metrics_of(made_up("cifar10-long", seeds=seeds)) for seeds in (4, 5))
    assert not any(claims.tables(early).values()) and all(len(t.values) == 5 for t in claims.tables(whole)["Accuracy"])
    assert all(len(t.values) == 4 for t in claims.tables(early, unfinished=True)["Accuracy"])


def strengths_in(arms) -> set[str]:
    """The strengths of LS and MaxSup in the names of arms."""
    words = [arm.split() for arm in arms if arm]
    return {one[-1] for one in words if {"LS", "MaxSup"} & set(one)}


def test_claims_about_methods_compare_matched_strengths():
    """In every experiment each claim compares equal strengths; only the recipes compare different ones, and say so."""
    metrics = {
        name: {method: {seed: dict.fromkeys(of_all(), 1.0) for seed in range(experiment.seeds)} for method in experiment.methods}
        for name, experiment in experiments.EXPERIMENTS.items()
    }
    found = claims.tables(metrics)
    compared = 0
    for title, tests in found.items():
        for test in tests:
            if test.claim.compares_methods:
                compared += 1
                assert (len(strengths_in(test.arms)) == 1) == ("recipes" not in title), (title, test.arms)
    assert compared > 50 and [title for title in found if "recipes" in title] == [list(found)[-1]]
    untested = {claim for group in claims.TOPICS.values() for claim in group} - {
        t.claim for tests in found.values() for t in tests
    }
    assert not untested  # every claim has an experiment with its arms
    for name, experiment in experiments.EXPERIMENTS.items():  # and every experiment has matched arms
        if strengths_in(experiment.methods):
            assert {f"LS {experiment.strength}", f"MaxSup {experiment.strength}"} <= experiment.methods.keys(), name


def of_all() -> set[str]:
    every = [claim for group in claims.TOPICS.values() for claim in group]
    return {claim.metric for claim in every} | {claim.less for claim in every if claim.less}


def test_arms_name_what_they_do():
    found = experiments.arms("0.2", "0.1-0.2")
    assert found == {
        "CE": "--loss ce",
        "LS 0.2": "--loss ls --alpha 0.2",
        "MaxSup 0.2": "--loss maxsup --alpha 0.2",
        "LS 0.1-0.2": "--loss ls --alpha 0.1 --alpha-end 0.2",
        "MaxSup 0.1-0.2": "--loss maxsup --alpha 0.1 --alpha-end 0.2",
    }


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_experiment_speaks_its_trainers_language(name, tmp_path):
    """The trainer's own code parses and settles each method's options, so that no mistake appears after hours of other runs."""
    experiment = experiments.EXPERIMENTS[name]
    script = ROOT / experiment.trainer
    trainer = Subproject(str(script.parent.relative_to(ROOT)))
    for words in experiment.methods.values():
        words = re.sub(r"{.*?}", "folder", words)  # the run of another method
        line = f"{experiment.options} {words} --seed 1 --output_dir o --resume auto --device cpu"
        line += " --logits l.pt" if experiment.logits else " --eval-every 100"
        line += f" --data-path {tmp_path}" if experiment.path or experiment.needed else ""
        try:
            found = trainer.load("options").get_parser().parse_args(line.split())
        except SystemExit:
            pytest.fail(line)
        assert found.loss in words and found.seed == 1 and found.epochs == experiment.epochs
        with trainer.active():
            trainer.load("options").fill_in(found)
    if experiment.path:
        assert (ROOT / experiment.prepare.split()[0]).exists() and experiment.path.startswith("data/")


def test_reproduce_lists_and_refuses(tmp_path):
    program = ROOT / "results/reproduce.py"
    listed = run(program, "--list").stdout
    assert all(name in listed for name in experiments.EXPERIMENTS)
    complains(run(program, "nonsense"), "nonsense", "fashion-coarse")
    complains(run(program, "--render", "--jobs", 0), "--jobs 0")
    complains(run(program, "--list", "--render"), "--list and --render: give one of them")
    complains(run(program, "--render", "digits-parity"), "--render and digits-parity: give one of them")
    complains(run(program, "--list", "--methods", "CE"), "--methods: goes with experiments to run")
    complains(run(program, "bank"), "--data-path bank=PATH")
    complains(run(program, "cifar10-fine", "--data-path", "cifar=x"), "cifar=x", "cifar10")
    complains(run(program, "cifar10-fine", "--data-path", f"cifar10={tmp_path}/none"), "does not exist")
    complains(run(program, "cifar10-fine", "--methods", "LS"), "--methods LS", "LS 0.1")
    complains(run(program, "imagenet-resnet50", "--data-path", f"imagenet={tmp_path}"), "train/")
    (tmp_path / "train").mkdir()
    complains(run(program, "imagenet-resnet50", "--data-path", f"imagenet={tmp_path}", "--jobs", 2), "--jobs: ", "as a whole")


@pytest.mark.parametrize("words", [["results/reproduce.py", "--power", "imdb"], ["viz/download.py", "--list"]])
def test_a_reader_who_has_seen_enough_gets_no_message(words):
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = [sys.executable, *words]
    program = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered)
    program.stdout.close()  # before anything is written, as `head` does after its last line
    assert program.communicate()[1] == b"" and program.returncode == 141


TINY = """
WORDS = "--data digits --model resnet8 --width 8 --batch-size 64 --epochs 2 --num-workers 0"
METHODS = {"heir of CE": "--loss ce --init {CE}/checkpoint.pth", "CE": "--loss ce", "LS 0.2": "--loss ls --alpha 0.2"}
EXPERIMENTS["tiny"] = Experiment("digits", "ten classes", "ResNet-8", WORDS, METHODS, 1, 0.1)
"""


def checkout(folder):
    """Copy the project's files to a folder and add an experiment there."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if name.split("/")[0] in ("Conv", "data", "results", "viz", "README.md") and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    with open(folder / "results/experiments.py", "a") as file:
        file.write(TINY)


def test_a_killed_reproduction_goes_on(tmp_path):
    """SIGKILL leaves a trainer that continues by itself; the same command waits for it, and runs nothing twice."""
    checkout(tmp_path)
    command = [sys.executable, str(tmp_path / "results/reproduce.py"), "tiny", "--jobs", "2"]
    runs, work = tmp_path / "results/runs/tiny", tmp_path / "output/results/tiny"
    with open(os.devnull, "w") as nowhere:
        number = warm().start(command[1:], ROOT, nowhere, nowhere)
    deadline = time.time() + PATIENCE
    while not list(work.glob("*/log.jsonl")):
        assert Path(f"/proc/{number}").exists() and time.time() < deadline
        time.sleep(0.1)
    os.kill(number, signal.SIGKILL)
    assert warm().wait() == -signal.SIGKILL
    stopped = run(*command, "--minutes", "0.0001")
    assert stopped.returncode == 0 and "are left; the same command goes on" in stopped.stdout, stopped.stderr
    result = on_terminal(*command, timeout=900)
    assert result.returncode == 0 and "tiny: 100%" in result.stdout, result.stdout
    stems = ["CE-seed0", "LS-0.2-seed0", "heir-of-CE-seed0"]
    assert sorted(path.stem for path in runs.iterdir()) == stems
    for stem in stems:
        printed, log = (work / stem / name for name in ("train.txt", "log.jsonl"))
        assert printed.read_text().count("epoch   2/2") == 1 and len(log.read_text().splitlines()) == 2
    content = json.loads((runs / "LS-0.2-seed0.json").read_text())
    last = json.loads((work / "LS-0.2-seed0/log.jsonl").read_text().splitlines()[-1])
    assert content["training_seconds"] == last["seconds"] > 0 and content["measuring_seconds"] > 0
    # Another program evaluates the same model on the same images: equal up to the rounding of float32 sums.
    assert content["metrics"]["top1"] == pytest.approx(last["val_top1"])
    assert content["metrics"]["nll"] == pytest.approx(last["val_nll"], abs=1e-4)
    assert content["hardware"]["instructions"] and content["hardware"]["gpu"] is None
    assert content["command"].endswith("--num-workers 0 --loss ls --alpha 0.2 --seed 0")
    # The run heir-of-CE starts where the CE run of the same seed ended.
    first = [json.loads((work / stem / "log.jsonl").read_text().splitlines()[0]) for stem in ("CE-seed0", "heir-of-CE-seed0")]
    assert first[1]["train_loss"] < first[0]["train_loss"]
    page = (tmp_path / "results/README.md").read_text()
    assert "## tiny: digits, ten classes" in page and "AVX" in page.upper()
    power = run(tmp_path / "results/reproduce.py", "--power", "tiny")
    assert power.returncode == 0 and claims.UNTESTED in power.stdout  # one seed, so no test
    (runs / "heir-of-CE-seed0.json").unlink()  # as in a clone, which has JSON files but no checkpoints
    (work / "CE-seed0/checkpoint.pth").unlink()
    complains(run(*command), "CE is finished, but others read its checkpoint", "CE-seed0.json away")


def test_what_another_process_works_on_comes_last(tmp_path):
    checkout(tmp_path)
    runs, work = tmp_path / "results/runs/tiny", tmp_path / "output/results/tiny"
    (work / "CE-seed0").mkdir(parents=True)
    with open(work / "CE-seed0/lock", "w") as lock, open(os.devnull, "w") as nowhere:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = [str(tmp_path / "results/reproduce.py"), "tiny", "--jobs", "1", "--methods", "CE", "LS 0.2"]
        warm().start(words, ROOT, nowhere, nowhere)
        deadline = time.time() + PATIENCE
        while not (runs / "LS-0.2-seed0.json").exists():
            assert time.time() < deadline
            time.sleep(0.1)
        assert not (work / "CE-seed0/log.jsonl").exists()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert warm().wait() == 0
    assert sorted(path.stem for path in runs.iterdir()) == ["CE-seed0", "LS-0.2-seed0"]


def test_a_run_is_claimed_by_one_process(tmp_path):
    """Between its choice and its start a run cannot be chosen again, so processes that start together share the runs."""
    first, second = (running.Run("digits-parity", "CE", 0, tmp_path) for _ in range(2))
    lock = first.claim()
    assert lock and second.claim() is None
    lock.close()
    again = second.claim()
    assert again and first.claim() is None
    again.close()


def test_failures_name_the_run_and_its_last_line(tmp_path):
    checkout(tmp_path)
    with open(tmp_path / "results/experiments.py", "a") as file:
        file.write('EXPERIMENTS["bad"] = Experiment("d", "t", "m", WORDS + " --lr -1", {"CE": "--loss ce"}, 1, 0.1)\n')
    complains(run(tmp_path / "results/reproduce.py", "bad"), "bad", "train.py", "--lr -1", "train.txt")


def test_a_failure_is_that_of_this_attempt(tmp_path):
    """The message is not the last line of an earlier attempt; a run ended by a signal has no message."""
    (tmp_path / "printed").write_text("error: of an earlier attempt\n")
    killed, ended = "import os; os.kill(os.getpid(), 9)", "raise SystemExit('error: new')"
    for script, match in ((killed, "killed by signal 9"), (ended, ": new ")):
        with pytest.raises(running.Failed, match=match):
            list(running.work(["-c", script], tmp_path / "printed", 1))


def test_nothing_in_results_reaches_into_a_subproject():
    text = "".join(path.read_text() for path in (ROOT / "results").glob("*.py"))
    assert "sys.path" not in text


def test_the_pages_are_what_the_json_files_say():
    """Byte for byte: a number edited by hand, a run that was not rendered, or a table that no page shows fails here."""
    pages = render.rendered()
    for path, text in pages.items():
        assert path.read_text() == text, f"{path}: python results/reproduce.py --render"
    shown = {name for path in pages for name in tables.MARK.findall(path.read_text())}
    hidden = [
        p.name for p in tables.TABLES.glob("*.json") if not any(fnmatch(f"results/tables/{p.name}", name) for name in shown)
    ]
    assert not hidden and "results/runs" in shown


def test_a_mark_may_name_several_tables(tmp_path, monkeypatch):
    """One mark names the tables that benchmarks/gpu.py fills in, of which there may be none."""
    monkeypatch.setattr(render, "TOP", tmp_path)
    assert render.block("gpu_*.json", {}, {}) == "Not measured yet.\n"
    for name in ("gpu_b", "gpu_a", "cpu"):
        table = {"command": name, "environment": "e", "columns": [["x", "d"]], "rows": [[1]]}
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
    shown = render.block("gpu_*.json", {}, {})
    assert shown.index("`gpu_a`") < shown.index("`gpu_b`") and "cpu" not in shown


def made_up(*names: str, seeds: int | None = None) -> dict:
    """Runs of experiments, all of them if seeds is None, with known answers.

    LS has the largest ECE, accuracy is noise, all else is equal.
    """
    random = np.random.default_rng(0)
    some = {"model": "m", "command": "python train.py", "training_seconds": 60.0, "versions": {"torch": "2.15.0"}}
    some["hardware"] = {"cpu": "CPU", "instructions": "AVX2", "gpu": None, "threads": 1, "cores": 2}
    found = {}
    for name in names:
        for method in experiments.EXPERIMENTS[name].methods:
            for seed in range(seeds or experiments.EXPERIMENTS[name].seeds):
                metrics = dict.fromkeys([*of_all(), "confidence_right"], 0.0) | {
                    "images": 397,
                    "normalised_kept_msp": 1.0,
                    "train_top1": 99.0,
                }
                metrics |= {"ece": 0.01 * random.random() + 0.1 * ("LS" in method), "top1": 90 + random.random()}
                found.setdefault(name, {}).setdefault(method, {})[seed] = some | {
                    "metrics": metrics,
                    "data": experiments.EXPERIMENTS[name].data,
                }
    return found


def test_a_page_of_made_up_runs():
    """Every part of the page is checked on runs with known answers."""
    found = made_up("fashion-fine", "cifar10-resnet20")
    for one in found["fashion-fine"]["LS 0.1"].values():
        one["metrics"] |= {"confidence_right": 0.2, "confidence_wrong": 0.1}
    judged = claims.tables(finished.metrics_of(found))
    page = render.page(found, judged)
    assert sentences.of_right_predictions(finished.metrics_of(found), judged) == {"right_too": "1 of 2", "right_more": "1"}
    assert "experiments (cifar10-resnet20)" in " ".join(page.split())  # those of strength 0.2
    assert "| C7 | LS 0.1: AURC, not normalised - normalised | MSP was kept in every split |" in page
    assert "| C19 | coverage at 1 % risk: CE - LS 0.1 | equal in every seed | | | | no test | |" in page
    by = {(test.claim.id, test.experiment, *test.arms): test for tests in judged.values() for test in tests}
    assert by["C9", "fashion-fine", "CE", "LS 0.1"].verdict == "contradicted"
    assert by["C23a", "fashion-fine", "LS 0.1", "MaxSup 0.1"].verdict == "supported"
    assert "Wilson's 95 % intervals" in page and "over 97 %" in page and "**The papers' recipes: LS at 0.1" in page
    lines = [line for line in page.splitlines() if line.startswith("| C5a |") and "top-1 %: MaxSup 0.1 - LS 0.1 |" in line]
    test = by["C5a", "fashion-fine", "MaxSup 0.1", "LS 0.1"]
    least = verdicts.detectable(np.std(test.values, ddof=1), len(test.values), test.level)
    assert lines[0].endswith(f"undecided | {least:.2f} |")
    said, *groups = render.summary(found, judged).split("\n\n**")
    counts = [int(number) for number in re.findall(r"\b\d+", said.partition("Experiments")[0])]
    assert len(counts) == 4 and counts[0] == sum(counts[1:]) > 0
    wrong = [t.claim.id for title in claims.TOPICS for t in judged[title] if t.verdict == "contradicted"]
    of_confidence = len([id for id in wrong if id.startswith(("C9", "C23", "C25a"))])
    assert f"{of_confidence} of the {len(wrong)} contradicted tests" in " ".join(said.split())
    shown = [re.findall(r"^\| (C\w+) \|", group, re.M) for group in groups]  # every tested claim once, under its verdict
    assert sorted(sum(shown, [])) == sorted({t.claim.id for title in claims.TOPICS for t in judged[title]})
    assert [title for title, ids in zip(groups, shown, strict=True) if "C9" in ids][0].startswith("Contradicted in some")
    signs = re.findall(r"^\| (C\w+) \|[^|]*\|[^|]*\| (\d+ of \d+) \|", "\n".join(groups), re.M)
    values = {
        id: [t.values for t in by.values() if t.claim.id == id and t in sentences.at_matched_strength(judged)] for id, _ in signs
    }
    some = {id: [one for one in of_claim if any(one)] for id, of_claim in values.items()}
    assert dict(signs) == {id: f"{sum(np.mean(one) > 0 for one in of_claim)} of {len(of_claim)}" for id, of_claim in some.items()}
    assert len(signs) == len(sum(shown, [])) and dict(signs)["C9"] == "0 of 2"
    papers = results.load("papers").markdown(finished.metrics_of(found))
    assert "Our runs: cifar10-resnet20, " in papers
    assert "| method | runs, ours | seeds, ours | error %, ours |" in papers and "| CE | cifar10-resnet20 | 5 | " in papers
    found["cifar10-resnet20-paper"] = {"CE": {0: made_up("cifar10-resnet20-paper")["cifar10-resnet20-paper"]["CE"][0]}}
    both = results.load("papers").markdown(finished.metrics_of(found))
    rows = re.findall(r"^\| (CE|LS 0.2|MaxSup 0.2) \| (\S*) \| (\d+) \|", both, re.M)
    assert [row for row in rows if row[0] == "CE"] == [
        ("CE", f"cifar10-resnet20{end}", n) for end, n in (("-paper", "1"), ("", "5"))
    ]
    assert len(rows) == 4 and "Our runs: cifar10-resnet20-paper, " in both and "; cifar10-resnet20, " in both
    assert (
        "imbalance 50 (MaxSup repository).** Not run yet.\n\n| method | top-1 %, paper |\n|---|---:|\n| focal | 76.8 |" in papers
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "Chromium is missing: apt-get install chromium"
        pytest.skip("no Chromium here: apt-get install chromium")
    tab = Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def matrices(tmp_path_factory):
    """results/index.html without runs and with two experiments, and the tests of these two."""
    folder = tmp_path_factory.mktemp("matrices")
    for name, found in (("none", {}), ("some", made_up("fashion-fine", "cifar10-resnet20"))):
        judged = claims.tables(finished.metrics_of(found))
        (folder / f"{name}.html").write_text(index_page.index_page(found, judged))
    return folder, [test for tests in judged.values() for test in tests]


# Of each cell: row, column and verdict; of its picture: title, kind, filling, the mark's offset from zero, the interval's width.
CELLS = """[...document.querySelectorAll('td.tested')].map(cell => {
    const middle = part => { const box = cell.querySelector(part).getBoundingClientRect(); return (box.left + box.right) / 2; };
    const column = [...cell.parentElement.children].indexOf(cell) - 1, picture = cell.querySelector('svg');
    return {
        row: cell.parentElement.querySelector('th').innerText, verdict: cell.querySelector('.verdict').innerText,
        column: document.querySelectorAll('.experiment a')[column].innerText,
        title: picture && picture.querySelector('title').textContent, kind: picture && picture.classList[0],
        filled: picture && getComputedStyle(picture.querySelector('.mark')).fill == getComputedStyle(picture).color,
        marked: picture && middle('.mark') - middle('.zero'),
        line: picture && cell.querySelector('.line').getBoundingClientRect().width,
    };
})"""


def test_every_test_has_its_cell(matrices, browser):
    """It has the verdict, the numbers, and a picture whose mark is filled if the claim is decided, on the side of the sign."""
    folder, found = matrices
    browser.open(folder / "some.html", 1280)
    cells = browser.evaluate(CELLS)
    assert len(cells) == len(found)
    order = {name: index for index, name in enumerate(dict.fromkeys(cell["column"] for cell in cells))}
    assert order.keys() == {"fashion-fine", "cifar10-resnet20"}
    by = {}
    for cell in cells:
        by.setdefault((cell["row"].splitlines()[0].lower(), cell["column"]), []).append(cell)
    for test in found:
        cell = by[test.claim.sentence.lower(), test.experiment].pop(0)
        assert cell["verdict"] == ("no test" if test.nothing else test.verdict)
        assert f"{test.claim.id}, {test.claim.source}" in cell["row"]
        if test.nothing:
            assert cell["title"] is None
            continue
        assert cell["title"].startswith(f"{test.experiment}. ") and f"over {len(test.values)} seeds" in cell["title"]
        assert f"{test.mean:+.{claims_tables.places_of(test.claim)}f}".replace("-", "−") in cell["title"]
        assert f"p {test.p:.2g}, corrected {test.corrected:.3g}: {test.verdict}." in cell["title"]
        assert cell["filled"] == (test.corrected < verdicts.LEVEL) == (cell["kind"] != "open")
        assert cell["marked"] * test.mean > 0 or abs(cell["marked"]) < 0.5
        assert cell["line"] > 0 or test.low == test.high
    assert not any(by.values())


WIDER = """[...document.querySelectorAll('body *')].filter(element => {
    const box = element.getBoundingClientRect();
    return !element.parentElement.closest('.scroll, .plain') && box.width > 0
        && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(element => element.outerHTML.slice(0, 120))"""
SMALL = """[...document.querySelectorAll('body *')].filter(element => element.getClientRects().length
    && parseFloat(getComputedStyle(element).fontSize) < 12).map(element => element.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["none", "some", "committed"])
def test_the_matrix_in_chromium(name, width, dark, matrices, browser):
    path = ROOT / "results/index.html" if name == "committed" else matrices[0] / f"{name}.html"
    browser.open(path, width, dark)
    assert browser.requests() == [] and browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(WIDER) == [] and browser.evaluate(SMALL) == []
    assert browser.evaluate("[...document.querySelectorAll('svg')].every(one => one.querySelector('title').textContent.trim())")
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 24, 26)" if dark else "rgb(255, 255, 255)")
    assert set(re.findall(r"(?:https?:)?//[^\s\"'<]+", path.read_text())) == set()
    shown = browser.evaluate("document.querySelectorAll('[data-paper]').length")
    assert shown >= len({claim for group in claims.TOPICS.values() for claim in group})  # every claim is a row or on the list


def test_filters_of_the_matrix(matrices, browser):
    folder, found = matrices

    def choose(index, value):
        browser.evaluate(
            f"(() => {{ const one = document.querySelectorAll('#filters select')[{index}]; one.value = {json.dumps(value)};"
            "one.dispatchEvent(new Event('change')); })()"
        )
        assert browser.evaluate(f"document.querySelectorAll('#filters select')[{index}].value") == value
        return browser.evaluate("[...document.querySelectorAll('td.tested')].filter(one => one.getClientRects().length).length")

    browser.open(folder / "some.html", 1280)
    of_data = [test for test in found if test.experiment == "fashion-fine"]
    assert choose(1, "Fashion-MNIST") == len(of_data) < len(found)
    assert choose(0, claims.OVERVIEW) == sum(test.claim.source == claims.OVERVIEW for test in of_data)
    assert choose(1, "") == sum(test.claim.source == claims.OVERVIEW for test in found)
    assert choose(0, "") == len(found)
    assert browser.evaluate("document.querySelector('#filters span').innerText") == f"{len(found)} of {len(found)} tests shown"
    # Without JavaScript there are no filters, and everything is shown.
    assert 'id="filters" hidden' in (folder / "some.html").read_text()


def test_the_matrix_escapes_what_it_shows(monkeypatch):
    hostile = dataclasses.replace(
        experiments.EXPERIMENTS["fashion-fine"], title="<script>alert(1)</script>", data='"><img src=x>'
    )
    found = made_up("fashion-fine")
    monkeypatch.setitem(experiments.EXPERIMENTS, "fashion-fine", hostile)
    page = index_page.index_page(found, claims.tables(finished.metrics_of(found)))
    assert page.count("&lt;script&gt;alert(1)") >= 2 and "<script>alert" not in page and "<img" not in page
    assert 'data-data="&#34;&gt;&lt;img src=x&gt;"' in page


def test_tables_and_blocks():
    table = {"command": "c", "environment": "e", "columns": [["a", ""], ["b", ".2f"], ["n", ",d"]]}
    text = tables.markdown(table | {"rows": [["x", 1.236, 1234], ["y", None, 5]]})
    assert text == "`c`: e.\n\n| a | b | n |\n|---|---:|---:|\n| x | 1.24 | 1,234 |\n| y |  | 5 |\n"
    page = "1\n<!-- results/x.json -->\nold\n<!-- end of results/x.json -->\n2\n"
    new = tables.block(page, "results/x.json", "new\n")
    assert new == page.replace("old", "new") and tables.block(new, "results/x.json", "old\n") == page
    with pytest.raises(ValueError, match="needed once each"):
        tables.block(page, "results/y.json", "")


def test_prose_is_filled_and_code_and_tables_are_not():
    code, row, long = "```\n" + "x " * 80 + "\n- a\n```", "| " + "x " * 80 + "|", "`python run.py " + "--option " * 15 + "`"
    words = " ".join(f"word{i}" for i in range(30))
    shown = tables.wrap(f"one\ntwo\n- {words}\n- three\n  four\n\n{code}\n{row}\n{long}\n{words}\n").split("\n")
    assert shown[0] == "one two" and shown[1].startswith("- word0 ") and shown[2].startswith("  word") and "- three four" in shown
    assert "\n".join(shown).count(f"\n\n{code}\n{row}\n{long}\nword0") == 1 and shown[-1] == ""
    assert max(len(line) for line in shown if line[:1] not in ("x", "|", "`")) <= 100
    assert " ".join("\n".join(shown).split()).count(words) == 2
