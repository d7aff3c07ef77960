"""Grad-CAM maps (Selvaraju et al. 2017) of images, as in the MaxSup repository's Figure 2.

The map is taken from the last layer whose output still covers the image: the last feature map of a ConvNet, the tokens that
enter the last attention of a transformer.
"""

from pathlib import Path

from common.errors import InputError

import cv2
import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from tqdm import tqdm

from checkpoints import models
from checkpoints.read import Checkpoint, build_model
from drawing import style
from images.transforms import normalise, transform


def explain_all(checkpoint: Checkpoint, pictures: list[Image.Image], target: str | None, device: str, name: str) -> list[dict]:
    """For each picture: the crop (H, W, 3) that the model sees, 0 to 1, the map (H, W), 0 to 1, and the words under the panel."""
    facts = checkpoint.facts
    index = target_index(checkpoint, target)
    model = build_model(checkpoint).to(device)
    layer, to_map = layer_of_maps(model, facts["input_size"], device)
    found = []
    with GradCAM(model=model, target_layers=[layer], reshape_transform=to_map) as cam:
        for picture in tqdm(pictures, desc=f"Grad-CAM of {name}", unit="image", delay=5, leave=False, disable=None):
            pixels = transform(facts)(picture).unsqueeze(0)
            shown = normalise(pixels, facts).to(device)
            heat = cam(shown, None if index is None else [ClassifierOutputTarget(index)])[0]
            probabilities = cam.outputs[0].detach().float().softmax(0).cpu()
            top = int(probabilities.argmax())
            words = f"{class_name(checkpoint, top)}: {100 * probabilities[top]:.1f} %"
            if index is not None and index != top:
                words += f"\nmap of {class_name(checkpoint, index)}: {100 * probabilities[index]:.1f} %"
            crop = pixels[0].permute(1, 2, 0).numpy().astype(np.float32) / 255
            found.append({"crop": crop, "heat": np.nan_to_num(heat), "words": words, "top": top})
    return found


def overlay_of(panel: dict) -> np.ndarray:
    """The crop overlaid with its map, (H, W, 3) uint8. Larger values are lighter, which colour-blind readers can see, too."""
    return show_cam_on_image(panel["crop"], panel["heat"], use_rgb=True, colormap=cv2.COLORMAP_INFERNO)


def target_index(checkpoint: Checkpoint, target: str | None) -> int | None:
    if target is None:
        return None
    classes = checkpoint.classes or []
    if target in classes:
        return classes.index(target)
    if target.isdecimal() and len(target) < 10 and int(target) < checkpoint.facts["num_classes"]:
        return int(target)
    known = f"{', '.join(classes[:5])}, ... or " if classes else ""
    raise InputError(
        f"--target {target}: no class of {checkpoint.path}; {known}a label, 0 to {checkpoint.facts['num_classes'] - 1}"
    )


def class_name(checkpoint: Checkpoint, index: int) -> str:
    classes = checkpoint.classes or []
    name = classes[index] if index < len(classes) else f"class {index}"
    return style.short(name, 28)


def layer_of_maps(model: nn.Module, size: int, device: str) -> tuple[nn.Module, object]:
    """The layer that Grad-CAM uses, and what turns its output into maps (B, C, H, W), found by running the model once.

    Transformers: the norm before the last attention, where all tokens still influence the decision. Others: the last layer with
    a map of more than one pixel. Raises InputError for a model with neither.
    """
    shapes: list[tuple[str, nn.Module, torch.Size]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, out, name=name: shapes.append((name, layer, getattr(out, "shape", ()))))
        for name, layer in model.named_modules()
        if name
    ]
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size, device=device))
    for hook in hooks:
        hook.remove()
    head = models.classifier(model)
    norms = [row for row in shapes if row[0].rpartition(".")[2] in ("norm1", "ln_1") and isinstance(row[1], nn.LayerNorm)]
    maps = [row for row in shapes if len(row[2]) == 4 and row[1] is not head and min(row[2][2:]) > 1]
    if norms and len(norms[-1][2]) in (3, 4):
        _, layer, shape = norms[-1]
        return layer, _channels_first if len(shape) == 4 else _Tokens(shape[1])
    if not maps:
        raise InputError(f"no layer has a map of more than one pixel at {size} px: Grad-CAM has nothing to show")
    _, layer, shape = maps[-1]
    return layer, _channels_first if isinstance(layer, nn.LayerNorm) else None


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


class _Tokens:
    """Tokens (B, N, C) as maps (B, C, side, side): the last side x side of them; those before represent no part of the image."""

    def __init__(self, count: int):
        self.side = int(count**0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return x[:, -(self.side**2) :].transpose(1, 2).unflatten(2, (self.side, self.side))


def draw(columns: dict[str, list[dict]], paths: list[Path], pictures: list[Image.Image]):
    """The grid: the images, then a column per model."""
    count = 1 + len(columns)
    figure, axes = style.grid(len(paths), count, width=2.2, height=2.5)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        for spine in axis.spines.values():
            spine.set_visible(False)
    for row, path in enumerate(paths):
        original = axes[row * count]
        side = max(pictures[row].size)
        original.imshow(pictures[row], interpolation="nearest" if side <= style.PIXELS else "antialiased")
        original.set_xlabel(style.short(path.stem, 24), fontsize=9)
        for axis, (name, panels) in zip(axes[row * count + 1 : (row + 1) * count], columns.items(), strict=True):
            panel = panels[row]
            overlay = overlay_of(panel)
            axis.imshow(overlay, interpolation="nearest" if overlay.shape[0] <= style.PIXELS else "antialiased")
            axis.set_xlabel(panel["words"], fontsize=9)
            if row == 0:
                axis.set_title(name)
    axes[0].set_title("image")
    return figure
