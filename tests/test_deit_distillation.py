"""Deit/: students that learn from a teacher, with and without DeiT's distillation token."""

from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from training import DEIT, PLAIN, SMALL, assert_same, load, log, options, torchrun

SUBPROJECT = DEIT
InputError, main = DEIT.load("errors").InputError, DEIT.load("main").main
distillation = DEIT.load("distillation")


@pytest.fixture(scope="module")
def teacher(few, tmp_path_factory):
    """A small ResNet trained by Deit/, whose inputs have another mean than the students'."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    words = ["--model", "test_resnet", "--opt", "sgd", "--lr", 0.05, "--unscale-lr", "--mean", 0.5, 0.5, 0.5]
    with DEIT.active():
        main(options(*PLAIN, *words, "--data-path", few, "--output_dir", folder, "--epochs", 4, "--batch-size", 16))
    return folder / "checkpoint.pth"


def refused(match, *words):
    with pytest.raises(InputError, match=match) as error:
        main(options(*SMALL, *words))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_terms_against_their_definitions(tau):
    """They equal float64 sums over classes, as in the papers by Hinton et al. and on DeiT, up to float32 rounding of the term."""
    torch.manual_seed(0)
    z, t = 3 * torch.randn(5, 7), 3 * torch.randn(5, 7)
    p, q = ((logits.double() / tau).softmax(1) for logits in (z, t))
    divergence = sum((q[n, k] * (q[n, k] / p[n, k]).log()).item() for n in range(5) for k in range(7)) * tau**2
    assert distillation.distillation_term(z, t, "soft", tau).item() == pytest.approx(divergence / 5, rel=1e-5)
    assert distillation.distillation_term(z, t, "soft", tau, per_element=True).item() == pytest.approx(divergence / 35, rel=1e-5)
    hard = -sum(z[n].double().log_softmax(0)[t[n].argmax()].item() for n in range(5)) / 5
    assert distillation.distillation_term(z, t, "hard", tau).item() == pytest.approx(hard, rel=1e-6)


def test_the_whole_loss_and_which_logits_learn():
    """The distillation token learns only from the teacher, the class token only from the labels; the teacher gets no gradient."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    known = distillation.Teacher(model)
    images, targets = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    z, token = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    both = distillation.Distillation(known, "hard", 0.25, 1.0, has_token=True)
    loss = both(nn.CrossEntropyLoss(), images, targets, z, token)
    expected = 0.75 * F.cross_entropy(z, targets) + 0.25 * F.cross_entropy(token, model(images).argmax(1))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert torch.allclose(z.grad, 0.75 * (z.detach().softmax(1) - F.one_hot(targets, 3)) / 4, atol=1e-7)
    assert token.grad.abs().sum() > 0 and all(p.grad is None for p in known.parameters())
    assert not known.train().model.training


def test_the_teacher_sees_its_own_normalisation_and_speaks_the_students_classes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    columns = distillation.match_columns(["a", "b", "c", "d"], 4, ["c", "a"], "teacher")
    mine, theirs = ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]), ([0.4, 0.4, 0.4], [0.2, 0.2, 0.2])
    pixels = torch.rand(5, 3, 2, 2)
    normalise = torchvision.transforms.Normalize
    found = distillation.Teacher(model, columns, mine, theirs)(normalise(*mine)(pixels))
    torch.testing.assert_close(found, model(normalise(*theirs)(pixels))[:, [2, 0]])
    assert distillation.match_columns(["a", "b"], 2, ["a", "b"], "teacher") is None
    for classes, outputs, match in ((["a"], 1, "lacks 1 of .*: b"), (None, 3, "3 outputs and no class names, the student 2")):
        with pytest.raises(InputError, match=match):
            distillation.match_columns(classes, outputs, ["a", "b"], "teacher")


def test_a_checkpoint_teaches_by_its_own_class_names_and_statistics(teacher, tmp_path):
    """It gives the same logits with its outputs reversed, and for students with another mean and standard deviation."""
    state = load(teacher.parent)
    turned = {f"fc.{end}": state["model"][f"fc.{end}"].flip(0) for end in ("weight", "bias")}
    torch.save(state | {"model": state["model"] | turned, "classes": state["classes"][::-1]}, tmp_path / "reversed.pth")
    pixels, normalise = torch.rand(5, 3, 32, 32), torchvision.transforms.Normalize
    found = []
    for path in (teacher, tmp_path / "reversed.pth"):
        for mean, std in ((state["args"]["mean"], state["args"]["std"]), ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])):
            args = SimpleNamespace(teacher_path=path, teacher_model=None, input_size=32, mean=mean, std=std)
            taught = DEIT.load("weights").build_teacher(args, state["classes"])
            found.append(taught(normalise(mean, std)(pixels)))
    assert (found[0][:, 0] - found[0][:, 1]).abs().min() > 1e-3
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=1e-4)


TOKEN = ["--model", "deit_tiny_distilled_patch16_224", "--batch-size", 32]


