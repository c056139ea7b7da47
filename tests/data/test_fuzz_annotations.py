"""Whatever an annotation file holds, it is used as it says or refused in words; nothing crashes, hangs or grows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from data.fuzzing import SOAK, Sandbox, profile, report

pytestmark = pytest.mark.soak

DEEP = 100_000  # levels: far more than any parser follows
RAW = {  # written as strings, because Python's own writer refuses them
    '"@deep@"': "[" * DEEP + "]" * DEEP,
    '"@deep objects@"': '{"a":' * DEEP + "1" + "}" * DEEP, '"@digits@"': "9" * 5000,
    '"@exponent@"': "1e999", '"@tiny@"': "-1e-999", '"@half@"': '"\\ud83d"', '"@open@"': "[1, 2",
}  # fmt: skip
NUMBERS = [
    0, 1, -1, 7, 2**31, 2**32, -(2**31) - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400,
    -(10**400), 0.0, -0.0, 0.5, 1.0, -1e9, 1e12, 4e8, 1e308, -1.7e308, 5e-324, float("nan"), float("inf"),
    float("-inf"),
]  # fmt: skip
TEXTS = [
    "", "a.png", "é漢字.jpg", "\u202egpj.exe", "a\0b", "\0", "\ud800", "x\udfffy", "\ufeff", "/etc/passwd", "../a.png",
    "a/../../b.png", "..", "a\\..\\..\\b", "C:\\a.png", "C:a.png", "\\\\host\\a", "//a", "~/a.png", "./a", "a/./b",
    "a..b.png", "file:///etc/passwd", "\n", " ", "a" * 300, "a/" * 400 + "b", "漢" * 2000, "NaN", "1", "[]", "%s{0}",
]  # fmt: skip


def nested(depth: int) -> list[Any]:
    """A list in a list in a list. Between 850 and 1,100 levels the two parsers differ, depending on the caller."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


evil = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(list(RAW)).map(lambda text: text.strip('"')),
    st.sampled_from([None, True, False, [], {}, [[]], [None], {"id": 1}, [[1, 2], [3]], [[[1, 2, 3, 4, 5, 6]]]]),
    st.sampled_from([2, 90, 800]).map(nested),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)


def code(numbers: list[int]) -> str:
    """Numbers as the compressed RLE writes them, of any length; `b2inst.data.rle` says how."""
    text = ""
    for number in numbers:
        more = True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


@st.composite
def shapes(draw: st.DrawFn, height: int, width: int) -> Any:
    """A sound segmentation."""
    if draw(st.booleans()):
        number = st.floats(-3, max(height, width) + 3) | st.integers(-3, max(height, width) + 3)
        return draw(
            st.lists(st.lists(st.tuples(number, number), min_size=3, max_size=6).map(flat), min_size=1, max_size=3)
        )
    cut = sorted(draw(st.lists(st.integers(0, height * width), max_size=6)))
    rle = {"size": [height, width], "counts": np.diff([0, *cut, height * width]).tolist()}
    if draw(st.booleans()):
        rle["counts"] = coco_mask.frPyObjects(rle, height, width)["counts"].decode()
    return rle


def flat(points: list[tuple[float, float]]) -> list[float]:
    """One list of the numbers."""
    return [number for point in points for number in point]


@st.composite
def rle_bombs(draw: st.DrawFn, height: int, width: int) -> Any:
    """RLE with runs of more bits than the decoder has, sums that wrap around to the right one, or a huge size."""
    pixels = height * width
    counts = draw(st.one_of(
        st.sampled_from([31, 32, 33, 59]).map(lambda bits: code([pixels, 0, 0, 2**bits])),
        st.sampled_from([30, 31, 32, 59]).map(lambda bits: code([2**bits] * 3 + [pixels])),
        st.just(wrapping(pixels)),
        st.lists(st.integers(-(2**64), 2**64), max_size=5).map(code),
        st.lists(st.integers(-pixels, pixels), max_size=5).map(code),
        st.text(st.characters(min_codepoint=40, max_codepoint=115), max_size=30),
        st.sampled_from([[-1, pixels + 1], [2**32, pixels], [2**32 + pixels], [pixels, 0, 0, 0], [float(pixels)], []]),
    ))  # fmt: skip
    size = [height, width]
    sizes = [
        size,
        size,
        size,
        size[::-1],
        [2**31, 2**31],
        [2**32 + height, width],
        [float(height), width],
        [height],
        [],
    ]
    return {"size": draw(st.sampled_from(sizes)), "counts": counts}


def wrapping(pixels: int) -> str:
    """Runs of which one is the image, and the others add up to 2^64, which is 0 in 64 bits."""
    differences = [2**58] * 10 + [-(2**58)]  # to the run two before
    return code([pixels, *(number for difference in differences for number in (difference, 0))])


