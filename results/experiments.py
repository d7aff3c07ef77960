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
SMALL_RESNET = "--model resnet8 --stem-stride 2"
RECIPE = "--batch-size 128 --lr 0.1 --weight-decay 5e-4 --warmup-epochs 1"


@dataclass(frozen=True)
class Experiment:
    """options: words for Conv/common_resnet/train.py that all runs share. transfer: whether frozen features are asked for the
    data set's own classes. minutes: what one run took, measuring included, on 2 CPU cores."""

    title: str
    options: str
    methods: dict[str, str]
    seeds: int
    minutes: float
    transfer: bool = False


FASHION = f"--data fashion-mnist {SMALL_RESNET} {RECIPE}"
CIFAR = f"--data cifar10 {SMALL_RESNET} {RECIPE}"
EXPERIMENTS = {
    "digits-parity": Experiment("digits, odd and even; transfer to the ten", "", METHODS, 10, 0.6, True),
    "fashion-coarse": Experiment(
        "Fashion-MNIST, 4 coarse classes; transfer to the ten", f"{FASHION} --epochs 6 --superclasses", METHODS, 5, 1.0, True
    ),
    "fashion-fine": Experiment("Fashion-MNIST, ten classes", f"{FASHION} --epochs 6", SWEEP, 3, 1.0),
    "cifar10-coarse": Experiment(
        "CIFAR-10, 3 coarse classes; transfer to the ten", f"{CIFAR} --epochs 6 --superclasses", METHODS, 5, 2.0, True
    ),
    "cifar10-fine": Experiment("CIFAR-10, ten classes", f"{CIFAR} --epochs 6", SWEEP, 3, 2.0),
    "fashion-longtail-50": Experiment(
        "Fashion-MNIST, long-tailed, imbalance 50", f"{FASHION} --epochs 20 --imbalance-ratio 50", LONG_TAIL, 3, 0.8
    ),
    "fashion-longtail-100": Experiment(
        "Fashion-MNIST, long-tailed, imbalance 100", f"{FASHION} --epochs 20 --imbalance-ratio 100", LONG_TAIL, 3, 0.8
    ),
}
