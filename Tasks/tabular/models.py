"""The MLP of the selective-classification paper."""

from torch import nn


def create_model(features: int, num_classes: int) -> nn.Sequential:
    """Two hidden layers of 4F and 2F units for F encoded features. (N, F) float32 -> logits (N, num_classes)."""
    return nn.Sequential(
        nn.Linear(features, 4 * features),
        nn.ReLU(),
        nn.Linear(4 * features, 2 * features),
        nn.ReLU(),
        nn.Linear(2 * features, num_classes),
    )
