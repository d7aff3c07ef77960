"""Conv/common_resnet: a student learns from a teacher's model or stored logits; classes by name; resumption; bad teachers."""

import pytest
import torch
import torch.nn.functional as F

from subprojects import Subproject
from training import assert_same, log

SUBPROJECT = conv = Subproject("Conv/common_resnet")
InputError = conv.load("errors").InputError
states, options, train, teacher = (conv.load(name) for name in ("states", "options", "train", "teacher"))
QUICK = "--model resnet8 --width 8 --stem-stride 2 --device cpu --batch-size 200 --warmup-epochs 0".split()


def trained(folder, *words):
    """The checkpoint of a quick run on the digits, of one epoch by default."""
    words = [*QUICK, "--epochs", "1", "--output-dir", str(folder), *(str(word) for word in words)]
    train.main(options.get_parser().parse_args(words))
    return states.read(folder / "checkpoint.pth")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A teacher's checkpoint, and its logits on the unaugmented training images, computed here."""
    folder = tmp_path_factory.mktemp("teacher")
    with conv.active():
        state = trained(folder, "--loss", "ce", "--epochs", 3, "--lr", 0.05)
        model = conv.load("models").create_model(state["args"], 10).eval()
        model.load_state_dict(state["model"])
        inputs = train.Inputs("digits", None, 8, 1.0, state["args"]["mean"], state["args"]["std"], "cpu")
        data = train.open_data(inputs)[0]
        with torch.no_grad():
            logits = torch.cat([model(images) for images, _ in data.evaluation_batches(200)])
    torch.save({"logits": logits, "labels": data.labels, "classes": state["classes"]}, folder / "logits.pt")
    return folder


def test_soft_distillation_is_the_formula(taught):
    """The loss is (1 - a) CE + a tau^2 KL(teacher || student), averaged over the batch, here from float64 probabilities."""
    logits = torch.randn(6, 10, dtype=torch.float64)
    targets, rows, alpha, tau = torch.arange(6), torch.arange(6), 0.3, 2.5
    stored = torch.load(taught / "logits.pt", weights_only=True)["logits"][:6].double()
    p, q = (stored / tau).softmax(1), (logits / tau).softmax(1)
    expected = (1 - alpha) * -(logits.softmax(1).log()[rows, targets]).mean() + alpha * tau**2 * (p * (p / q).log()).sum(1).mean()
    model = teacher.StoredTeacher(stored)
    model.at(rows)
    distil = teacher.Distillation(model, "soft", alpha, tau)
    # The code computes the distillation term in float32.
    assert distil(torch.nn.CrossEntropyLoss(), None, targets, logits).item() == pytest.approx(expected.item(), abs=1e-5)
    hard = teacher.Distillation(model, "hard", alpha, tau)(torch.nn.CrossEntropyLoss(), None, targets, logits)
    expected = (1 - alpha) * F.cross_entropy(logits, targets) + alpha * F.cross_entropy(logits, stored.argmax(1))
    assert hard.item() == pytest.approx(expected.item(), abs=1e-12)


def test_stored_logits_teach_as_the_model_does_without_augmentation(taught, tmp_path):
    """The weights agree up to the rounding of differently composed batches, and differ from those without a teacher."""
    words = ["--distillation-type", "soft", "--distillation-alpha", 0.7, "--distillation-tau", 2, "--padding", 0, "--no-flip"]
    model = trained(tmp_path / "model", *words, "--teacher-path", taught / "checkpoint.pth")
    stored = trained(tmp_path / "stored", *words, "--teacher-logits", taught / "logits.pt")
    plain = trained(tmp_path / "plain", "--padding", 0, "--no-flip")
    for key, value in model["model"].items():
        torch.testing.assert_close(value, stored["model"][key], atol=1e-4, rtol=1e-4)
    assert (model["model"]["linear.weight"] - plain["model"]["linear.weight"]).abs().max() > 1e-3
    assert not any("teacher" in key for key in model["model"]) and model["args"]["teacher_path"] == str(taught / "checkpoint.pth")
    part = trained(
        tmp_path / "part", *words, "--teacher-logits", taught / "logits.pt", "--imbalance-ratio", 2, "--label-noise", 0.2
    )
    inputs = train.Inputs("digits", None, 8, 1.0, *(model["args"][key] for key in ("mean", "std")), "cpu")
    data = train.open_data(inputs, imbalance_ratio=2, label_noise=0.2)[0]
    content = torch.load(taught / "logits.pt", weights_only=True)["logits"]
    own = teacher.stored_teacher(taught / "logits.pt", data, 0.2).logits  # of the images kept, not of the first ones
    assert torch.equal(own, content[part["training_rows"]]) and len(own) < len(content)


