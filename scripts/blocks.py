"""What the scripts that write into pages share."""

from __future__ import annotations

import re


def replace_block(text: str, begin: str, end: str, content: str) -> str:
    """Put `content` between two lines of a text.

    Args:
        text: of the page.
        begin, end: the lines, which stay.
        content: what stands between them afterwards.

    Raises:
        ValueError: the text does not have both lines in this order.
    """
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has no lines\n{begin}\n{end}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)
