"""Tasks/tabular: its numbers against scikit-learn and brute force, its commands killed and resumed, and every bad input."""

import argparse
import json
import os
import subprocess
import sys
import warnings
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.compose import make_column_transformer
from sklearn.metrics import log_loss
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from conftest import ROOT, complains, run
from subprojects import Subproject
from training import kill_after, log

SUBPROJECT = tabular = Subproject("Tasks/tabular")
main, data, metrics, errors = (tabular.load(name) for name in ("main", "data", "metrics", "errors"))
MAIN = ROOT / "Tasks/tabular/main.py"


def train(*words):
    with tabular.active():
        main.main(main.get_parser().parse_args([str(word) for word in words]))


def load(path):
    return torch.load(path, weights_only=True)


def refused(*words):
    """The message of the InputError with which a command ends."""
    with pytest.raises(errors.InputError) as caught:
        train(*words)
    return str(caught.value)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV file of 400 rows: a number with missing values, a text, a code, and a target that depends on the first two."""
    random = np.random.default_rng(0)
    size, colour = random.normal(50, 20, 400), random.choice(["red", "green", "blue"], 400)
    code = random.integers(1, 4, 400)
    target = np.where(size + 30 * (colour == "red") + random.normal(0, 10, 400) > 60, "yes", "no")
    rows = [f"{s:.3f};{c};{k};{t}" for s, c, k, t in zip(size, colour, code, target, strict=True)]
    rows[3] = rows[3].replace(rows[3].split(";")[0], "", 1)
    rows[7] = rows[7].replace(rows[7].split(";")[0], "NA", 1)
    path = tmp_path_factory.mktemp("table") / "toy.csv"
    path.write_text("\n".join(['"size";"colour";"code";"bought"', *rows]) + "\n")
    return path


# ------------------------------------------------------------------------------------------------- numbers


def test_digits_are_learnt_and_logged(tmp_path):
    """Chance is 10 %; the log, the logits file and the checkpoint agree with scikit-learn's figures of the same logits."""
    train("--data", "digits", "--output_dir", tmp_path / "run", "--logits", tmp_path / "l.pt")
    last, found, state = log(tmp_path / "run")[-1], load(tmp_path / "l.pt"), load(tmp_path / "run/checkpoint.pth")
    logits, labels = found["logits"], found["labels"].numpy()
    assert logits.shape == (360, 10) and logits.dtype == torch.float32 and found["classes"] == list("0123456789")
    assert [line["alpha"] for line in log(tmp_path / "run")] == pytest.approx(np.linspace(0.1, 0.2, 10))
    assert np.diff([line["seconds"] for line in log(tmp_path / "run")], prepend=0).min() > 0  # since the start of the run
    assert last["val_top1"] > 93 and last["epoch"] == 10 and last["train_top1"] > last["val_top1"]
    probabilities = softmax(logits.double().numpy(), 1)
    assert last["val_top1"] == pytest.approx(100 * (probabilities.argmax(1) == labels).mean(), abs=1e-9)
    assert last["val_nll"] == pytest.approx(log_loss(labels, probabilities), abs=1e-9)
    facts = {"model": "mlp", "library": "tabular", "num_classes": 10, "input_size": 64, "data": "digits", "loss": "maxsup"}
    assert {key: state["args"][key] for key in facts} == facts and state["epoch"] == 9 and len(state["args"]["columns"]) == 64
    assert state["model"]["0.weight"].shape == (256, 64) and state["model"]["2.weight"].shape == (128, 256)


def test_aurc_is_the_mean_over_all_orders_of_equal_confidences():
    """It equals the mean over every permutation that keeps the confidences sorted."""
    score, wrong = np.array([3.0, 1, 2, 2, 2, 1]), np.array([0.0, 1, 1, 0, 0, 0])
    risks = [
        np.mean(wrong[list(order)].cumsum() / np.arange(1, 7))
        for order in permutations(range(6))
        if (np.diff(score[list(order)]) <= 0).all()
    ]
    assert len(risks) == 12 and metrics.aurc(score, wrong) == pytest.approx(np.mean(risks), abs=1e-12)


