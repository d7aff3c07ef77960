"""Whether a file of torch.save holds what was written to it: torch.load itself compares no checksum.

This file is the same in each folder that reads such files; it needs the standard library alone.
"""

import zipfile
from pathlib import Path

CHUNK = 1 << 20  # bytes


def verify_checksums(path: Path) -> bool:
    """Compare each member of the ZIP archive that torch.save writes with its CRC-32, at about 1 GB/s, in little memory.

    False for a file without checksums: it is no ZIP archive (PyTorch before 1.6, safetensors), or was saved with
    torch.serialization.set_crc32_options(False). Raises ValueError, which names the file and the damaged member, and OSError
    where the file cannot be opened.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # the rule by which torch.load tells the formats apart
            return False
        member = "the directory"
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                for entry in entries if any(entry.CRC for entry in entries) else ():
                    member = repr(entry.filename)
                    if entry.compress_type != zipfile.ZIP_STORED:  # memory mapping would take it for the weights themselves
                        raise ValueError("compressed, which torch.save never does")
                    with archive.open(entry) as content:
                        while content.read(CHUNK):
                            pass
        except Exception as error:  # a damaged archive can fail in many ways
            raise ValueError(f"{path}: damaged in {member} ({str(error) or type(error).__name__}); copy or write the file again")
    return any(entry.CRC for entry in entries)
