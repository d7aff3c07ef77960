"""Where a decision comes from: Grad-CAM maps (Selvaraju et al. 2017) of images, as in the MaxSup repository's Figure 2.

    python viz/gradcam.py --checkpoint ls.pth maxsup.pth --names LS MaxSup --images dog.jpg cat.jpg --output cam.png
    python viz/gradcam.py ... --target 207                 # the map of this class (name or label), not of the predicted one

One row per image: the image itself, then one column per model. Each panel shows the model's own crop and, below it, the
predicted class and its probability.
"""

from pathlib import Path

from common import errors, options, outputs
from common.errors import InputError, reason
from common.terminal import counted


def main() -> None:
    parser = options.parser("Figure 2 of the MaxSup repository: Grad-CAM maps of images, for each model.")
    options.add_models(parser, "checkpoint")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="image files, one row of the figure each")
    parser.add_argument("--target", help="class to explain, a name or a label; if omitted: the one that each model predicts")
    options.add_output(parser, "figure to write, .png or .pdf")
    options.add_preprocessing(parser)
    args = options.parse(parser)
    if args.output.suffix not in (".png", ".pdf"):
        raise InputError(f"--output {args.output}: a figure's name ends with .png or .pdf")
    outputs.check_file(args.output, args.overwrite, *args.checkpoint, *args.images)
    models = options.models_of(args)

    from checkpoints import inference
    from drawing import grad_cam, style

    pictures, columns = [read_picture(path) for path in args.images], {}
    for name, path in models.items():
        checkpoint = inference.load(path, args)
        columns[name] = grad_cam.explain_all(checkpoint, pictures, args.target, args.device, name)
    style.save_one(grad_cam.draw(columns, args.images, pictures), args.output)
    errors.say(f"{counted(len(pictures), 'image')} by {counted(len(columns), 'model')}: {args.output}")


def read_picture(path: Path):
    """The image in a file, as RGB. Raises InputError."""
    from PIL import Image

    from images.image_mode import to_rgb

    if not path.is_file():
        raise InputError(f"--images {path}: no such file")
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:  # a damaged image can raise any exception
        raise InputError(f"--images {path}: does not decode as an image ({reason(error)})")


if __name__ == "__main__":
    errors.run(main)