def test_ece_and_order_near_certainty():
    """ECE equals a loop over its bins; MSPs that float32 rounds to 1 are still ranked."""
    logits = 3 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(500) % 4
    p = softmax(logits.double().numpy(), 1)
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert metrics.summarise(metrics.outcomes(logits, labels))["ece"] == pytest.approx(expected, abs=1e-12)
    certain = torch.tensor([[60.0, 0.0], [70.0, 0.0], [65.0, 0.0]])
    assert metrics.outcomes(certain, torch.zeros(3, dtype=torch.long))[1].argsort().tolist() == [0, 2, 1]


def test_every_epoch_has_an_order_of_its_own():
    """The rows in the last, partial batch differ between epochs and between seeds."""
    x, y = torch.arange(50.0)[:, None], torch.zeros(50, dtype=torch.long)

    class Last(torch.nn.Linear):
        def forward(self, rows):
            self.rows = rows.flatten().tolist()
            return super().forward(rows / 50)

    model, seen = Last(1, 2), []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        args = argparse.Namespace(seed=seed, epochs=2, batch_size=20)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        tabular.load("engine").train_one_epoch(model, torch.nn.CrossEntropyLoss(), x, y, optimizer, args, epoch)
        seen.append(model.rows)
    assert len(seen[0]) == 10 and seen[0] == seen[3] and len({tuple(rows) for rows in seen}) == 3


def test_the_encoding_knows_only_training_rows(table):
    """It equals an encoder fitted by hand on the training rows; the split is stratified and depends on the seed."""
    whole = data.read_csv(table, "bought", categorical=("code",))
    x, y, x_test, y_test, names = data.split_and_encode(whole, 0.25, seed=3)
    assert len(x) == 100 and len(x_test) == 300 and abs(y.float().mean() - y_test.float().mean()) < 0.02
    rows = {tuple(row) for row in torch.cat([x, x_test]).tolist()}
    size, colour, code = (whole.columns[name] for name in ("size", "colour", "code"))
    split = data.train_test_split(np.arange(400), train_size=0.25, random_state=3, stratify=whole.labels)[0]
    training = np.isin(np.arange(400), split)
    filled = np.where(np.isnan(size), np.nanmedian(size[training]), size)
    cells = np.column_stack([filled.astype(object), colour, code])
    encoder = make_column_transformer((StandardScaler(), [0]), (OneHotEncoder(sparse_output=False), [1, 2]))
    encoder.fit(cells[training])
    expected = torch.tensor(encoder.transform(cells).astype(np.float64)).float()
    assert names == ["size", "colour_blue", "colour_green", "colour_red", "code_1", "code_2", "code_3"]
    torch.testing.assert_close(x, expected[training], atol=0, rtol=0)
    torch.testing.assert_close(x_test, expected[~training], atol=0, rtol=0)
    assert len(rows) > 390 and x[:, 0].mean().abs() < 1e-6  # standardised over training rows
    other = data.split_and_encode(whole, 0.25, seed=4)[0]
    assert not torch.equal(other, x)


def test_a_category_unseen_in_training_is_zeros():
    columns = {"c": np.array(["a", "b"] * 20 + ["rare"]), "n": np.arange(41.0)}
    labels = np.array([0, 1] * 20 + [0])
    for seed in range(20):
        x, _, x_test, _, names = data.split_and_encode(data.Table(columns, labels, ["0", "1"]), 0.5, seed)
        if "c_rare" not in names:
            assert x.shape[1] == 3 and (x_test[:, 1:].sum(1) == 0).sum() == 1
            return
    raise AssertionError("the rare category was in every training split")


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("x,y\n" + "".join(f"{i % 7},{(33, 4, 10, 2)[i % 4]}\n" for i in range(40)))
    found = data.read_csv(path, "y")
    assert found.classes == ["2", "4", "10", "33"] and found.labels.tolist() == [3, 1, 2, 0] * 10


