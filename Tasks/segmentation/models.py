"""Models by name: segmentation-models-pytorch's (smp) DeepLabV3+ and UPerNet, on its own backbones or timm's."""

import difflib
from pathlib import Path

from errors import InputError

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from segmentation_models_pytorch.encoders import encoders as SMP_ENCODERS
from timm.layers import resample_abs_pos_embed
from timm.models import is_model_in_modules
from torch import Tensor, nn

import states

DECODERS = {"deeplabv3plus": smp.DeepLabV3Plus, "upernet": smp.UPerNet}
MULTIPLE = 32  # the padded input's sides are multiples of this: the coarsest feature map has stride 32


def split_name(name: str) -> tuple[str, str]:
    """("deeplabv3plus", "resnet18") from "deeplabv3plus_resnet18". Raises InputError for a name that cannot be built."""
    decoder, _, backbone = name.partition("_")
    if decoder not in DECODERS:
        raise InputError(f"--model {name}: must begin with a decoder, {' or '.join(DECODERS)}, as in deeplabv3plus_resnet18")
    if not timm.is_model(backbone) and timm.is_model(f"{backbone}_patch16_224"):
        backbone += "_patch16_224"  # for example deit_small
    if backbone not in SMP_ENCODERS and not timm.is_model(backbone):
        known = {known.removesuffix("_patch16_224") for known in [*SMP_ENCODERS, *timm.list_models()]}
        near = difflib.get_close_matches(backbone, sorted(known), n=4, cutoff=0.4)
        raise InputError(f"--model {name}: no backbone {backbone!r}" + (f"; near names: {', '.join(near)}" if near else ""))
    if decoder == "deeplabv3plus" and is_transformer(backbone):
        raise InputError(f"--model {name}: DeepLabV3+ needs a convolutional backbone; upernet_{backbone} takes this one")
    return decoder, backbone


def is_transformer(backbone: str) -> bool:
    """Whether the timm model is a plain vision transformer, whose feature maps all have one scale."""
    return timm.is_model(backbone) and is_model_in_modules(backbone, ["deit", "vision_transformer"])


def create_model(name: str, num_classes: int, crop: list[int], drop_path: float = 0.0, pretrained: bool = False) -> "Segmenter":
    """The model of a name (see split_name). Position embeddings are made for the training crop, (height, width).

    Raises InputError for a backbone that does not fit the decoder, or if pretrained weights are not available.
    """
    decoder, backbone = split_name(name)
    try:
        if is_transformer(backbone):
            model = _upernet_on_transformer(backbone, num_classes, crop, drop_path, pretrained)
        else:
            own = backbone in SMP_ENCODERS
            weights = ("imagenet" if own else True) if pretrained else None
            net = DECODERS[decoder](backbone if own else f"tu-{backbone}", encoder_weights=weights, classes=num_classes)
            model = Segmenter(net.encoder, net.decoder, net.segmentation_head)
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, 2 * MULTIPLE, 2 * MULTIPLE))  # some backbones accept only one image size
        return model.train()
    except InputError:
        raise
    except Exception as error:  # timm, smp and a missing network can fail in many ways
        reason = (str(error) or repr(error)).splitlines()[0][:200]
        raise InputError(f"--model {name}: cannot be built ({type(error).__name__}: {reason})")


def _upernet_on_transformer(backbone: str, classes: int, crop: list[int], drop_path: float, pretrained: bool) -> "Segmenter":
    with torch.device("meta"):
        depth = len(timm.create_model(backbone).blocks)
    taken = tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))  # blocks 3, 6, 9 and 12 of a DeiT
    size = tuple(side + -side % MULTIPLE for side in crop)
    options = {"img_size": size, "dynamic_img_size": True, "drop_path_rate": drop_path, "pretrained": pretrained}
    vit = timm.create_model(backbone, features_only=True, out_indices=taken, **options)
    if tuple(vit.model.patch_embed.patch_size) != (16, 16):
        raise InputError(f"--model upernet_{backbone}: its patches have {vit.model.patch_embed.patch_size} pixels, not 16 x 16")
    encoder = TransformerPyramid(vit)
    channels = vit.feature_info.channels()[-1]
    decoder = UPerNetDecoder([0, 0, *[channels] * 4], decoder_channels=512)
    head = SegmentationHead(512, classes, kernel_size=1, upsampling=4)
    head = nn.Sequential(nn.Dropout2d(0.1), *head)
    auxiliary = nn.Sequential(
        nn.Conv2d(channels, 256, 3, padding=1, bias=False),
        nn.BatchNorm2d(256),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.1),
        nn.Conv2d(256, classes, 1),
    )
    for module in (encoder.neck, decoder):
        initialize_decoder(module)
    for module in (head, auxiliary[-1]):
        initialize_head(module)
    return Segmenter(encoder, decoder, head, auxiliary)


