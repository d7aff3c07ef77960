"""Tasks/text: padding that changes nothing, numbers against scikit-learn, runs killed and resumed, and every bad input."""

import json
import math
import os
import random
import shutil
import tarfile

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss

from conftest import ROOT, complains, run
from subprojects import Subproject
from training import kill_after, log

SUBPROJECT = text = Subproject("Tasks/text")
main, data, engine, models, errors = (text.load(name) for name in ("main", "data", "engine", "models", "errors"))
maxsup_loss = text.load("maxsup_loss")
MAIN = ROOT / "Tasks/text/main.py"
SMALL = ["--embedding-size", 16, "--hidden-size", 16, "--device", "cpu"]


def train(*words):
    with text.active():
        main.main(main.get_parser().parse_args([str(word) for word in [*SMALL, *words]]))


def refused(*words):
    """The message of the InputError with which a command ends."""
    with pytest.raises(errors.InputError) as caught:
        train(*words)
    return str(caught.value)


def load(path):
    return torch.load(path, weights_only=True)


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def sentence(label, rng):
    """8 to 30 neutral words, up to three of which are replaced by words that reveal the label."""
    words = [rng.choice("the film was a story of people and some music".split()) for _ in range(rng.randint(8, 30))]
    for _ in range(3):
        words[rng.randrange(len(words))] = rng.choice([["awful", "boring"], ["great", "lovely"]][label])
    return " ".join(words) + ".<br /><br />"


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """300 training and 100 test texts of two classes, and an unsup/ folder as in IMDB."""
    rng = random.Random(0)
    files = {f"train/unsup/{i}.txt": "nothing known" for i in range(3)}
    for split, count in (("train", 150), ("test", 50)):
        files |= {f"{split}/{name}/{i}.txt": sentence(k, rng) for k, name in enumerate(("neg", "pos")) for i in range(count)}
    return write(tmp_path_factory.mktemp("reviews"), files)


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    """A text in which each word follows from the one before, except after a full stop, where one of four sentences is drawn."""
    rng = random.Random(0)
    choices = ["one cat sat down", "two dogs ran away", "three birds sang songs", "four fish swam on"]
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    path.write_text(" . ".join(rng.choice(choices) for _ in range(1500)))
    return path


# ------------------------------------------------------------------------------------------------- tokens


def test_the_tokens_of_a_text():
    assert data.tokenise("It's GREAT!<br /><br />I don't 'know' Zoë_2; 10/10") == [
        *("it", "'s", "great", "!", "i", "don", "'t", "'", "know", "'", "zoë_2", ";", "10", "/", "10")
    ]
    assert data.tokenise("one two three", 2) == ["one", "two"] and data.tokenise(" <br /> ") == []


def test_the_vocabulary_is_the_most_frequent_words():
    words = data.make_vocabulary([["b", "d", "c"], ["c", "a", "b", "c"]], 6)
    assert words == ["<pad>", "<unk>", "<end>", "c", "b", "a"]  # a and d are equally frequent
    assert data.number(["a", "d", "c"], {w: i for i, w in enumerate(words)}) == [5, data.UNKNOWN, 3]


