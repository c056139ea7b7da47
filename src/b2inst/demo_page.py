"""The page of the demo: its parts, and what happens when one of them is used."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from b2inst import demo_view as view
from b2inst.data.errors import DataError
from b2inst.demo_export import write_files
from b2inst.demo_images import ENDINGS, read_upload, thumbnail
from b2inst.predictor import B2Inst

# One at a time, whatever it is: the model is not for several threads. Nothing is offered to other programs.
QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
MAX_WAITING = 32
DELETE_EVERY, DELETE_OLDER = 600, 3600  # seconds, for the files of pictures and downloads

STYLE = """
.gradio-container { max-width: 1500px !important; }
#title h1 { margin: 0; font-size: 1.7rem; font-weight: 700; }
#title p { margin: 0; color: var(--body-text-color-subdued); }
#samples .gallery-container, #samples .grid-wrap { height: auto; min-height: 0; overflow: hidden; }
#samples .grid-container { grid-template: none / repeat(4, minmax(0, 1fr)); grid-auto-rows: auto; padding-top: 1.8rem; }
#samples .gallery-item { height: auto; } #samples .thumbnail-item { width: 100%; height: auto; aspect-ratio: 1; }
#layers .wrap:not(.hide) { display: grid; grid-template-columns: 1fr 1fr; }
#count { min-height: 4.2rem; }
#count .count { font-size: 1.15rem; } #count .count b { font-size: 1.9rem; color: var(--primary-600); }
#count .count span { margin-left: .8rem; color: var(--body-text-color-subdued); }
#count .image-name { color: var(--body-text-color-subdued); font-size: .9rem; }
#count .problem { padding: .7rem 1rem; border-left: 4px solid #dc2626; background: #fef2f2; color: #7f1d1d; }
"""
FONTS = ["system-ui", "Segoe UI", "Helvetica Neue", "Arial", "sans-serif"]  # those of the machine: nothing is fetched
WELCOME = '<div class="image-name">Drop an image on the left, or choose a sample.</div>'


def look() -> dict[str, Any]:
    """Theme and style, as `launch` takes them."""
    theme = gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=["ui-monospace", "monospace"]
    )
    return {"theme": theme, "css": STYLE}


class Page:
    """What the page does; its methods get values of parts and return values for others.

    Args:
        model: to show.
        samples: image files to choose from; a request can name their numbers only.
        cache: folder for the files that are downloaded.
        max_pixels: an image with more is refused.
        max_side: pixels of the longer side of the picture.
    """

    def __init__(
        self, model: B2Inst, samples: Sequence[Path], cache: Path, max_pixels: int, max_side: int
    ) -> None:  # fmt: skip
        self.model = model
        self.samples = samples
        self.cache = cache
        self.max_pixels = max_pixels
        self.max_side = max_side
        self.categories = dict(zip(model.category_ids, model.class_names, strict=True))
        self._one_at_a_time = threading.RLock()  # for requests that go past the queue, and for the end

    def upload(self, path: str | None, threshold: float, layers: list[str]) -> list[Any]:
        """Look at an image that was uploaded; Gradio has checked that it was, and in this session's cache."""
        return [None, *self._open(None if path is None else Path(path), threshold, layers)]

    def choose(self, threshold: float, layers: list[str], event: gr.SelectData) -> list[Any]:
        """Look at a sample."""
        known = isinstance(event.index, int) and 0 <= event.index < len(self.samples)
        return self._open(self.samples[event.index] if known else None, threshold, layers)

    def show(self, found: view.Found | None, threshold: float, layers: list[str]) -> list[Any]:
        """Show what was found at another threshold, or in other layers."""
        if found is None:
            return [gr.skip()] * 5
        with self._one_at_a_time:
            shown = view.above(found.prediction, threshold)
            coco, labelme = write_files(shown, found.name, self.categories, self.cache)
            picture = view.draw(found, shown, layers, self.max_side)
        downloads = [gr.update(value=str(path), interactive=True) for path in (coco, labelme)]
        return [view.count(found, shown), picture, view.rows(shown), *downloads]

    def stop(self) -> None:
        """Wait for what is being computed, and let nothing follow: torch aborts if Python ends in the middle of it."""
        self._one_at_a_time.acquire(timeout=60)

    def _open(self, path: Path | None, threshold: float, layers: list[str]) -> list[Any]:
        """Run the network; the state of the session, and the values of all that shows it."""
        nothing = [None, [], *(gr.update(value=None, interactive=False) for _ in range(2))]
        if path is None:
            return [None, WELCOME, *nothing]
        try:
            pixels = read_upload(path, self.max_pixels)
            with self._one_at_a_time:
                found = view.find(self.model, path.name, pixels)
        except (DataError, ValueError) as error:
            return [None, view.problem(str(error)), *nothing]
        return [found, *self.show(found, threshold, layers)]


def build(page: Page, title: str) -> gr.Blocks:
    """Put the page together.

    Args:
        page: what it does.
        title: of the model.
    """
    lowest, start = view.lowest_score(page.model), view.start_threshold(page.model)
    layers_there = list(view.layers_of(page.model))
    with gr.Blocks(title="B2Inst", analytics_enabled=False, delete_cache=(DELETE_EVERY, DELETE_OLDER)) as blocks:
        found = gr.State()
        gr.Markdown(f"# B2Inst\n\nInstance segmentation with a boundary basis &middot; `{title}`", elem_id="title")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                upload = gr.File(label="Image", file_types=list(ENDINGS), height=140, elem_id="upload")
                gallery = gr.Gallery(
                    [thumbnail(path) for path in page.samples], label="Samples", columns=4,
                    allow_preview=False, interactive=False, object_fit="cover", buttons=[], format="jpeg",
                    elem_id="samples",
                )  # fmt: skip
                threshold = gr.Slider(
                    0, 1, start, step=view.STEP, label="Score threshold", elem_id="threshold",
                    info=f"The checkpoint's own is {start:.2f}; nothing is kept below {lowest:.2f}.",
                )  # fmt: skip
                layers = gr.CheckboxGroup(layers_there, value=["masks", "outlines"], label="Layers", elem_id="layers")
            with gr.Column(scale=5, min_width=480):
                count = gr.HTML(WELCOME, elem_id="count")
                picture = gr.Image(
                    label="Result", show_label=False, interactive=False, height=520, format="png", elem_id="picture",
                    buttons=["download", "fullscreen"],
                )  # fmt: skip
                with gr.Row():
                    coco = gr.DownloadButton("COCO JSON", size="md", interactive=False, elem_id="coco")
                    labelme = gr.DownloadButton("LabelMe JSON", size="md", interactive=False, elem_id="labelme")
                table = gr.Dataframe(
                    headers=list(view.HEADERS), datatype=["html", "str", "number", "str", "number"], interactive=False,
                    label="Instances", max_height=320, column_widths=["6%", "24%", "14%", "34%", "22%"],
                    buttons=[], elem_id="instances",
                )  # fmt: skip
        shown = [count, picture, table, coco, labelme]
        run = {"show_progress_on": picture, **QUEUE}
        upload.upload(page.upload, [upload, threshold, layers], [upload, found, *shown], **run)
        gallery.select(page.choose, [threshold, layers], [found, *shown], **run)
        # always_last: while the slider is moved, what it has passed by in the meantime is left out
        gr.on(
            [threshold.change, layers.change], page.show, [found, threshold, layers], shown,
            trigger_mode="always_last", show_progress="hidden", **QUEUE,
        )  # fmt: skip
    return blocks.queue(max_size=MAX_WAITING, api_open=False, default_concurrency_limit=1)
