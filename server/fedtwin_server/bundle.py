"""The bundle that a coordinator submits to Flower: one file, no code, the same bytes everywhere.

Design note: a hospital's executor never unpacks a bundle, it compares its SHA-256 with an allow-list. So the digest
must be reproducible: the packaged `bundle/pyproject.toml` is already in the form that Flower would rewrite it to, and
a FAB stores its entries uncompressed, in a fixed order, with a fixed date. `bundle_digest` therefore needs neither
Flower nor the machine that will submit; a hospital copies the figure that the coordinator shows into its configuration.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Final

BUNDLE_DIRECTORY: Final = Path(__file__).with_name("bundle")
# Flower 1.41, cli/build.py: the configuration file first, then a manifest with name, digest and size in bits.
_CONFIGURATION: Final = "pyproject.toml"
_MANIFEST: Final = ".info/CONTENT"
_DATE: Final = (2024, 10, 1, 0, 0, 0)


def bundle_digest(directory: Path = BUNDLE_DIRECTORY) -> str:
    """Hex SHA-256 of the FAB that Flower builds from a directory that holds a pyproject.toml and nothing else.

    Guarantees:
      - equal to the digest of what `flwr build` writes, wherever and whenever either is computed
    """
    return hashlib.sha256(build_bundle((directory / _CONFIGURATION).read_bytes())).hexdigest()


def build_bundle(configuration: bytes) -> bytes:
    """The FAB around one configuration file, which must be in the form that Flower's TOML writer gives it."""
    manifest = f"{_CONFIGURATION},{hashlib.sha256(configuration).hexdigest()},{len(configuration) * 8}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in ((_CONFIGURATION, configuration), (_MANIFEST, manifest.encode())):
            bundle.writestr(zipfile.ZipInfo(name, date_time=_DATE), content)
    return buffer.getvalue()