def test_reviews_as_they_are_read(reviews, capsys):
    found = data.open_reviews(reviews, 12, 1000)
    assert "train/unsup" in capsys.readouterr().out and "nothing" not in found.words
    assert found.classes == ["neg", "pos"] and found.train.targets.tolist() == [0] * 150 + [1] * 150
    for i in (0, 17, 60, 99):  # text by text, in the order of the file names
        folder = reviews / "test" / ["neg", "pos"][i // 50]
        expected = data.tokenise(sorted(folder.glob("*.txt"))[i % 50].read_text())[:12]
        length = int(found.test.lengths[i])
        assert [found.words[t] for t in found.test.tokens[i, :length]] == expected and length == len(expected)
        assert (found.test.tokens[i, length:] == data.PAD).all()


def test_windows_are_the_text_and_its_next_words():
    stream = [[5, 6, 7, 2], [8, 9, 2]]
    split = data.windows(stream, 3)
    assert split.lengths.tolist() == [3, 3, 1]
    real = models.real_tokens(split.lengths, 3)
    assert split.tokens[real].tolist() == [2, 5, 6, 7, 2, 8, 9] and split.targets[real].tolist() == [5, 6, 7, 2, 8, 9, 2]
    assert (split.tokens[~real] == data.PAD).all()


def test_every_text_once_per_epoch_in_batches_by_length():
    lengths = torch.randint(1, 257, (5000,), generator=torch.Generator().manual_seed(0))
    batches = engine.training_order(lengths, 32, seed=1, epoch=2)
    assert torch.cat(batches).sort().values.equal(torch.arange(5000)) and {len(b) for b in batches} <= {32, 5000 % 32}
    padded = sum(len(b) * int(lengths[b].max()) for b in batches)
    assert padded < 1.05 * lengths.sum()  # random batches give about 1.95
    again, other = (engine.training_order(lengths, 32, 1, epoch) for epoch in (2, 3))
    assert all(a.equal(b) for a, b in zip(batches, again, strict=True))
    company = [{frozenset(batch.tolist()) for batch in epoch} for epoch in (batches, other)]
    assert len(company[0] & company[1]) < 0.1 * len(batches)  # in another epoch a text shares its batch with other texts


# ------------------------------------------------------------------------------------------------- padding


@pytest.fixture
def batch():
    """Four texts of lengths 7, 1, 4, 7 with padding, and each of them by itself without."""
    lengths = torch.tensor([7, 1, 4, 7])
    tokens = torch.randint(3, 30, (4, 9), generator=torch.Generator().manual_seed(0)).int()
    tokens[~models.real_tokens(lengths, 9)] = data.PAD
    return tokens, lengths, [tokens[i : i + 1, :n] for i, n in enumerate(lengths.tolist())]


@pytest.mark.parametrize("name", models.MODELS)
def test_padding_changes_nothing(name, batch):
    """The outputs equal those of each text without padding (to 1e-5: float32 sums) and those with other words as padding."""
    tokens, lengths, alone = batch
    torch.manual_seed(0)
    model = models.MODELS[name](30, 5, 12, 8).eval()
    with torch.no_grad():
        together = model(tokens, lengths)
        expected = torch.cat([model(one, torch.tensor([one.shape[1]])) for one in alone])
        assert together.shape == ((4, 5) if name == "lstm" else (19, 5))
        torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)
        other = torch.where(models.real_tokens(lengths, 9), tokens, 7)
        torch.testing.assert_close(model(other, lengths), together, atol=0, rtol=0)