class TransformerPyramid(nn.Module):
    """Four maps (N, C, h, w) of a vision transformer at scales 4, 2, 1 and 1/2 of its grid: the multi-level neck of UPerNet.

    forward(images) -> [None, None, maps of 1/4, 1/8, 1/16 and 1/32 of the image], smp's order; for patches of 16 pixels.
    """

    SCALES = (4, 2, 1, 0.5)

    def __init__(self, vit: nn.Module):
        super().__init__()
        self.vit = vit
        channels = vit.feature_info.channels()[-1]
        self.neck = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)]) for _ in self.SCALES
        )

    def forward(self, images: Tensor) -> list[Tensor | None]:
        levels = []
        for features, scale, (lateral, smooth) in zip(self.vit(images), self.SCALES, self.neck, strict=True):
            resized = F.interpolate(lateral(features), scale_factor=scale, mode="bilinear") if scale != 1 else lateral(features)
            levels.append(smooth(resized))
        return [None, None, *levels]


class Segmenter(nn.Module):
    """Encoder, decoder and head: images (N, 3, H, W) of any size -> logits (N, K, H, W).

    In training mode, a model with an auxiliary head returns (logits, auxiliary logits) of the same shape.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, head: nn.Module, auxiliary: nn.Module | None = None):
        super().__init__()
        self.encoder, self.decoder, self.head, self.auxiliary = encoder, decoder, head, auxiliary

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        features = self.encoder(padded)
        coarsest = features[-1]
        logits = self.head(self.decoder(features))[..., :height, :width]
        if self.auxiliary is None or not self.training:
            return logits
        extra = F.interpolate(self.auxiliary(coarsest), padded.shape[2:], mode="bilinear")
        return logits, extra[..., :height, :width]


def backbone_of(model: Segmenter) -> nn.Module:
    """The part of the encoder that a classification model of the same name also has."""
    encoder = model.encoder.vit if isinstance(model.encoder, TransformerPyramid) else model.encoder
    return getattr(encoder, "model", encoder)


def start_from(path: Path, model: Segmenter) -> str:
    """Load the backbone from a checkpoint of Deit/ or Conv/, tensors matched by name; returns a line about what was loaded.

    Position embeddings are resampled to this model's grid. Raises InputError if a tensor of the backbone is missing or has a
    different shape: a partly random backbone would be reported as if it were pre-trained.
    """
    weights = states.read(path)["model"]
    backbone = backbone_of(model)
    own = backbone.state_dict()
    # timm's features_only replaces the first dot of some names by an underscore: stages.0 becomes stages_0.
    found = {key.replace(".", "_"): key for key in weights}
    taken = {key: found[key.replace(".", "_")] for key in own if key.replace(".", "_") in found}
    loaded = {key: weights[name] for key, name in taken.items()}
    if "pos_embed" in loaded and loaded["pos_embed"].ndim == 3 and loaded["pos_embed"].shape != own["pos_embed"].shape:
        grid = backbone.patch_embed.grid_size
        prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens  # tokens with a position embedding
        try:
            loaded["pos_embed"] = resample_abs_pos_embed(loaded["pos_embed"], list(grid), num_prefix_tokens=prefix)
        except RuntimeError as error:
            raise InputError(f"{path}: its position embeddings are not those of a square grid ({str(error).splitlines()[0]})")
    states.load_weights(backbone, loaded, path)
    left = sorted(weights.keys() - set(taken.values()))
    rest = f"; left out: {', '.join(left[:4])}{' ...' if len(left) > 4 else ''}" if left else ""
    return f"backbone from {path}: {len(taken)} of {len(weights)} tensors taken{rest}"
