"""The weights that a run starts from: torchvision's for ImageNet, or those of any checkpoint."""

from errors import InputError, say

import torch
import torchvision
from torch import Tensor, nn

import distributed
import foreign
import states

IMAGENET_WEIGHTS = {"imagenet": "IMAGENET1K_V1"} | {name: name for name in ("IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT")}


def start_from(init: str, model: nn.Module, description: dict, classes: list[str] | None, inputs: dict) -> None:
    """Load weights into the model. A classifier for other classes is not loaded, and a line says so.

    init: "imagenet" or a name of torchvision's weights, a path, or a URL. classes: the data's class names in label order, None if
    unknown. inputs: mean and std of this run; prints a warning if the checkpoint has others. If the checkpoint has the same
    classes in another order, the rows of its classifier are reordered. Raises InputError for weights of another model.
    """
    if init in IMAGENET_WEIGHTS:
        weights, their_classes = imagenet_weights(IMAGENET_WEIGHTS[init], description), None
    else:
        found = foreign.read(init)
        weights, their_classes = found.weights, found.classes
        for note in found.notes:
            say(f"note: {init}: {note}")
        for key, here in inputs.items():
            if found.ours and list(found.facts[key]) != list(here):
                there, here = (" ".join(f"{value:g}" for value in values) for values in (found.facts[key], here))
                say(f"warning: {init} was trained with a {key} of {there}, this run has {here}")
    own = model.state_dict()
    head = head_name(model)
    heads = [key for key in own if key.startswith(head)]
    their_classes = foreign.class_names(their_classes, len(own[heads[0]]), classes) if classes else None
    reason = ""
    if any(key not in weights for key in heads):
        reason = "it has none"
    elif any(weights[key].shape != own[key].shape for key in heads):
        reason = f"its own is for {len(weights[heads[-1]])} classes, these are {len(own[heads[-1]])}"
    elif their_classes is not None and set(their_classes) != set(classes):
        reason = f"its own is for other classes, {', '.join(their_classes[:3])} ..."
    if reason:
        weights = {key: value for key, value in weights.items() if not key.startswith(head)} | {key: own[key] for key in heads}
    elif their_classes not in (None, classes):
        order = torch.tensor([their_classes.index(name) for name in classes])
        weights = weights | {key: weights[key][order] for key in heads}
    states.load_weights(model, weights, init)
    say(f"starting from {init}" + (f", with a fresh classifier: {reason}" if reason else ""))


def head_name(model: nn.Module) -> str:
    """The prefix of the classifier's keys: it is the last linear layer or, in models without one, the last convolution."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    return (linear or list(layers))[-1] + "."


def imagenet_weights(name: str, description: dict) -> dict[str, Tensor]:
    """torchvision's weights for a model. Raises InputError if there are none, or if they cannot be downloaded."""
    if description.get("small_stem", True) or description.get("blurpool"):
        reason = "weights for large images only, without BlurPool"
        raise InputError(f"--init imagenet: torchvision has {reason}, none for this {description['model']}")
    known = torchvision.models.get_model_weights(description["model"])
    if name not in known.__members__:
        raise InputError(f"--init {name}: torchvision has {', '.join(known.__members__)} of {description['model']}")
    try:
        with distributed.local_main_first():
            return known[name].get_state_dict(check_hash=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"--init {name}: cannot be downloaded ({error}); give a file")
