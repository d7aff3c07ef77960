"""The experiments: data, model, recipe, methods, seeds. Runs of one seed share initial weights, data order and augmentation.

Methods carry their strength in their name: "LS 0.1" is constant, "LS 0.1-0.2" rises linearly over training.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

CONV = "Conv/common_resnet/train.py"
MANY_SEEDS = 10  # an experiment with this many seeds gets no more
SMALL_RESNET = "ResNet-8 of width 16, first stage at half resolution"
SMALL = "--model resnet8 --stem-stride 2 --batch-size 128 --lr 0.1 --weight-decay 5e-4 --warmup-epochs 1"


def arms(*strengths: str) -> dict[str, str]:
    """CE, then LS and MaxSup at each strength: options of a trainer, by method name."""
    found = {"CE": "--loss ce"}
    for strength in strengths:
        alpha, _, end = strength.partition("-")
        words = f"--alpha {alpha}" + f" --alpha-end {end}" * bool(end)
        found |= {f"LS {strength}": f"--loss ls {words}", f"MaxSup {strength}": f"--loss maxsup {words}"}
    return found


MATCHED = arms("0.1", "0.1-0.2")
OTHERS = {"OLS": "--loss ols", "Zipf": "--loss zipf", "logit penalty": "--loss logit-penalty"}
SWEEP = arms("0.1", "0.1-0.2", "0.05", "0.2", "0.3") | OTHERS
FOCAL = {"focal": "--loss focal"}
LONG_TAIL = MATCHED | FOCAL | {"class-prior LS 0.1": "--loss ls --alpha 0.1 --prior frequency"}
TEACHERS = {f"teacher {name}": f"{words} --width 32" for name, words in arms("0.1").items()}
SOFT = "--distillation-type soft --distillation-alpha 0.9 --distillation-tau 4"  # the usual setting on small images
STUDENTS = {f"student of {name}": f"--loss ce {SOFT} --teacher-path {{teacher {name}}}/checkpoint.pth" for name in arms("0.1")}


@dataclass(frozen=True)
class Experiment:
    """What reproduce.py runs. strength: of LS and MaxSup in claims about the methods.

    data, title, model: words for the pages. options: those of the trainer that all runs share, including `--epochs`.
    methods: further options, by method name. {METHOD} in them stands for the folder of that method's run of the same seed,
    which then runs first. minutes: what a run takes on one CPU core, including its measurement.
    """

    data: str
    title: str
    model: str
    options: str
    methods: dict[str, str]
    seeds: int
    minutes: float
    trainer: str = CONV
    source: str | None = None  # NAME of --data-path NAME=PATH
    needed: bool = False  # whether that must be given: the trainer neither finds the data nor downloads it
    path: str | None = None  # data that a script of the repository makes
    prepare: str | None = None  # that script and its options
    logits: bool = False  # the trainer writes the logits of its test set, which are measured
    transfer: str | None = None  # linear transfer is to these finer classes: --transfer-labels of viz/measure.py
    strength: str = "0.1"
    first_seeds: int | None = None  # its seeds before more were added

    def __post_init__(self) -> None:
        if "--epochs" not in self.options.split():
            raise ValueError(f"{self.title}: options need --epochs, by which progress is counted")

    @property
    def epochs(self) -> int:
        words = self.options.split()
        return int(words[words.index("--epochs") + 1])

    @property
    def planned(self) -> int:
        """The number of its runs when it is finished."""
        return self.seeds * len(self.methods)

    @property
    def looks(self) -> int:
        """How often its verdicts may be examined: twice if it began with so few seeds that more may be added."""
        return 2 if (self.first_seeds or self.seeds) < MANY_SEEDS else 1

    def same_run(self, method: str, other: "Experiment") -> bool:
        """Whether another experiment has this method's runs, too: the same trainer with the same options."""
        return (self.trainer, self.options, self.methods[method]) == (other.trainer, other.options, other.methods.get(method))


def _small(data: str, name: str, title: str, options: str, methods: dict, minutes: float, seeds: int = 5, **more) -> Experiment:
    """Three stages of one block, the first at half the resolution: small enough to train several seeds on 2 cores."""
    return Experiment(data, title, SMALL_RESNET, f"--data {name} {SMALL} {options}", methods, seeds, minutes, source=name, **more)


def _fashion(*words, **more) -> Experiment:
    return _small("Fashion-MNIST", "fashion-mnist", *words, **more)


def _more(experiment: Experiment) -> Experiment:
    """The experiment with seeds added after the first verdicts, because `--power` said that they would decide further claims."""
    return replace(experiment, seeds=MANY_SEEDS, first_seeds=experiment.seeds)


def _cifar10(*words, **more) -> Experiment:
    return _small("CIFAR-10", "cifar10", *words, **more)


def _distillation(data: Callable[..., Experiment]) -> Experiment:
    widths = "teachers of width 32, students of width 16"
    found = data(widths, "--epochs 6", TEACHERS | STUDENTS | arms("0.1"), 4)
    return replace(found, model=f"ResNet-8, {widths}, first stage at half resolution")


def _resnet(depth: int, title: str, options: str, methods: dict, seeds: int, minutes: float, **more) -> Experiment:
    words = f"--data cifar10 --model resnet{depth} {options}"
    return Experiment("CIFAR-10", title, f"ResNet-{depth}", words, methods, seeds, minutes, source="cifar10", **more)


def _task(data: str, title: str, model: str, trainer: str, options: str, methods: dict, seeds: int, minutes: float) -> Experiment:
    words, name = f"--data {options}", options.split()[0]
    more = {"source": name, "needed": True, "logits": True, "strength": "0.2"}
    return Experiment(data, title, model, words, methods, seeds, minutes, f"Tasks/{trainer}/main.py", **more)


