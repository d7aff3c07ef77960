"""Geometry of penultimate features: Table 1 and Figure 1 of the MaxSup repository, for any checkpoints.

    python viz/features.py --checkpoint ls.pth maxsup.pth --names LS MaxSup --output features/

Writes features.json and features.md (intra-class variation d_within and inter-class separability R2 of penultimate features, on
training and validation images), and projection (PNG and PDF): features of three classes on the plane through the ends of their
class templates, the rows of the classifier's weights (Müller et al. 2019, section 2). Features and templates are first scaled to
unit length, as the cosine distances of the table imply, so that all panels share one scale.
"""

import json

from common import errors, options, outputs, terminal


def main() -> None:
    parser = options.parser(
        "Table 1 and Figure 1 of the MaxSup repository: variation, separability and projection of penultimate features."
    )
    options.add_models(parser, "checkpoint")
    options.add_output(parser, "folder for tables and figure")
    parser.add_argument("--classes", nargs=3, help="three class names to project; if omitted: the first three")
    options.add_images(parser)
    args = options.parse(parser, shared=True)
    models = options.models_of(args)
    outputs.folder(args.output, "features", args.overwrite)

    from common import distributed

    from checkpoints.features import measure
    from drawing import projection

    with distributed.together():
        found = {name: measure(path, args) for name, path in models.items()}
        if distributed.rank() > 0:
            return
    table = {name: row for name, (row, _) in found.items()}
    outputs.write_text(args.output / "features.json", json.dumps(table, indent=1, allow_nan=False) + "\n")
    head = [f"{words} {split}" for words in ("intra-class var.", "inter-class sep.") for split in ("train", "val")]
    outputs.write_text(args.output / "features.md", terminal.markdown(["model", *head], rows_of(table)))
    planes = {name: plane for name, (_, plane) in found.items() if plane is not None}
    if planes:
        projection.panels(planes).save(args.output / "projection")
    print(terminal.table(["model", "d_within train", "d_within val", "R2 train", "R2 val"], rows_of(table)))
    errors.say(f"tables{' and figure' if planes else ''}: {args.output}/")


def rows_of(table: dict) -> list[list[str]]:
    keys = [f"{key}_{split}" for key in ("d_within", "r2") for split in ("train", "val")]
    return [[name, *(terminal.number(row[key], 4) for key in keys)] for name, row in table.items()]


if __name__ == "__main__":
    errors.run(main)