@pytest.mark.parametrize(
    ("loss", "kind", "source", "more"),
    [("maxsup", "soft", "checkpoint.pth", "--mixup-alpha 0.3 --cutmix-alpha 1"), ("ols", "hard", "logits.pt", "--cutout 2")],
)
def test_a_killed_students_run_goes_on_to_the_same_weights(loss, kind, source, more, taught, tmp_path, monkeypatch):
    """The run is interrupted after the first of two epochs is saved, then resumed. The student may use any loss."""
    option = "--teacher-logits" if source.endswith(".pt") else "--teacher-path"
    words = ["--loss", loss, "--distillation-type", kind, option, taught / source, *more.split()]
    whole = trained(tmp_path / "whole", *words, "--epochs", 2)
    assert [line["train_top1"] is None for line in log(tmp_path / "whole")] == 2 * ["mixup" in more]
    save = train.save

    def once(*parts):
        save(*parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save", once)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", *words, "--epochs", 2)
    monkeypatch.undo()
    assert states.read(tmp_path / "broken/checkpoint.pth")["epoch"] == 0
    broken = trained(tmp_path / "broken", *words, "--epochs", 2, "--resume", "auto")
    for key in ("model", "optimizer", "lr_scheduler", "loss"):
        assert_same(whole[key], broken[key])


def test_classes_are_matched_by_name_and_inputs_by_their_statistics(taught, tmp_path):
    """A teacher gives the same logits with its outputs reversed, and to a student with another mean and standard deviation."""
    state = states.read(taught / "checkpoint.pth")
    order = list(range(9, -1, -1))
    weights = state["model"] | {key: state["model"][key][order] for key in ("linear.weight", "linear.bias")}
    torch.save(state | {"model": weights, "classes": [state["classes"][row] for row in order]}, tmp_path / "reversed.pth")
    stats = (state["args"]["mean"], state["args"]["std"])
    images = torch.rand(5, 3, 8, 8)
    models = [
        teacher.build_teacher(str(path), None, 8, stats, state["classes"])
        for path in (taught / "checkpoint.pth", tmp_path / "reversed.pth")
    ]
    torch.testing.assert_close(models[0](images), models[1](images), atol=1e-6, rtol=1e-6)
    other = ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    shifted = teacher.build_teacher(str(taught / "checkpoint.pth"), None, 8, other, state["classes"])

    def normalised(mean, std):
        return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    torch.testing.assert_close(shifted(normalised(*other)), models[0](normalised(*stats)), atol=1e-4, rtol=1e-4)


def test_bare_weights_teach_once_their_model_is_named(taught, tmp_path):
    """They teach as their checkpoint does if the student has the same mean and standard deviation."""

    def bare(state):
        weights = {f"module.{key}": value for key, value in state["model"].items()}
        torch.save({"state_dict": weights}, tmp_path / "bare.pth")
        return str(tmp_path / "bare.pth")

    state = trained(tmp_path / "whole", "--loss", "ce", "--width", 16, "--stem-stride", 1)
    rest = (8, (state["args"]["mean"], state["args"]["std"]), state["classes"])
    with pytest.raises(InputError, match="--teacher-model names the model"):
        teacher.build_teacher(bare(state), None, *rest)
    images = torch.randn(5, 3, 8, 8)
    whole = teacher.build_teacher(str(tmp_path / "whole/checkpoint.pth"), None, *rest)(images)
    torch.testing.assert_close(teacher.build_teacher(bare(state), "resnet8", *rest)(images), whole)
    with pytest.raises(InputError, match="--teacher-model resnet14: .* says that it is a resnet8"):
        teacher.build_teacher(str(tmp_path / "whole/checkpoint.pth"), "resnet14", *rest)
    with pytest.raises(InputError, match="another model's"):  # its width is 8, not 16
        teacher.build_teacher(bare(states.read(taught / "checkpoint.pth")), "resnet8", *rest)


