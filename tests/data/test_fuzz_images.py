"""Whatever an image file holds, it is read as Pillow reads it or refused in words, in training, predict and verify."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.fuzzing import SOAK, Sandbox, profile, report
from data.make_pictures import bombs, pictures

pytestmark = pytest.mark.soak

ENDINGS = [".jpg", ".png", ".webp", ".tif", ".bmp", ".gif", ".txt", ".mp4", ""]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """A picture, whole, cut off or damaged: its kind, a file name and the bytes."""
    kind = draw(st.sampled_from(sorted(pictures())))
    content = pictures()[kind]
    ending = draw(st.sampled_from([f".{kind.split()[0]}"] * 2 * len(ENDINGS) + ENDINGS))
    action = draw(st.sampled_from(["whole", "cut", "cut", "cut near the end", "bytes", "header", "range", "other"]))
    place = draw(st.integers(0, len(content) - 1))
    if action == "cut":
        content = content[:place]
    elif action == "cut near the end":
        content = content[: -draw(st.integers(1, 16))]
    elif action == "bytes":
        for byte in draw(st.binary(min_size=1, max_size=8)):
            content = content[:place] + bytes([byte]) + content[place + 1 :]
            place = draw(st.integers(0, len(content) - 1))
    elif action == "header":  # sizes, offsets and lengths are there
        place = draw(st.integers(0, 60))
        value = draw(st.sampled_from([0, 1, 255, 2**15, 2**16 - 1, 12_000, 2**31 - 1, 2**31, 2**32 - 1]))
        content = content[:place] + value.to_bytes(4, draw(st.sampled_from(["big", "little"]))) + content[place + 4 :]
    elif action == "range":
        new = draw(st.sampled_from([b"", bytes(40), b"\xff" * 40, b"\xff\xd9", content[:60]]))
        content = content[:place] + new + content[place + draw(st.integers(0, 60)) :]
    elif action == "other":
        content = content[:place] + pictures()[draw(st.sampled_from(sorted(pictures())))][place:]
    return kind, f"é {action}{ending}", content


def test_an_image_file_is_used_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Sandbox("data.fuzz_targets", "image", tmp_path_factory.mktemp("fuzz")) as sandbox:

        @profile(short=300)
        @given(files())
        def fuzz(file: tuple[str, str, bytes]) -> None:
            outcome = sandbox.run(file)
            assert outcome.verdict != "fault", f"{outcome.detail}\nof {file[0]}, {file[1]}, {file[2][:2000]!r}"

        fuzz()
        for kind, content in pictures().items():
            outcome = sandbox.run((kind, f"whole.{kind.split()[0]}", content))
            assert outcome.verdict == "used", f"{kind}: {outcome.detail}"
        for kind, content in bombs().items():
            outcome = sandbox.run(("", f"bomb.{kind.split()[0]}", content))
            assert outcome.verdict == "refused" and outcome.megabytes < 100, f"{kind}: {outcome}"
        report("image files", sandbox.tally)
    share = sandbox.tally.used / len(sandbox.tally.seen)
    assert 0.15 < share < 0.8  # else the test looks at one side only
    assert len(sandbox.tally.seen) >= SOAK