@st.composite
def polygon_bombs(draw: st.DrawFn, height: int, width: int) -> Any:
    """Polygons far away, with so many long edges that they take all memory, or of a shape that is none."""
    reach = st.sampled_from([9.5, 11, 1e5, 1e7, 4e8, 2**31, 1e10, 1e18, 1e300])
    long = st.tuples(st.sampled_from([10, 400, 20_000]), st.sampled_from([1, 9]))
    return draw(st.one_of(
        reach.map(lambda times: [[0, 0, times * width, 0, width, -times * height]]),
        long.map(lambda turns: [[0, 0, width * turns[1], height] * turns[0]]),
        st.sampled_from([50, 3000]).map(lambda number: [[1, 1, 4, 1, 4, 4]] * number),
        st.lists(st.lists(st.floats() | st.integers(), max_size=9), max_size=3),
    ))  # fmt: skip


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A sound file in which up to two things are wrong."""
    side = st.integers(1, 40)
    sizes = draw(st.lists(st.tuples(side, side) | st.sampled_from([(3000, 2), (1, 1)]), min_size=1, max_size=3))
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    categories = [{"id": i, "name": f"class {i}"} for i in draw(st.sampled_from([[1], [3, 1], [0, 5, 90]]))]
    annotations = []
    for id in range(draw(st.integers(0, 4))):
        image = draw(st.sampled_from(images))
        size = image["height"], image["width"]
        annotations.append({
            "id": id, "image_id": image["id"], "category_id": draw(st.sampled_from(categories))["id"],
            "iscrowd": draw(st.sampled_from([0, 0, 0, 1, True])), "bbox": [0, 0, size[1], size[0]],
            "segmentation": draw(shapes(*size)),
        })  # fmt: skip
    content = {"images": images, "categories": categories, "annotations": annotations}
    kind = draw(st.sampled_from(["none", "bomb", "bomb", "damage", "damage", "damage twice"]))
    if kind == "bomb" and annotations:
        annotation = draw(st.sampled_from(annotations))
        size = next((i["height"], i["width"]) for i in images if i["id"] == annotation["image_id"])
        annotation["segmentation"] = draw(rle_bombs(*size) | polygon_bombs(*size))
    for _ in range({"damage": 1, "damage twice": 2}.get(kind, 0)):
        _damage(draw, content)
    return content


def _damage(draw: st.DrawFn, content: dict[str, Any]) -> None:
    """Replace, remove, add or repeat something, anywhere in the file."""
    holder: Any = content
    while True:
        keys = list(range(len(holder))) if isinstance(holder, list) else list(holder)
        if not keys:
            return
        key = draw(st.sampled_from(keys[:50]))
        if not isinstance(holder[key], dict | list) or draw(st.integers(0, 9)) == 0:
            break
        holder = holder[key]
    action = draw(st.sampled_from(["replace"] * 5 + ["remove", "add", "repeat"]))
    if action == "replace":
        holder[key] = draw(evil)
    elif action == "remove":
        del holder[key]
    elif isinstance(holder, list):
        holder.append(draw(evil) if action == "add" else json.loads(json.dumps(holder[key])))
    else:
        holder[draw(st.text(max_size=5))] = draw(evil)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A document as bytes, which may be cut, of another encoding, or have a key twice."""
    text = json.dumps(draw(documents()), ensure_ascii=draw(st.booleans()))
    for mark, raw in RAW.items():
        text = text.replace(mark, raw)
    damage = draw(st.sampled_from(["none"] * 12 + ["cut", "flip", "insert", "twice", "encoding"]))
    if damage == "twice":
        again = draw(st.sampled_from(['"images": []', '"images": 5', '"annotations": []', '"categories": {"id": 1}']))
        text = draw(st.sampled_from(["{" + again + ", " + text[1:], text[:-1] + ", " + again + "}"]))
    if damage == "encoding":
        encoding = draw(st.sampled_from(["utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-7"]))
        return text.encode(encoding, "replace")
    content = text.encode(errors="surrogatepass")
    place = draw(st.integers(0, len(content)))
    if damage == "cut":
        return content[:place]
    if damage == "flip":
        return content[:place] + draw(st.binary(min_size=1, max_size=3)) + content[place + 1 :]
    if damage == "insert":
        return (
            content[:place]
            + draw(st.sampled_from([b"\xff", b"\0", b"\xed\xa0\x80", b"[", b"}", b"{}"]))
            + content[place:]
        )
    return content


def test_an_annotation_file_is_used_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    with Sandbox("data.fuzz_targets", "annotations", folder) as sandbox:

        @profile(short=300)
        @given(files())
        def fuzz(text: bytes) -> None:
            outcome = sandbox.run(text)
            assert outcome.verdict != "fault", f"{outcome.detail}\nof {text[:3000]!r}"

        fuzz()
        report("annotation files", sandbox.tally)
    share = sandbox.tally.used / len(sandbox.tally.seen)
    assert 0.15 < share < 0.8  # else the test looks at one side only
    assert len(sandbox.tally.seen) >= SOAK