def test_interrupted_students_end_bit_identical(few, teacher, tmp_path, capsys):
    """Two epochs, whole or interrupted between them, with the token, mixup, stochastic depth and a moving average."""
    words = [*SMALL, *TOKEN, "--data-path", few, "--distillation-type", "soft", "--distillation-tau", 3, "--model-ema"]
    words += ["--teacher-path", teacher, "--lr", 2e-3, "--epochs", 2, "--eval-every", 2, "--output_dir"]
    main(options(*words, tmp_path / "whole"))
    monkey = options(*words, tmp_path / "broken")
    engine = DEIT.load("main")
    original, engine.say_epoch = engine.say_epoch, interrupt
    try:
        with pytest.raises(KeyboardInterrupt):
            main(monkey)
    finally:
        engine.say_epoch = original
    main(options(*words, tmp_path / "broken", "--resume", "auto"))
    for key in ("model", "model_ema", "optimizer", "loss", "epoch", "classes"):
        assert_same(load(tmp_path / "broken")[key], load(tmp_path / "whole")[key])
    assert [line["train_loss"] for line in log(tmp_path / "broken")] == [line["train_loss"] for line in log(tmp_path / "whole")]
    assert "teacher        test_resnet" in capsys.readouterr().out
    assert not any("teacher" in key for key in load(tmp_path / "whole")["model"])


def interrupt(*_):
    raise KeyboardInterrupt


def test_two_processes_distil_as_one_does(few, teacher, tmp_path):
    """The losses of the first steps agree to 1e-4 (float32 sums in another order), without stochastic depth and mixup."""
    words = [*PLAIN, "--data-path", few, "--distillation-type", "hard", "--teacher-path", teacher, "--lr", 4e-3, "--epochs", 3]
    words += ["--loss", "ls", "--output_dir"]
    main(options(*words, tmp_path / "one", "--batch-size", 64))
    two = torchrun(2, *words, tmp_path / "two", "--batch-size", 32)
    assert two.returncode == 0, two.stderr
    losses = [[line["train_loss"] for line in log(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and two.stdout.count("no distillation token") == 1


def test_a_share_of_nothing_is_training_without_a_teacher(few, teacher, tmp_path):
    words = [*PLAIN, "--data-path", few, "--batch-size", 32, "--epochs", 1, "--eval-every", 1, "--output_dir"]
    main(options(*words, tmp_path / "alone"))
    taught = ["--distillation-type", "soft", "--teacher-path", teacher, "--distillation-alpha"]
    main(options(*words, tmp_path / "none", *taught, 0))
    main(options(*words, tmp_path / "half", *taught, 0.5))
    assert_same(load(tmp_path / "alone")["model"], load(tmp_path / "none")["model"])
    with pytest.raises(AssertionError):
        assert_same(load(tmp_path / "half")["model"], load(tmp_path / "none")["model"])


def test_teachers_from_elsewhere_and_teachers_that_cannot_teach(few, teacher, tmp_path, capsys):
    words = [*PLAIN, "--data-path", few, "--batch-size", 64, "--epochs", 1, "--distillation-type", "hard", "--output_dir"]
    torch.save(torchvision.models.get_model("squeezenet1_1", num_classes=2).state_dict(), tmp_path / "squeeze.pth")
    taught = [
        *words,
        tmp_path / "a",
        "--input-size",
        64,
        "--teacher-model",
        "squeezenet1_1",
        "--teacher-path",
        tmp_path / "squeeze.pth",
    ]
    main(options(*taught))  # squeezenet's classifier is a convolution
    torch.save(torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=2).state_dict(), tmp_path / "shuffle.pth")
    rest = ["--teacher-path", tmp_path / "shuffle.pth"]
    bare = ["--eval", "--resume", tmp_path / "shuffle.pth", "--model", "shufflenet_v2_x0_5", "--data-path", few]
    main(options(*SMALL[2:], *bare))
    assert "is taken for shufflenet_v2_x0_5 at 32 px" in capsys.readouterr().out
    main(options(*words, tmp_path / "b", *rest, "--teacher-model", "shufflenet_v2_x0_5"))
    assert "has no class names: its outputs are assumed to be in the student's order" in capsys.readouterr().out
    words = words[len(SMALL) :]
    many = ["--num-classes", 5, "--distillation-type", "soft", "--teacher-path", teacher]
    refused("--num-classes 5: a teacher has a distribution over the 2 classes", *words, tmp_path / "c", *many)
    refused("the file does not say which model it is of; see --teacher-model", *words, tmp_path / "c", *rest)
    refused("neither timm nor torchvision has a model 'shuffle'", *words, tmp_path / "c", *rest, "--teacher-model", "shuffle")
    refused("the weights are another model's", *words, tmp_path / "c", *rest, "--teacher-model", "test_resnet")
    refused("none.pth: no such checkpoint", *words, tmp_path / "c", "--teacher-path", tmp_path / "none.pth")
    state = load(teacher.parent)
    torch.save(state | {"classes": ["cats", "dogs"]}, tmp_path / "animals.pth")
    refused("lacks 2 of the student's 2 classes: even, odd", *words, tmp_path / "c", "--teacher-path", tmp_path / "animals.pth")
    torch.save(state | {"args": state["args"] | {"library": "cifar"}}, tmp_path / "cifar.pth")
    refused("a CIFAR ResNet of Conv/common_resnet", *words, tmp_path / "c", "--teacher-path", tmp_path / "cifar.pth")
    torch.save(state | {"args": state["args"] | {"library": "torchvision", "blurpool": True}}, tmp_path / "blurred.pth")
    refused("with BlurPool, which only Conv/ builds", *words, tmp_path / "c", "--teacher-path", tmp_path / "blurred.pth")
    torch.save({"model": timm.create_model("deit_tiny_patch16_224", num_classes=2).state_dict()}, tmp_path / "vit.pth")
    small = ["--teacher-path", tmp_path / "vit.pth", "--teacher-model", "deit_tiny_patch16_224"]
    refused("deit_tiny_patch16_224 takes 224 px, not --input-size 32", *words, tmp_path / "c", *small)
