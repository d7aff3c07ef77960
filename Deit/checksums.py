"""Verify that a file written by torch.save is intact: torch.load itself checks no checksums.

This file is the same in each folder that reads such files; it needs only the standard library.
"""

import zipfile
from pathlib import Path

CHUNK = 1 << 20  # bytes


def verify_checksums(path: Path) -> bool:
    """Check each member of the ZIP archive that torch.save writes against its CRC-32, at about 1 GB/s, in little memory.

    Returns False for a file without checksums: it is not a ZIP archive (PyTorch before 1.6, safetensors), or was saved with
    torch.serialization.set_crc32_options(False). Raises ValueError naming the file and the damaged member, and OSError if the
    file cannot be opened.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # torch.load distinguishes the formats in the same way
            return False
        member = "the directory"
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                for entry in entries if any(entry.CRC for entry in entries) else ():
                    member = repr(entry.filename)
                    if entry.compress_type != zipfile.ZIP_STORED:  # memory mapping would read the compressed bytes as weights
                        raise ValueError("compressed, which torch.save never does")
                    with archive.open(entry) as content:
                        while content.read(CHUNK):
                            pass
        except Exception as error:  # a damaged archive can fail in many ways
            raise ValueError(f"{path}: damaged in {member} ({str(error) or type(error).__name__}); copy or write the file again")
    return any(entry.CRC for entry in entries)
