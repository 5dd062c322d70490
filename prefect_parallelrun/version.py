"""The version of this package; it is read from here when the package is built, too."""

from __future__ import annotations

__version__ = "0.1.0"
