"""The demo in a real Chromium, as a visitor uses it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from PIL import Image

from demo_process import DemoProcess, running_demo
from toy import toy_checkpoint

pytest.importorskip("gradio", reason="the demo needs Gradio: pip install 'b2inst[demo]'")
pytest.importorskip("selenium", reason="needs selenium: pip install selenium")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--window-size=1440,1200",
]  # fmt: skip
PATIENCE = 60  # seconds

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs Chromium and its driver: apt-get install chromium chromium-driver"
)


class Visitor:
    """What somebody sees and does on the page."""

    def __init__(self, driver: webdriver.Chrome, shots: Path) -> None:
        self.driver = driver
        self.shots = shots

    def part(self, selector: str) -> Any:
        return self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector), f"no {selector}")[0]

    def wait(self, condition: Callable[[], Any], message: str) -> Any:
        return WebDriverWait(self.driver, PATIENCE).until(lambda _: condition(), message)

    def texts(self, selector: str) -> list[str]:
        """Read in the page at once: parts may be replaced between two questions."""
        script = "return [...document.querySelectorAll(arguments[0])].map(part => part.innerText)"
        return self.driver.execute_script(script, selector)

    def count(self) -> int | None:
        (text,) = self.texts("#count .count b") or [""]
        return int(text) if text else None

    def picture(self) -> str | None:
        """The address of the picture, which Gradio makes from its content; None until it is there."""
        script = """const image = document.querySelector("#picture img");
                    return image && image.complete && image.naturalWidth ? image.src : null"""
        return self.driver.execute_script(script)

    def upload(self, path: Path) -> None:
        self.part("#upload input[type=file]").send_keys(str(path))

    def shoot(self, name: str) -> None:
        self.driver.save_screenshot(str(self.shots / f"{name}.png"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    noise = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
    Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 3)).save(folder / "photo.png")
    (folder / "notes.jpg").write_text("no image, whatever the name says")
    return folder


@pytest.fixture(scope="module")
def demo(folder: Path) -> Iterator[DemoProcess]:
    with running_demo(toy_checkpoint(folder / "toy.ckpt", best_threshold=0.45), folder, "max_samples=4") as running:
        yield running


@pytest.fixture()
def visitor(demo: DemoProcess, tmp_path: Path) -> Iterator[Visitor]:
    shots = Path(os.environ.get("B2INST_SCREENSHOTS") or tmp_path / "screenshots")
    shots.mkdir(parents=True, exist_ok=True)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        driver.get(demo.url)
        yield Visitor(driver, shots)
    finally:
        driver.quit()


def table(visitor: Visitor) -> list[float]:
    """The scores in the rows that are to be seen, best first."""
    return [float(text) for text in visitor.texts("#instances [data-testid^='cell-'][data-testid$='-2']") if text]


def test_a_visit(visitor: Visitor, folder: Path, demo: DemoProcess) -> None:
    visitor.part("#samples button")
    visitor.shoot("1_welcome")
    assert visitor.count() is None and visitor.picture() is None

    visitor.upload(folder / "photo.png")
    everything = visitor.wait(visitor.count, "no count after the upload")
    masks = visitor.wait(visitor.picture, "no picture after the upload")
    assert "photo.png, 96 x 72" in visitor.texts("#count")[0]
    best = visitor.wait(lambda: table(visitor)[1:], "no table")[0]  # of the second
    visitor.shoot("2_upload")

    slider = visitor.part("#threshold input[type=range]")
    assert float(slider.get_attribute("value")) == 0.45
    slider.send_keys(*[Keys.ARROW_RIGHT] * int((best - 0.45) / 0.01))
    fewer = visitor.wait(lambda: visitor.count() != everything and visitor.count(), "the count stays")
    fewer_masks = visitor.wait(lambda: visitor.picture() not in (None, masks) and visitor.picture(), "picture stays")
    assert 0 < fewer < everything
    visitor.wait(lambda: visitor.texts("#count .count b") == [str(fewer)], "the count changes on")
    visitor.shoot("3_threshold")

    for number, label in enumerate(visitor.driver.find_elements(By.CSS_SELECTOR, "#layers label")[2:], 4):
        before = visitor.picture()
        label.click()
        visitor.wait(lambda seen=before: visitor.picture() not in (None, seen), f"no change by {label.text}")
        visitor.shoot(f"{number}_{label.text}")
    assert visitor.count() == fewer and visitor.picture() != fewer_masks

    visitor.upload(folder / "notes.jpg")
    visitor.wait(lambda: visitor.texts("#count .problem"), "no message")
    assert visitor.texts("#count .problem")[0].startswith("notes.jpg is not an image that can be read (32 bytes)")
    assert "Traceback" not in visitor.driver.page_source and "Traceback" not in demo.log.read_text()
    visitor.wait(lambda: visitor.picture() is None, "the picture of the other image stays")
    visitor.shoot("6_problem")


def test_samples_and_downloads(visitor: Visitor, tmp_path: Path) -> None:
    visitor.part("#samples button").click()
    visitor.wait(visitor.count, "no count after the choice of a sample")
    for part, name, key in (("coco", "000001_coco.json", "annotations"), ("labelme", "000001.json", "shapes")):
        visitor.part(f"#{part}").click()
        visitor.wait((tmp_path / name).exists, f"{name} does not come")
        content = json.loads((tmp_path / name).read_text())
        assert len(content[key]) >= visitor.count() > 0


def test_the_page_asks_no_other_host(visitor: Visitor, folder: Path, demo: DemoProcess) -> None:
    visitor.upload(folder / "photo.png")
    visitor.wait(visitor.picture, "no picture")
    messages = [json.loads(entry["message"])["message"] for entry in visitor.driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    hosts = {urlsplit(url).netloc for url in asked if urlsplit(url).scheme in ("http", "https", "ws", "wss")}
    assert len(asked) > 10 and hosts == {f"127.0.0.1:{demo.port}"}
    refused = [entry for entry in visitor.driver.get_log("browser") if "Content Security Policy" in entry["message"]]
    assert refused == []
