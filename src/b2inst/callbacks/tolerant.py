"""What a training can do without."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def expendable(what: object) -> Iterator[None]:
    """Make an error while writing, as on a full disk, a line in the log; training goes on.

    Args:
        what: is lost then.
    """
    try:
        yield
    except OSError as error:
        log.error("%s could not be written (%s); it is lost, and training goes on", what, error.strerror or error)