def test_decimal_commas_are_named(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("x;n;y\n" + "1,5;1;a\n2,25;2;b\n" * 4)
    assert data.read_csv(tmp_path / "t.csv", "y").columns["x"].dtype.kind == "U"
    assert "column 'x' is read as text, because its numbers have decimal commas" in capsys.readouterr().out
    data.read_csv(tmp_path / "t.csv", "y", categorical=("x",))
    assert "decimal" not in capsys.readouterr().out


def test_the_missing_values_are_counted(table, tmp_path, capsys):
    train("--data", table, "--target", "bought", "--epochs", 1, "--output_dir", tmp_path, "--loss", "ce")
    out = capsys.readouterr().out
    assert "column 'size': 2 missing values become the median of the training rows" in out and "no " in out


# ------------------------------------------------------------------------------------------------- runs


def test_codes_with_underscores_are_text(tmp_path):
    """NumPy reads 18_25 as a number."""
    rows = [f"{age},{index},{index % 2}" for index, age in enumerate(["18_25", "26_35", "36_99"] * 6)]
    (tmp_path / "t.csv").write_text("\n".join(["age,n,y", *rows]) + "\n")
    found = data.read_csv(tmp_path / "t.csv", "y")
    assert found.columns["age"].dtype.kind == "U" and found.columns["n"].dtype.kind == "f"


def test_losses_share_the_start_and_the_order(tmp_path):
    """alpha 0 is cross-entropy, up to the rounding of another computation; another seed gives other weights."""
    for name, words in {"ce": ["--loss", "ce"], "ls": ["--loss", "ls", "--alpha", 0], "b": ["--loss", "ce", "--seed", 1]}.items():
        train("--epochs", 2, "--output_dir", tmp_path / name, *words)
    ce, ls, other = (load(tmp_path / name / "checkpoint.pth")["model"]["0.weight"] for name in ("ce", "ls", "b"))
    torch.testing.assert_close(ce, ls, atol=1e-6, rtol=0)
    assert not torch.allclose(ce, other, atol=1e-2)


@pytest.mark.parametrize("loss", ["ols", "zipf", "logit-penalty", "focal"])
def test_every_loss_trains_two_classes(loss, table, tmp_path):
    train("--data", table, "--target", "bought", "--loss", loss, "--epochs", 8, "--batch-size", 16, "--output_dir", tmp_path)
    assert log(tmp_path)[-1]["val_top1"] > 75


def test_seeds_are_summarised(table, tmp_path, capsys):
    words = ["--data", table, "--target", "bought", "--loss", "ls", "--alpha", 0.2, "--epochs", 2, "--output_dir", tmp_path / "r"]
    train(*words, "--seeds", 3, "--seed", 5, "--logits", tmp_path / "l.pt")
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    finals = [log(tmp_path / f"r/seed{seed}")[-1]["val_aurc"] for seed in (5, 6, 7)]
    expected = {"mean": np.mean(finals), "std": np.std(finals, ddof=1)}
    assert summary["summary"]["val_aurc"] == pytest.approx(expected, abs=1e-12)
    assert len({load(tmp_path / f"l-seed{seed}.pt")["logits"].sum().item() for seed in (5, 6, 7)}) == 3
    assert "3 seeds, mean (standard deviation)" in capsys.readouterr().out
    train(*words, "--seeds", 4, "--seed", 5, "--resume", "auto")  # the finished ones are measured again, the fourth is trained
    again = json.loads((tmp_path / "r/summary.json").read_text())["seeds"]
    assert again[:3] == summary["seeds"] and len(again) == 4
    assert "summary.json already summarises other runs" in refused(*words, "--seeds", 1, "--seed", 20)
    text = (tmp_path / "r/summary.json").read_text()
    assert "a run with --loss ls, not maxsup" in refused(
        *words, "--seeds", 2, "--seed", 5, "--loss", "maxsup", "--resume", "auto"
    )
    assert "give one of them" in refused(*words, "--seeds", 2, "--resume", "auto", "--overwrite")
    hold = (
        "import fcntl, sys; file = open(sys.argv[1], 'a+'); fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path / "r/run.lock"], stdin=-1, stdout=-1) as other:
        other.stdout.readline()
        assert "another process is training there" in refused(*words, "--seeds", 1, "--seed", 30, "--overwrite")
        other.kill()
    assert (tmp_path / "r/summary.json").read_text() == text
    with pytest.raises(errors.InputError):  # --resume auto finds none of the runs to be replaced and all of the others
        train(*words, "--seeds", 2, "--seed", 7, "--overwrite", "--lr", 1e20)
    assert [seed for seed in range(5, 9) if (tmp_path / f"r/seed{seed}/checkpoint.pth").exists()] == [5, 6]
    with pytest.raises(errors.InputError):  # the run ends in NaN: no summary is better than one of other runs
        train(*words, "--seeds", 1, "--seed", 20, "--overwrite", "--lr", 1e20)
    assert not (tmp_path / "r/summary.json").exists()


def test_columns_may_be_named_like_the_values_of_others(tmp_path):
    rows = [f"{'ab'[i % 2]},{i % 7},{'yn'[i % 2]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["job,job_a,bought", *rows]) + "\n")
    train("--data", tmp_path / "t.csv", "--target", "bought", "--epochs", 1, "--output_dir", tmp_path / "r")
    assert load(tmp_path / "r/checkpoint.pth")["args"]["columns"] == ["job_a", "job_a", "job_b"]


def test_kill_and_resume_is_the_same_to_the_bit(tmp_path):
    """SIGKILL in the middle of the run, then --resume auto, gives the same as an uninterrupted run."""
    words = ["--loss", "ols", "--epochs", "60", "--batch-size", "32", "--output_dir"]
    train(*words, tmp_path / "whole", "--logits", tmp_path / "whole.pt")
    kill_after(4, tmp_path / "killed", MAIN, *words, tmp_path / "killed")
    done = load(tmp_path / "killed/checkpoint.pth")["epoch"] + 1
    assert 3 <= done < 60
    with open(tmp_path / "killed/log.jsonl", "a") as file:
        file.write('{"epoch": 4')  # half a line, as a kill can leave it
    train(*words, tmp_path / "killed", "--resume", "auto", "--logits", tmp_path / "killed.pt")
    a, b = (load(tmp_path / name / "checkpoint.pth") for name in ("whole", "killed"))
    for part in ("model", "loss"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    for key, moments in a["optimizer"]["state"].items():
        assert all(torch.equal(value, b["optimizer"]["state"][key][name]) for name, value in moments.items())
    assert torch.equal(load(tmp_path / "whole.pt")["logits"], load(tmp_path / "killed.pt")["logits"])
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in log(tmp_path / n)] for n in ("whole", "killed")]
    assert lines[0] == lines[1] and len(lines[0]) == 60


def test_a_prior_of_frequencies(table, tmp_path):
    """Label smoothing towards the training frequencies equals its formula."""
    y = torch.tensor([0] * 30 + [1] * 10)
    args = main.get_parser().parse_args(["--loss", "ls", "--alpha", "0.2", "--prior", "frequency"])
    criterion = main.build_criterion(args, y, 2)
    z = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    q = 0.8 * torch.eye(2)[y] + 0.2 * torch.tensor([0.75, 0.25])
    torch.testing.assert_close(criterion(z, y), -(q * z.log_softmax(1)).sum(1).mean(), atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------- bad input


def test_a_mistake_is_one_line(table, tmp_path):
    """As a process it exits with an error status, one line on stderr and no traceback."""
    result = run(MAIN, "--data", table, "--target", "buoght", "--output_dir", tmp_path / "r")
    complains(result, "--target buoght", "nearest name is 'bought'")
    for words, message in (
        (["--drop", "bought"], "--drop bought: the column is the --target"),
        (["--categorical", "bought"], "--categorical bought: the column is the --target, or dropped"),
    ):
        complains(run(MAIN, "--data", table, "--target", "bought", *words, "--output_dir", tmp_path / "r"), message)
    assert not (tmp_path / "r").exists()


BAD_TABLES = {
    "one value": ("x,y\n1,a\n2,a\n", "'y' has one value, 'a'"),
    "no value": ("x,y\n1,\n2,\n", "'y' has no value"),
    "no rows": ("x,y\n", "0 rows"),
    "empty": ("", "is empty"),
    "ragged": ("x,y\n1,a\n2\n", "data row 2 has 1 cells"),
    "same names": ("y,y\n1,a\n2,b\n", "'y' appears 2 times"),
    "only the target": ("y\na\nb\na\nb\n", "no columns remain"),
    "a continuous target": ("x,y\n" + "".join(f"{i},{i / 7}\n" for i in range(50)), "occur only once"),
    "open quote": ('x,y\n"1,a\n2,b\n', "not a CSV file"),
    "an identifier": ("x,y\n" + "".join(f"name{i},{i % 2}\n" for i in range(1200)), "'x' has 1,200 different texts"),
    "too many categories": (
        "a,b,c,d,e,f,g,y\n" + "".join(",".join(f"v{i}" for _ in range(7)) + f",{i % 2}\n" for i in range(1000)),
        "5,600 columns after encoding",
    ),
    "too large": ("x,y\n" + "".join(f"{i + 1}e307,{i % 2}\n" for i in range(9)), "too large to standardise"),
    "a text": ("x,y\n" + "word " * 201 + ",a\nshort,b\n", "column 'x' has a text of 1,004 characters"),
    "too few": ("x,y\n1,a\n2,a\n3,b\n4,b\n", "cannot be split"),
}


@pytest.mark.parametrize("content, message", BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables(content, message, tmp_path):
    (tmp_path / "bad.csv").write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert message in refused("--data", tmp_path / "bad.csv", "--target", "y", "--output_dir", tmp_path / "r")


def test_bad_files(tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"x,y\n1,caf\xe9\n2,b\n")
    words = ["--target", "y", "--output_dir", tmp_path / "r"]
    assert "byte 9 is not UTF-8" in refused("--data", tmp_path / "latin.csv", *words)
    assert "no such file" in refused("--data", "bank", "--data-path", tmp_path / "no.csv", *words).lower()
    assert "directory" in refused("--data", "bank", "--data-path", tmp_path, *words)
    assert "neither a data set" in refused("--data", "bnak", *words)
    (tmp_path / "file").write_text("")
    words = ["--data", "digits", "--seeds", 2, "--output_dir", tmp_path / "file"]
    assert "--output_dir" in (said := refused(*words)) and "cannot be written" in said


def test_odd_tables_are_read_and_said(tmp_path, capsys):
    """A column that repeats the target, one without values, and rows without a target give a warning each; training goes on."""
    rows = [f"{i % 5},{'NY'[i % 2]},{i % 2},," for i in range(40)] + ["3,N,?,,"]
    (tmp_path / "t.csv").write_text("x,again,y,empty,also\n" + "\n".join(rows) + "\n")
    train("--data", tmp_path / "t.csv", "--target", "y", "--epochs", 1, "--output_dir", tmp_path / "r", "--batch-size", 8)
    out = capsys.readouterr().out
    assert "column 'again' repeats the target 'y'" in out and "1 rows have no target" in out
    assert "column 'empty' has no values" in out and "column 'x' repeats" not in out
    train("--data", tmp_path / "t.csv", "--target", "y", "--drop", "again", "--epochs", 1, "--output_dir", tmp_path / "s")
    assert "repeats" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--alpha", 1.5], "--alpha 1.5: must lie between 0 and 1"),
        (["--loss", "ce", "--alpha", 0.1], "cross-entropy has no strength"),
        (["--loss", "focal", "--alpha-end", 1], "--alpha-end 1.0: is for --loss ls and maxsup"),
        (["--prior", "frequency"], "--prior frequency: is for --loss ls"),
        (["--epochs", 0], "--epochs 0"),
        (["--lr", "nan"], "--lr nan"),
        (["--train-share", 1], "--train-share 1.0"),
        (["--data", "bank"], "data/bank/README.md"),
        (["--data", "digits", "--target", "y"], "digits comes with scikit-learn"),
        (["--logits", "/no/such/folder/l.pt"], "--logits /no/such/folder/l.pt: must name a file in a folder that exists"),
        (["--logits", "/"], "--logits /: must name a file"),
        (["--logits", "checkpoint.pth"], "checkpoint.pth is the name of a run's own file"),
        (["--seeds", 2, "--resume", "x.pth"], "only --resume auto"),
        (["--resume", "/no/such.pth"], "no such checkpoint"),
        (["--lr", 1e20], "not finite"),
        (["--train-share", 0.001], "cannot be split"),
    ],
)
def test_bad_options(words, message, tmp_path):
    assert message in refused("--output_dir", tmp_path / "r", *words)


def test_a_run_is_not_lost_and_not_mixed_up(table, tmp_path):
    words = ["--epochs", 1, "--output_dir", tmp_path / "r"]
    train(*words)
    assert "--overwrite replaces it" in refused(*words)
    assert "give one of them" in refused(*words, "--overwrite", "--resume", "auto")
    assert "a run with --loss maxsup, not ce" in refused(*words, "--resume", "auto", "--loss", "ce")
    assert "a run with --seed 0, not 1" in refused(*words, "--resume", "auto", "--seed", 1)
    assert "a run with --train-share 0.8, not 0.5" in refused(*words, "--resume", "auto", "--train-share", 0.5)
    bought = ["--target", "bought", "--epochs", 1, "--output_dir", tmp_path / "bought"]
    train("--data", table, *bought)
    train("--data", os.path.relpath(table), *bought, "--resume", "auto")  # another spelling of the same file
    (tmp_path / "toy.csv").write_text(table.read_text().replace("red", "green"))
    changed = load(tmp_path / "bought/checkpoint.pth")
    changed["args"]["data"] = str(tmp_path / "toy.csv")
    torch.save(changed, tmp_path / "bought.pth")
    bought[-1] = tmp_path / "again"
    assert "trained on other rows" in refused("--data", tmp_path / "toy.csv", *bought, "--resume", tmp_path / "bought.pth")
    own = tmp_path / "r/checkpoint.pth"
    words[-1] = tmp_path / "other"
    assert "weights are another model's" in refused(*words, "--resume", damaged(own, tmp_path, lambda s: s["model"].popitem()))
    assert "it has no epoch" in refused(*words, "--resume", damaged(own, tmp_path, lambda s: s.pop("epoch")))
    (tmp_path / "half.pth").write_bytes(own.read_bytes()[:3000])
    assert "half.pth: damaged" in refused(*words, "--resume", tmp_path / "half.pth")
    torch.save({"model": print}, tmp_path / "code.pth")
    assert "more than tensors" in refused(*words, "--resume", tmp_path / "code.pth")
    (tmp_path / "log/log.jsonl").mkdir(parents=True)
    assert "log.jsonl: cannot be read or replaced" in refused("--epochs", 1, "--output_dir", tmp_path / "log")
    words[-1] = tmp_path / "r"
    train(*words, "--overwrite", "--loss", "ce")
    assert load(own)["args"]["loss"] == "ce"


def damaged(path, folder, change):
    state = load(path)
    change(state)
    torch.save(state, folder / "damaged.pth")
    return folder / "damaged.pth"
