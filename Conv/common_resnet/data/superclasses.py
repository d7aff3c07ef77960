"""Coarse labels: groupings of classes, to train features on few classes and transfer them to many."""

import json
from pathlib import Path

from errors import InputError

GROUPINGS = {
    "digits": {"even": list("02468"), "odd": list("13579")},
    "fashion-mnist": {
        "tops": ["T-shirt/top", "Pullover", "Coat", "Shirt"],
        "bottoms and dresses": ["Trouser", "Dress"],
        "footwear": ["Sandal", "Sneaker", "Ankle boot"],
        "bags": ["Bag"],
    },
    "cifar10": {
        "vehicles": ["airplane", "automobile", "ship", "truck"],
        "kept animals": ["cat", "dog", "horse"],
        "wild animals": ["bird", "deer", "frog"],
    },
    # The 20 superclasses of Krizhevsky (2009).
    "cifar100": {
        "aquatic mammals": ["beaver", "dolphin", "otter", "seal", "whale"],
        "fish": ["aquarium_fish", "flatfish", "ray", "shark", "trout"],
        "flowers": ["orchid", "poppy", "rose", "sunflower", "tulip"],
        "food containers": ["bottle", "bowl", "can", "cup", "plate"],
        "fruit and vegetables": ["apple", "mushroom", "orange", "pear", "sweet_pepper"],
        "household electrical devices": ["clock", "keyboard", "lamp", "telephone", "television"],
        "household furniture": ["bed", "chair", "couch", "table", "wardrobe"],
        "insects": ["bee", "beetle", "butterfly", "caterpillar", "cockroach"],
        "large carnivores": ["bear", "leopard", "lion", "tiger", "wolf"],
        "large man-made outdoor things": ["bridge", "castle", "house", "road", "skyscraper"],
        "large natural outdoor scenes": ["cloud", "forest", "mountain", "plain", "sea"],
        "large omnivores and herbivores": ["camel", "cattle", "chimpanzee", "elephant", "kangaroo"],
        "medium-sized mammals": ["fox", "porcupine", "possum", "raccoon", "skunk"],
        "non-insect invertebrates": ["crab", "lobster", "snail", "spider", "worm"],
        "people": ["baby", "boy", "girl", "man", "woman"],
        "reptiles": ["crocodile", "dinosaur", "lizard", "snake", "turtle"],
        "small mammals": ["hamster", "mouse", "rabbit", "shrew", "squirrel"],
        "trees": ["maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"],
        "vehicles 1": ["bicycle", "bus", "motorcycle", "pickup_truck", "train"],
        "vehicles 2": ["lawn_mower", "rocket", "streetcar", "tank", "tractor"],
    },
}


def group(data: str, classes: list[str], choice: str) -> tuple[list[int], dict[str, list[str]], list[str]]:
    """The coarse label of each class, the grouping {coarse name: [class, ...]}, and the coarse names in label order.

    choice: "default" for the data set's grouping above, or a JSON file. Raises InputError unless the grouping names every class
    exactly once.
    """
    if choice == "default" and data not in GROUPINGS:
        raise InputError(f"--superclasses: {data} has no grouping of its own; give a JSON file of {{name: [class, ...]}}")
    grouping = GROUPINGS[data] if choice == "default" else _read(Path(choice))
    listed = [name for members in grouping.values() for name in members]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    missing, foreign = sorted(set(classes) - set(listed)), sorted(set(listed) - set(classes))
    for what, names in (("named twice", twice), ("in no group", missing), ("not a class of the data", foreign)):
        if names:
            raise InputError(f"--superclasses {choice}: {what}: {', '.join(names[:3])}")
    return coarse_labels(grouping, classes), grouping, list(grouping)


def coarse_labels(grouping: dict[str, list[str]], classes: list[str]) -> list[int]:
    """The coarse label of each class. Raises KeyError for a class that is in no group."""
    coarse = {name: label for label, members in enumerate(grouping.values()) for name in members}
    return [coarse[name] for name in classes]


def _read(path: Path) -> dict[str, list[str]]:
    try:
        grouping = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--superclasses {path}: {getattr(error, 'strerror', None) or error}")
    members = grouping.values() if isinstance(grouping, dict) else [None]
    if not all(isinstance(names, list) and names and all(isinstance(name, str) for name in names) for names in members):
        raise InputError(f'--superclasses {path}: expects JSON like {{"coarse": ["class", "class"], ...}}')
    if len(grouping) < 2:
        raise InputError(f"--superclasses {path}: {len(grouping)} groups; at least 2 are needed")
    return grouping
