"""checksums.py and image_mode.py: every subproject that reads checkpoints or images has a copy."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from subprojects import Subproject

verify_checksums = Subproject("viz").load("checkpoints.checksums").verify_checksums
to_rgb = Subproject("viz").load("images.image_mode").to_rgb
CONTENT = {"model": {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3)}, "epoch": 3, "classes": ["a", "b", "c"]}


def test_no_flipped_bit_is_believed(tmp_path):
    """One bit of each byte of a checkpoint is flipped in turn: the damage is noticed, or what is read is what was written."""
    path = tmp_path / "model.pth"
    torch.save(CONTENT, path)
    assert verify_checksums(path)
    whole, noticed = path.read_bytes(), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            verify_checksums(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            noticed += 1
            continue
        try:
            read = torch.load(path, weights_only=True)
        except Exception:  # torch.load notices the rest: it compares the names and the number of entries
            continue
        assert torch.equal(read["model"]["weight"], CONTENT["model"]["weight"])
        assert torch.equal(read["model"]["bias"], CONTENT["model"]["bias"])
        assert read["epoch"] == 3 and read["classes"] == ["a", "b", "c"]
    assert noticed > 500


def test_the_damaged_member_is_named(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    place = whole.index(CONTENT["model"]["weight"].numpy().tobytes())
    path.write_bytes(whole[: place + 5] + b"\xff" + whole[place + 6 :])
    with pytest.raises(ValueError, match=r"model\.pth: damaged in 'model/data/0' \(Bad CRC-32"):
        verify_checksums(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="damaged in the directory"):
        verify_checksums(path)
    with pytest.raises(FileNotFoundError):
        verify_checksums(tmp_path / "missing.pth")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/0", bytes(10**6))
    with pytest.raises(ValueError, match="compressed"):
        verify_checksums(path)


def test_formats_without_checksums(tmp_path):
    torch.save(CONTENT, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(CONTENT["model"], tmp_path / "model.safetensors")
    assert not verify_checksums(tmp_path / "old.pth") and not verify_checksums(tmp_path / "model.safetensors")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, tmp_path / "unchecked.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert not verify_checksums(tmp_path / "unchecked.pth")


def decoded(image, form):
    file = io.BytesIO()
    image.save(file, form)
    with Image.open(file) as image:
        return to_rgb(image)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight(form):
    deep = np.array([[0, 128, 129], [257 * 77, 65534, 65535]], np.uint16)
    assert np.asarray(decoded(Image.fromarray(deep), form))[..., 0].tolist() == [[0, 0, 1], [77, 255, 255]]


def test_pixels_of_unknown_range_are_refused():
    for deep in (np.ones((2, 3), np.float32), np.ones((2, 3), np.int32)):
        with pytest.raises(ValueError, match="whose range is not known"):
            decoded(Image.fromarray(deep), "TIFF")


def test_other_modes_are_converted_as_pillow_does():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    for mode in ("RGB", "RGBA", "L", "P", "1", "LA", "CMYK"):
        image = Image.fromarray(pixels, "RGBA").convert(mode)
        assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()
