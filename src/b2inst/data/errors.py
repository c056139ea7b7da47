"""The one error of everything that is wrong with data on disk."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the record, the key and the remedy."""


class ImageSizeError(DataError):
    """An image file that has another size than its annotations say."""
