"""iNaturalist 2018 and 2019 as DeiT reads them: labels from the annotations, at any rank of the taxonomy."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from errors import InputError

import numpy as np

from data.folder import FolderImages


class INatImages(FolderImages):
    """The images listed in {train,val}{year}.json, labelled by a category of categories.json.

    Labels are numbered in the order in which categories first occur in the training annotations, as in DeiT. Raises InputError if
    a file is missing or does not have iNaturalist's format.
    """

    def __init__(self, root: Path, split: str, year: int, category: str, transform: Callable | None = None):
        listing = root / f"{split}{year}.json"
        taxa, training, listed = (read(path) for path in (root / "categories.json", root / f"train{year}.json", listing))
        try:
            names = [str(taxon[category]) for taxon in taxa]
            classes = list(dict.fromkeys(names[int(entry["category_id"])] for entry in training["annotations"]))
            label = {name: index for index, name in enumerate(classes)}
            files = [Path(entry["file_name"]) for entry in listed["images"]]  # train_val2018/<supercategory>/<id>/<image>
            labels = [label[names[int(file.parts[2])]] for file in files]
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{listing}: not as iNaturalist {year}'s ({type(error).__name__}: {error}); see --inat-category")
        if not files:
            raise InputError(f"{listing}: lists no images")
        if any(file.is_absolute() or ".." in file.parts for file in files):
            raise InputError(f"{listing}: names a file outside {root}")
        # 2018's files are in <first>/<supercategory>/<id>, 2019's in <first>/<id>: DeiT omits the middle folder.
        between = (root / files[0]).exists()
        paths = [file if between else Path(file.parts[0], *file.parts[2:]) for file in files]
        there = {
            folder: set(os.listdir(root / folder)) if (root / folder).is_dir() else () for folder in {p.parent for p in paths}
        }
        if missing := [path for path in paths if path.name not in there[path.parent]]:
            raise InputError(f"{listing}: lists {len(missing):,} images that are not in {root}, such as {missing[0]}")
        self.root, self.transform, self.notes, self.classes = root, transform, [], classes
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.array(labels, dtype=np.int64)


def read(path: Path) -> dict | list:
    """Read a JSON file. Raises InputError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); iNaturalist's annotations and categories.json go there")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error})")
