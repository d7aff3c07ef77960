"""The experiments: data, models, methods, seeds. Runs of one seed share initial weights, data order and augmentation."""

from dataclasses import dataclass

METHODS = {
    "CE": "--loss ce",
    "LS": "--loss ls --alpha 0.1",
    "MaxSup": "--loss maxsup --alpha 0.1 --alpha-end 0.2",
}
SWEEP = {
    "CE": "--loss ce",
    "LS 0.05": "--loss ls --alpha 0.05",
    "LS": "--loss ls --alpha 0.1",
    "LS 0.2": "--loss ls --alpha 0.2",
    "LS 0.3": "--loss ls --alpha 0.3",
    "OLS": "--loss ols",
    "Zipf": "--loss zipf",
    "logit penalty": "--loss logit-penalty",
    "MaxSup": "--loss maxsup --alpha 0.1 --alpha-end 0.2",
}
LONG_TAIL = {"focal": "--loss focal", "LS": "--loss ls --alpha 0.1", "MaxSup": "--loss maxsup --alpha 0.1 --alpha-end 0.2"}
# Three stages of one block, the first at half the resolution: small enough to be trained over seeds on 2 cores.
MODEL = "ResNet-8 of width 16, first stage at half resolution"
SMALL_RESNET = "--model resnet8 --stem-stride 2"
RECIPE = "--batch-size 128 --lr 0.1 --weight-decay 5e-4 --warmup-epochs 1"


@dataclass(frozen=True)
class Experiment:
    """options: words for Conv/common_resnet/train.py that all runs share; none for the main job, which trains through Deit/.
    minutes: what one run took on one CPU core beside another run, measuring included. transfer: whether frozen features are asked
    for the data set's own classes."""

    data: str
    title: str
    model: str
    options: str
    methods: dict[str, str]
    seeds: int
    minutes: float
    transfer: bool = False


def _fashion(title: str, options: str, methods: dict[str, str], seeds: int, minutes: float, transfer: bool = False) -> Experiment:
    words = f"--data fashion-mnist {SMALL_RESNET} {RECIPE} {options}"
    return Experiment("Fashion-MNIST", title, MODEL, words, methods, seeds, minutes, transfer)


def _cifar10(title: str, options: str, methods: dict[str, str], seeds: int, minutes: float, transfer: bool = False) -> Experiment:
    words = f"--data cifar10 {SMALL_RESNET} {RECIPE} {options}"
    return Experiment("CIFAR-10", title, MODEL, words, methods, seeds, minutes, transfer)


EXPERIMENTS = {
    "digits-parity": Experiment(
        "scikit-learn's digits", "odd and even; transfer to the ten", "timm's test_resnet", "", METHODS, 10, 0.6, True
    ),
    "fashion-coarse": _fashion("4 coarse classes; transfer to the ten", "--epochs 6 --superclasses", METHODS, 5, 2.5, True),
    "fashion-fine": _fashion("ten classes", "--epochs 6", SWEEP, 3, 2.5),
    "cifar10-coarse": _cifar10("3 coarse classes; transfer to the ten", "--epochs 6 --superclasses", METHODS, 5, 2.5, True),
    "cifar10-fine": _cifar10("ten classes", "--epochs 5", SWEEP, 3, 2.5),
    "fashion-longtail-50": _fashion(
        "long-tailed, imbalance 50 (120 to 6,000 images a class)", "--epochs 12 --imbalance-ratio 50", LONG_TAIL, 3, 2.5
    ),
    "fashion-longtail-100": _fashion(
        "long-tailed, imbalance 100 (60 to 6,000 images a class)", "--epochs 12 --imbalance-ratio 100", LONG_TAIL, 3, 2.5
    ),
}
