"""Re-encoding: images shrunk and saved as JPEG, in parallel, in the order of the archive."""

import io
from collections.abc import Callable, Iterator

from common import IN_FLIGHT, in_order, one_line, processes

from PIL import Image

from image_mode import to_rgb
from unpack import InputError


def reencoded(images: list, read: Callable, settings: tuple, workers: int) -> Iterator[bytes]:
    jobs = ((name, read(location), *settings) for name, location in images)
    with processes(workers) as pool:
        try:
            yield from in_order(pool, reencode, jobs, IN_FLIGHT * workers)
        except ValueError as error:  # from reencode, in a worker process
            raise InputError(error)


def reencode(name: str, data: bytes, shorter_side: int | None, max_side: int | None, quality: int | None) -> bytes:
    """The image shrunk to the given sizes, as JPEG; its original bytes if it is small enough and no quality is given.

    Raises ValueError naming an image that does not decode.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            factor = min(1, (shorter_side or min(image.size)) / min(image.size), (max_side or max(image.size)) / max(image.size))
            if factor == 1 and not quality:
                return data
            image = to_rgb(image)
    except Exception as error:  # a damaged file can raise any exception
        raise ValueError(f"{name}: does not decode as an image ({one_line(error)}); replace or remove it")
    if factor < 1:
        image = image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)
    output = io.BytesIO()
    image.save(output, "JPEG", quality=quality or 90)
    return output.getvalue()