def test_the_classifier_reads_what_packed_sequences_read(batch):
    """It reads the final hidden state of PyTorch's own packed sequences."""
    tokens, lengths, _ = batch
    torch.manual_seed(0)
    model = models.Classifier(30, 2, 12, 8).eval()
    packed = torch.nn.utils.rnn.pack_padded_sequence(model.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
    torch.testing.assert_close(model(tokens, lengths), model.head(model.lstm(packed)[1][0][0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", maxsup_loss.LOSS_NAMES)
def test_no_loss_counts_padding(loss, batch):
    """A language model's loss on a padded batch, and its gradients, equal those on the same texts without padding."""
    tokens, lengths, alone = batch
    torch.manual_seed(0)
    model, criterion = models.LanguageModel(30, 30, 12, 8), maxsup_loss.make_loss(loss, 30)
    split = data.Split(tokens, lengths, tokens.roll(-1, 1))
    found, gradients = [], []
    for padded in (True, False):
        if padded:
            inputs, sizes, targets = split.batch(torch.arange(4), "cpu")
            logits = model(inputs, sizes)
        else:
            logits = torch.cat([model(one, torch.tensor([one.shape[1]])) for one in alone])
            targets = torch.cat([tokens.roll(-1, 1)[i, :n] for i, n in enumerate(lengths.tolist())]).long()
        value = criterion(logits, targets)
        gradients.append(torch.autograd.grad(value, list(model.parameters())))
        found.append(value)
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------- runs


def test_reviews_are_learnt_and_logged(reviews, tmp_path):
    """Chance is 50 %; the logits file follows the order of the files, and scikit-learn gets the logged metrics from it."""
    words = ["--data-path", reviews, "--lr", 0.02, "--epochs", 6, "--eval-every", 4, "--batch-size", 16, "--amp", "bf16"]
    train(
        *words, "--loss", "ls", "--alpha", 0.1, "--alpha-end", 0.2, "--output_dir", tmp_path / "r", "--logits", tmp_path / "l.pt"
    )
    lines, found, state = log(tmp_path / "r"), load(tmp_path / "l.pt"), load(tmp_path / "r/checkpoint.pth")
    assert [("val_top1" in line, "train_top1" in line) for line in lines] == [(i in (3, 5), i == 5) for i in range(6)]
    assert lines[-1]["val_top1"] > 85 and lines[-1]["train_top1"] > 85
    assert [line["alpha"] for line in lines] == pytest.approx(np.linspace(0.1, 0.2, 6))
    assert lines[-1]["seconds"] > sum(line["train_seconds"] for line in lines)  # of the whole run
    assert found["labels"].tolist() == [0] * 50 + [1] * 50 and found["classes"] == ["neg", "pos"]
    assert found["logits"].shape == (100, 2) and found["logits"].dtype == torch.float32
    p = softmax(found["logits"].double().numpy(), 1)
    assert lines[-1]["val_nll"] == pytest.approx(log_loss(found["labels"], p), abs=1e-9)
    assert lines[-1]["val_top1"] == pytest.approx(100 * np.mean(p.argmax(1) == found["labels"].numpy()), abs=1e-9)
    facts = {"model": "lstm", "library": "text", "num_classes": 2, "input_size": 256, "embedding_size": 16, "loss": "ls"}
    assert {key: state["args"][key] for key in facts} == facts and state["args"]["words"] == len(state["vocabulary"])
    model = models.Classifier(len(state["vocabulary"]), 2, 16, 16)  # the checkpoint states all these numbers
    model.load_state_dict(state["model"])
    texts = data.open_reviews(reviews, 256, 20_000)
    assert texts.words == state["vocabulary"]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(texts.test.tokens, texts.test.lengths), found["logits"], atol=1e-4, rtol=0)


def test_a_cpu_without_bfloat16_trains_in_float32(reviews, tmp_path, monkeypatch, capsys):
    """PyTorch has no bfloat16 LSTM for such a CPU."""
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2\n")
    monkeypatch.setattr(text.load("options"), "CPU_INFO", tmp_path / "cpuinfo")
    train("--data-path", reviews, "--epochs", 1, "--amp", "bf16", "--output_dir", tmp_path / "r")
    said = capsys.readouterr().out
    assert "--amp bf16: this CPU has no bfloat16 instructions" in said and "mixed precision off" in said
    assert load(tmp_path / "r/checkpoint.pth")["args"]["amp"] == "off"


def test_a_language_model_learns_the_text(prose, tmp_path):
    """One word in five is a free choice among four, so the lowest possible perplexity is 4 ** (1 / 5) = 1.32."""
    words = ["--data", "text", "--data-path", prose, "--lr", 0.02, "--epochs", 6, "--max-tokens", 32, "--batch-size", 8]
    train(*words, "--loss", "ce", "--output_dir", tmp_path / "r", "--logits", tmp_path / "l.pt")
    last, found = log(tmp_path / "r")[-1], load(tmp_path / "l.pt")
    assert 1.28 < last["val_perplexity"] < 1.5 and last["val_top1"] > 75
    p = softmax(found["logits"].double().numpy(), 1)
    assert found["classes"] == data.open_text(prose, 32, 10_000).words and p.shape == (len(found["labels"]), 20)
    assert math.log(last["val_perplexity"]) == pytest.approx(log_loss(found["labels"], p, labels=range(20)), abs=1e-9)


def test_a_large_vocabulary_gives_a_share_of_the_logits(prose, tmp_path, monkeypatch):
    """With room for a third of the tokens, every third token's logits are kept, and the metrics still count all."""
    words = ["--data", "text", "--data-path", prose, "--epochs", 1, "--max-tokens", 32, "--batch-size", 8]
    train(*words, "--output_dir", tmp_path / "a", "--logits", tmp_path / "a.pt")
    whole = load(tmp_path / "a.pt")
    monkeypatch.setattr(engine, "MOST_LOGITS", -(-whole["logits"].numel() // 3))
    train(*words, "--output_dir", tmp_path / "b", "--logits", tmp_path / "b.pt")
    part = load(tmp_path / "b.pt")
    assert torch.equal(part["logits"], whole["logits"][::3]) and torch.equal(part["labels"], whole["labels"][::3])
    assert log(tmp_path / "a")[-1]["val_nll"] == log(tmp_path / "b")[-1]["val_nll"]


def test_a_classifier_keeps_all_its_logits(reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "MOST_LOGITS", 10)
    train("--data-path", reviews, "--epochs", 1, "--output_dir", tmp_path / "r", "--logits", tmp_path / "l.pt")
    assert load(tmp_path / "l.pt")["logits"].shape == (100, 2)


@pytest.mark.parametrize("model", models.MODELS)
def test_kill_and_resume_is_the_same_to_the_bit(model, reviews, prose, tmp_path):
    """SIGKILL in the middle of the run, then --resume auto, gives the same as an uninterrupted run."""
    source = ["--data-path", reviews] if model == "lstm" else ["--data", "text", "--data-path", prose, "--max-tokens", 32]
    words = [*source, "--loss", "ols", "--epochs", 30, "--eval-every", 30, "--batch-size", 32]
    words += ["--embedding-size", 8, "--hidden-size", 8]
    train(*words, "--output_dir", tmp_path / "whole", "--logits", tmp_path / "whole.pt")
    kill_after(3, tmp_path / "killed", MAIN, *SMALL, *words, "--output_dir", tmp_path / "killed")
    assert 2 <= load(tmp_path / "killed/checkpoint.pth")["epoch"] + 1 < 30
    train(*words, "--output_dir", tmp_path / "killed", "--resume", "auto", "--logits", tmp_path / "killed.pt")
    a, b = (load(tmp_path / name / "checkpoint.pth") for name in ("whole", "killed"))
    for part in ("model", "loss"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    for key, moments in a["optimizer"]["state"].items():
        assert all(torch.equal(value, b["optimizer"]["state"][key][name]) for name, value in moments.items())
    assert torch.equal(load(tmp_path / "whole.pt")["logits"], load(tmp_path / "killed.pt")["logits"])
    timed = ("seconds", "train_seconds")
    lines = [[{k: v for k, v in line.items() if k not in timed} for line in log(tmp_path / n)] for n in ("whole", "killed")]
    assert lines[0] == lines[1] and len(lines[0]) == 30


def test_seeds_are_summarised(reviews, tmp_path):
    words = ["--data-path", reviews, "--loss", "ce", "--epochs", 1, "--output_dir", tmp_path / "r", "--seeds", 2]
    train(*words, "--logits", tmp_path / "l.pt")
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    nll = [log(tmp_path / f"r/seed{seed}")[-1]["val_nll"] for seed in (0, 1)]
    assert summary["summary"]["val_nll"]["mean"] == pytest.approx(np.mean(nll), abs=1e-12) and nll[0] != nll[1]
    assert load(tmp_path / "l-seed0.pt")["logits"].shape == load(tmp_path / "l-seed1.pt")["logits"].shape == (100, 2)
    assert "summary.json already summarises other runs" in refused(*words, "--seed", 5)


def test_embeddings_are_read(reviews, tmp_path, capsys):
    (tmp_path / "glove.txt").write_text("great 1 2 3.5\nunheard 4 5 6\n. . . 7 8 9\nawful -1 0 1e-1\n")
    words = data.open_reviews(reviews, 256, 20_000).words
    weight = torch.zeros(len(words), 3)
    assert data.read_embeddings(tmp_path / "glove.txt", words, weight) == 2
    assert weight[words.index("great")].tolist() == [1, 2, 3.5]
    assert weight[words.index("awful")].tolist() == pytest.approx([-1, 0, 0.1]) and weight.count_nonzero() == 5
    train(
        "--data-path",
        reviews,
        "--embedding-size",
        3,
        "--embeddings",
        tmp_path / "glove.txt",
        "--epochs",
        1,
        "--output_dir",
        tmp_path,
    )
    assert "2 of " in capsys.readouterr().out
    words = ["--data-path", reviews, "--embedding-size", 3, "--epochs", 2, "--output_dir", tmp_path, "--resume", "auto"]
    train(*words, "--embeddings", tmp_path / "other.txt")  # a run that has begun keeps its embeddings
    assert "note: --embeddings has no effect" in capsys.readouterr().out
    assert load(tmp_path / "checkpoint.pth")["args"]["embeddings"] == str(tmp_path / "glove.txt")


# ------------------------------------------------------------------------------------------------- bad input


def test_a_mistake_is_one_line(tmp_path):
    """As a process it exits with an error status, one line on stderr and no traceback."""
    complains(run(MAIN, "--data-path", tmp_path / "aclImdb"), "aclImdb: no such file or folder")
    complains(run(MAIN, "--lost", "ce"), "--lost: no such option; the nearest is --loss")


GOOD = {
    f"{split}/{name}/{i}.txt": f"{name} words {i}" for split in ("train", "test") for name in ("neg", "pos") for i in range(2)
}
BAD_FOLDERS = {
    "no test": ({name: c for name, c in GOOD.items() if "train" in name}, "has no folder test/"),
    "one class": ({name: c for name, c in GOOD.items() if "neg" in name}, "1 class folder; at least two"),
    "a class without training": ({n: c for n, c in GOOD.items() if "train/neg" not in n}, "no counterpart train/neg"),
    "no texts": (
        {n: c for n, c in GOOD.items() if "train/neg" not in n} | {"train/neg/a.csv": "x"},
        "train/neg: holds no .txt file",
    ),
}


@pytest.mark.parametrize("files, message", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_bad_folders(files, message, tmp_path):
    write(tmp_path / "d", files)
    assert message in refused("--data-path", tmp_path / "d", "--output_dir", tmp_path / "r")


def test_bytes_that_are_no_text(tmp_path):
    write(tmp_path / "d", GOOD)
    (tmp_path / "d/test/pos/1.txt").write_bytes(b"caf\xe9 noir")
    message = refused("--data-path", tmp_path / "d", "--output_dir", tmp_path / "r")
    assert "test/pos/1.txt" in message and "byte 3 is not UTF-8" in message
    assert "byte 3" in refused("--data", "text", "--data-path", tmp_path / "d/test/pos/1.txt", "--output_dir", tmp_path / "r")


def test_empty_reviews_count_and_are_said(tmp_path, capsys):
    write(tmp_path / "d", GOOD | {"test/neg/0.txt": "", "test/pos/0.txt": " <br />\n"})
    words = ["--data-path", tmp_path / "d", "--epochs", 1, "--output_dir", tmp_path / "r", "--logits", tmp_path / "l.pt"]
    train(*words)
    assert f"2 empty texts in {tmp_path / 'd/test'}" in capsys.readouterr().out
    logits = load(tmp_path / "l.pt")["logits"]
    assert len(logits) == 4 and torch.equal(logits[0], logits[2])


def test_bad_running_text(tmp_path):
    words = ["--data", "text", "--output_dir", tmp_path / "r", "--data-path"]
    write(tmp_path, {"few.txt": "only a few words here", "blank.txt": " \n", "folder/.hidden/a.txt": "x " * 999})
    assert "too few for windows of 64" in refused(*words, tmp_path / "few.txt")
    assert "holds no words" in refused(*words, tmp_path / "blank.txt")
    assert "holds no words" in refused(*words, tmp_path / "folder")


def test_the_last_tenth_of_every_file_is_for_testing(tmp_path):
    write(tmp_path, {f"{i}.md": f"start{i} " * 18 + f"end{i} " * 2 for i in range(3)} | {"short.txt": "nine " * 9})
    found = data.open_text(tmp_path, 8, 100)
    assert set(found.words) == {"<pad>", "<unk>", "<end>", "start0", "start1", "start2", "nine"}
    real = models.real_tokens(found.test.lengths, 8)
    assert found.test.targets[real].tolist() == [data.UNKNOWN, data.UNKNOWN, data.END] * 3
    assert int(found.train.lengths.sum()) == 3 * 19 + 10


BAD_VECTORS = {
    "width": ("great 1 2 3 4\n", "its vectors have 4 numbers, the model's embeddings 3"),
    "number": ("some 1 2 3\ngreat 1 two 3\n", "line 2 is not a word and 3 numbers"),
    "short": ("some 1 2 3\ngreat 1\n", "line 2 is not a word and 3 numbers (1 numbers)"),
    "long": ("some 1 2 3\ngreat 1 2 3 4\n", "line 2 is not a word and 3 numbers (4 numbers)"),
    "infinite": ("some 1 2 3\ngreat 1 inf 3\n", "line 2"),
    "foreign": ("azerty 1 2 3\n", "has none of the"),
}


@pytest.mark.parametrize("content, message", BAD_VECTORS.values(), ids=BAD_VECTORS)
def test_bad_embeddings(content, message, reviews, tmp_path):
    (tmp_path / "glove.txt").write_text(content)
    words = ["--data-path", reviews, "--embedding-size", 3, "--output_dir", tmp_path / "r", "--embeddings"]
    assert message in refused(*words, tmp_path / "glove.txt")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04\xff\xfe")
    assert "not a text file" in refused(*words, tmp_path / "zip") and "cannot be read" in refused(*words, tmp_path / "none")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--model", "lstm-lm"], "--model lstm-lm: does not read --data imdb"),
        (["--alpha", 2], "--alpha 2.0: must lie between 0 and 1"),
        (["--loss", "maxsup", "--prior", "frequency"], "--prior frequency: is for --loss ls"),
        (["--max-tokens", 0], "--max-tokens 0"),
        (["--vocabulary", 3], "--vocabulary 3"),
        (["--lr", 1e25, "--epochs", 2], "not finite"),
        (["--logits", "/no/such/folder/l.pt"], "--logits /no/such/folder/l.pt: must name a file in a folder that exists"),
    ],
)
def test_bad_options(words, message, reviews, tmp_path):
    assert message in refused("--data-path", reviews, "--output_dir", tmp_path / "r", *words)


def test_a_run_is_not_lost_and_not_mixed_up(reviews, tmp_path):
    words = ["--data-path", reviews, "--epochs", 1, "--output_dir", tmp_path / "r"]
    train(*words)
    assert "--overwrite replaces it" in refused(*words)
    assert "a run with --loss maxsup, not ce" in refused(*words, "--resume", "auto", "--loss", "ce")
    assert "a run with --hidden-size 16, not 8" in refused(*words, "--resume", "auto", "--hidden-size", 8)
    assert "a run with --max-tokens 256, not 9" in refused(*words, "--resume", "auto", "--max-tokens", 9)
    shutil.copytree(reviews, tmp_path / "fewer")
    next((tmp_path / "fewer/train").rglob("*.txt")).write_text("other words")
    words[1] = tmp_path / "fewer"
    assert "trained on other texts" in refused(*words, "--resume", "auto")


def test_an_archive_of_reviews_is_read_to_its_checksum(tmp_path):
    """A flipped bit in a review that gzip stored uncompressed is noticed. The good archive lacks reviews, which is reported."""
    file = tmp_path / "pos.txt"
    file.write_bytes(os.urandom(2000))  # what does not compress is stored
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(file, "./aclImdb/train/pos/0_9.txt")
    command = [ROOT / "data/imdb/prepare.py", "--root", tmp_path, "--archive", tmp_path / "a.tar.gz"]
    complains(run(*command), "train/neg: 0 reviews, not 12,500")
    content = bytearray((tmp_path / "a.tar.gz").read_bytes())
    (tmp_path / "a.tar.gz").write_bytes(content[:1500])
    complains(run(*command), "damaged, or ends too early")
    content[1500] ^= 1
    (tmp_path / "a.tar.gz").write_bytes(content)
    complains(run(*command), "damaged, or not a tar archive")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "pos.txt"]