def test_bad_teachers(taught, tmp_path):
    state = states.read(taught / "checkpoint.pth")
    stored = torch.load(taught / "logits.pt", weights_only=True)
    (tmp_path / "torn.pth").write_bytes((taught / "checkpoint.pth").read_bytes()[:-500])
    torch.save(state | {"classes": [f"class {number}" for number in range(10)]}, tmp_path / "others.pth")
    torch.save(state | {"args": state["args"] | {"input_size": 32}}, tmp_path / "size.pth")
    torch.save(state | {"args": state["args"] | {"library": "timm"}}, tmp_path / "timm.pth")
    torch.save(stored | {"logits": stored["logits"][:100], "labels": stored["labels"][:100]}, tmp_path / "short.pt")
    torch.save(stored | {"labels": stored["labels"].flip(0)}, tmp_path / "order.pt")
    torch.save(stored | {"classes": [*"012345678", "x"]}, tmp_path / "names.pt")
    torch.save({"logits": 3}, tmp_path / "none.pt")
    soft = "--distillation-type soft"
    cases = {
        f"{soft} --teacher-path {tmp_path}/none.pth": ("none.pth: no such checkpoint",),
        f"{soft} --teacher-path {tmp_path}/torn.pth": ("torn.pth: damaged",),
        f"{soft} --teacher-path {tmp_path}/others.pth": ("others.pth: the teacher lacks 10 of the student's 10 classes",),
        f"{soft} --teacher-path {tmp_path}/size.pth": ("trained on 32 px, the student gets 8 px",),
        f"{soft} --teacher-path {tmp_path}/timm.pth": ("cannot be built here", "--teacher-logits"),
        f"{soft} --teacher-logits {tmp_path}/short.pt": ("100 rows for 1,400 training images",),
        f"{soft} --teacher-logits {tmp_path}/order.pt": ("of its labels are not those", "order of the training split"),
        f"{soft} --teacher-logits {tmp_path}/names.pt": ("names.pt: the teacher lacks 1", "9"),
        f"{soft} --teacher-logits {tmp_path}/none.pt": ("none.pt: not a logits file",),
        f"{soft} --teacher-logits {taught}/logits.pt --mixup-alpha 1": ("--teacher-logits", "mixed"),
        f"{soft} --teacher-logits a --teacher-path b": ("either --teacher-path or --teacher-logits",),
        f"{soft} --distillation-alpha 1.5 --teacher-path a": ("--distillation-alpha 1.5: must lie between 0 and 1",),
        f"{soft} --distillation-tau 0 --teacher-path a": ("--distillation-tau 0",),
        "--distillation-type hard --distillation-tau 2 --teacher-path a": ("--distillation-tau 2", "not hard"),
        soft: ("--distillation-type soft: give",),
        "--teacher-path a": ("--teacher-path: needs --distillation-type",),
        "--distillation-alpha 0.3": ("--distillation-alpha 0.3: needs --distillation-type",),
        f"{soft} --teacher-logits a --teacher-model resnet8": ("--teacher-model resnet8",),
    }
    for words, pieces in cases.items():
        with pytest.raises(InputError) as error:
            trained(tmp_path / "run", "--overwrite", *words.split())
        assert all(piece in str(error.value) for piece in pieces) and "\n" not in str(error.value), (words, error.value)
