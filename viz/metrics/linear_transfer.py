"""Linear transfer (Table 2 of the MaxSup repository): what frozen features tell about classes that training did not name.

Features are standardised by the mean and standard deviation of the training images. The L2 strength of a multinomial logistic
regression is chosen on a held-out fifth of the training images; the regression is then fitted to all of them and scored on the
test images. Only the choice of that fifth is random, with a fixed seed.
"""

from collections import Counter

from common.errors import InputError
from common.options import TRANSFER_IMAGES

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

HELD_OUT = 0.2  # of the training images
STEPS = 5000  # maximum iterations of a fit
TOLERANCE = 1e-4  # a fit ends when no entry of the mean loss's gradient is larger


def drawn(classes: list[str]) -> Tensor:
    """Indices (n,) of the training images that measure.py's linear transfer uses, TRANSFER_IMAGES at random. classes: of each.

    All images would take minutes instead of seconds. A class with fewer than two of the drawn images also gets its next ones in
    the random order, because a part of each class is held out.
    """
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    rows, more = order[:TRANSFER_IMAGES].tolist(), order[TRANSFER_IMAGES:].tolist()
    counts = Counter(classes[row] for row in rows)
    for row in more:
        if counts[classes[row]] < 2:
            counts[classes[row]] += 1
            rows.append(row)
    return torch.tensor(rows)


def transfer(train: Tensor, train_classes: list[str], test: Tensor, test_classes: list[str], strengths: list[float]) -> dict:
    """Chosen strength C, accuracies (%) on held-out training images and on the test images, from features (N, D)."""
    from sklearn.linear_model import LogisticRegression  # imported here: the import takes a second
    from sklearn.model_selection import train_test_split

    classes = sorted(set(train_classes))
    foreign = sorted(set(test_classes) - set(classes))
    if foreign:
        raise InputError(f"the test images have classes that the training images lack: {', '.join(foreign[:3])}")
    if len(classes) < 2:
        raise InputError(f"the training images have one class ({classes[0]}); a classifier needs two")
    y, y_test = (np.searchsorted(classes, names) for names in (train_classes, test_classes))
    try:
        fitting, held_out = train_test_split(np.arange(len(y)), test_size=HELD_OUT, random_state=0, stratify=y)
    except ValueError as error:
        raise InputError(f"too few training images to hold some of each class out ({error})")
    x, z = standardised(train[fitting], train[held_out])
    found, head = [], LogisticRegression(tol=TOLERANCE, max_iter=STEPS, warm_start=True)  # the last optimum is near the next
    for strength in tqdm(strengths, desc="strengths", unit="fit", leave=False, disable=None):
        found.append(100 * head.set_params(C=strength).fit(x, y[fitting]).score(z, y[held_out]))
    best = int(np.argmax(found))  # the strongest penalty among equals
    x, z = standardised(train, test)
    head = LogisticRegression(C=strengths[best], tol=TOLERANCE, max_iter=STEPS).fit(x, y)
    return {
        "C": strengths[best],
        "held_out_top1": found[best],
        "test_top1": 100 * head.score(z, y_test),
        "train_images": len(y),
        "test_images": len(y_test),
        "held_out_top1_of_each_C": dict(zip(map(str, strengths), found, strict=True)),
    }


def standardised(train: Tensor, other: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both minus the mean of `train`, divided by its standard deviation where that is not 0; float64."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    return scaler.fit_transform(train.double().numpy()), scaler.transform(other.double().numpy())