RESNET20 = "--batch-size 128 --lr 0.1 --weight-decay 5e-4 --warmup-epochs 0 --sched step --decay-epochs {} --amp bf16"
RESNET32 = (  # the MaxSup paper's repository
    "--epochs 200 --batch-size 256 --lr 0.2 --weight-decay 5e-4 --warmup-epochs 5 --sched step --decay-epochs 120 160 "
    "--decay-rate 0.01 --opt sgd --amp bf16"
)
DIGITS = """
    --model test_resnet --input-size 16 --batch-size 64 --recipe-batch 0 --drop-path 0
    --opt sgd --lr 0.1 --unscale-lr --weight-decay 5e-4 --warmup-epochs 2 --warmup-lr 0.01 --min-lr 0
    --aa rand-m5-n1-mstd0.5-inc1 --hflip 0 --reprob 0.25 --mixup 0 --cutmix 0 --no-repeated-aug
    --num_workers 0 --epochs 12
"""
TABULAR = arms("0.2", "0.1", "0.4", "0.1-0.2")


def digits(labels: str, title: str, seeds: int, **more) -> Experiment:
    more |= {"path": f"data/digits/{labels}", "prepare": f"data/digits/prepare.py --labels {labels}"}
    options = " ".join(DIGITS.split())
    return Experiment("scikit-learn's digits", title, "timm's test_resnet", options, MATCHED, seeds, 0.6, "Deit/main.py", **more)


EXPERIMENTS = {
    "digits-parity": digits("parity", "odd and even; transfer to the ten", 10, transfer="prefix"),
    "cifar10-resnet20": _resnet(
        20, "trained for 30 epochs", f"--epochs 30 {RESNET20.format('12 23')}", arms("0.2", "0.1"), 5, 30, strength="0.2"
    ),
    "cifar10-coarse": _more(
        _cifar10("3 coarse classes; transfer to the ten", "--epochs 6 --superclasses", MATCHED, 2.5, transfer="classes")
    ),
    "cifar10-fine": _cifar10("ten classes", "--epochs 5", SWEEP, 2.5),
    "fashion-coarse": _more(
        _fashion("4 coarse classes; transfer to the ten", "--epochs 6 --superclasses", MATCHED, 2.5, transfer="classes")
    ),
    "fashion-fine": _more(_fashion("ten classes", "--epochs 6", SWEEP, 2.5)),
    "fashion-noise-20": _more(_fashion("a fifth of the training labels wrong", "--epochs 6 --label-noise 0.2", MATCHED, 2.5)),
    "fashion-noise-40": _more(_fashion("two fifths of the training labels wrong", "--epochs 6 --label-noise 0.4", MATCHED, 2.5)),
    "fashion-longtail-50": _more(
        _fashion("long-tailed, imbalance 50 (120 to 6,000 images per class)", "--epochs 12 --imbalance-ratio 50", LONG_TAIL, 2.5)
    ),
    "fashion-longtail-100": _more(
        _fashion("long-tailed, imbalance 100 (60 to 6,000 images per class)", "--epochs 12 --imbalance-ratio 100", LONG_TAIL, 2.5)
    ),
    "cifar100-coarse": Experiment(
        "CIFAR-100",
        "20 superclasses; transfer to the hundred",
        "ResNet-8 of width 32, first stage at half resolution",
        f"--data cifar100 --width 32 {SMALL} --epochs 12 --superclasses",
        MATCHED,
        5,
        12,
        source="cifar100",
        transfer="classes",
    ),
    "cifar10-long": _cifar10("ten classes, trained to convergence", "--epochs 60", MATCHED, 25),
    "cifar10-resnet20-paper": _resnet(
        20,
        "the recipe of the selective-classification paper",
        f"--epochs 75 {RESNET20.format('25 50')} --opt sgd",
        arms("0.2"),
        3,
        190,
        strength="0.2",
    ),
    "cifar10-longtail-resnet32-50": _resnet(
        32, "long-tailed, imbalance 50, the MaxSup paper's schedule", f"{RESNET32} --imbalance-ratio 50", MATCHED | FOCAL, 3, 210
    ),
    "cifar10-longtail-resnet32-100": _resnet(
        32,
        "long-tailed, imbalance 100, the MaxSup paper's schedule",
        f"{RESNET32} --imbalance-ratio 100",
        MATCHED | FOCAL,
        3,
        190,
    ),
    "bank": _task("Bank Marketing", "two classes", "MLP", "tabular", "bank --epochs 10", TABULAR, 20, 0.5),
    "shoppers": _task("Online Shoppers", "two classes", "MLP", "tabular", "shoppers --epochs 10", TABULAR, 20, 0.4),
    "imdb": _task(
        "IMDB",
        "two classes; 5 epochs, where the paper trains 10",
        "LSTM",
        "text",
        "imdb --model lstm --epochs 5 --amp bf16 --eval-every 5",
        arms("0.2"),
        3,
        30,
    ),
    "camvid": _task(
        "CamVid",
        "11 classes of pixels",
        "DeepLabV3+ on ResNet-18",
        "segmentation",
        "camvid --model deeplabv3plus_resnet18 --epochs 16",
        arms("0.2"),
        3,
        10,
    ),
    "distillation-fashion": _distillation(_fashion),
    "distillation-cifar10": _distillation(_cifar10),
}


def earlier_experiment_with(name: str, arms: list[str | None]) -> str | None:
    """The earlier experiment, if there is one, that runs these arms with the same commands, and so has the same test."""
    earlier = itertools.takewhile(lambda other: other != name, EXPERIMENTS)
    same = EXPERIMENTS[name].same_run
    return next((other for other in earlier if all(same(arm, EXPERIMENTS[other]) for arm in arms if arm)), None)
