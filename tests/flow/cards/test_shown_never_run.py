"""Whatever text a card gets is shown letter by letter, and nothing of it runs: by an HTML parser, and in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from steps.flow.cards import page
from tests.flow.cards.samples import HOSTILE, UNSEEN, UNSEEN_SHOWN, evaluate_page, train_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGES = pytest.mark.parametrize(
    "make", [pytest.param(evaluate_page, id="evaluate"), pytest.param(train_page, id="train")]
)
TAGS = set(
    re.findall(
        r"\w+",
        "html head meta title style body main h1 h2 h3 small p b span div section pre table tr th td ol ul li i em figure"
        " figcaption svg line path",
    )
)
"""All that our templates write."""


class Reader(HTMLParser):
    """Collects tags, attributes, and the text of each `pre`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.boxes: list[str] = []
        self.text = ""
        self._in_box = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "pre":
            self._in_box = True
            self.boxes.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_box = self._in_box and tag != "pre"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_box:
            self.boxes[-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


@PAGES
def test_a_finished_page_has_our_tags_only_and_no_handler(make: Callable[[list[str]], str]) -> None:
    found = read(make(HOSTILE))
    assert found.tags <= TAGS
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert not [value for name, value in found.attributes if name in ("src", "href", "srcdoc", "action")]


@PAGES
def test_a_page_fetches_nothing_and_forbids_scripts(make: Callable[[list[str]], str]) -> None:
    text = make(["plain"] * 4)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.search(r"https?:|url\(|@import|<script", text)


def test_each_text_of_a_row_is_there_letter_by_letter() -> None:
    boxes = [box.removeprefix("\n") for box in read(evaluate_page(HOSTILE)).boxes]
    for text in HOSTILE:
        assert boxes.count(text) == 4, text


def test_every_text_of_a_training_is_there() -> None:
    text = read(train_page(HOSTILE)).text
    for hostile in HOSTILE:
        assert hostile in text


@PAGES
def test_characters_that_nobody_sees_are_shown(make: Callable[[list[str]], str]) -> None:
    text = make([UNSEEN] * 4)
    text.encode("utf-8")
    assert UNSEEN_SHOWN in read(text).text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
@pytest.mark.parametrize("without_policy", [False, True], ids=["with-policy", "escaping-alone"])
@PAGES
def test_nothing_runs_in_a_browser(make: Callable[[list[str]], str], without_policy: bool, tmp_path: Path) -> None:
    """Also without the page's own policy: then only escaping keeps the rows from running."""
    text = make(HOSTILE)
    if without_policy:
        text = re.sub(r"<meta http-equiv=[^>]*>", "", text)
    spy = "<script>window.onload=()=>setTimeout(()=>{document.body.innerHTML='<p id=seen></p>';" + (
        "document.getElementById('seen').textContent=JSON.stringify([document.title,window.boxes])},500);"
        "document.addEventListener('DOMContentLoaded',()=>{window.boxes=[...document.querySelectorAll('pre')]"
        ".map(e=>e.textContent)})</script>"
    )
    if not without_policy:  # the spy may run, a row's script may not
        text = text.replace("style-src", "script-src &#39;nonce-spy&#39;; style-src")
        spy = spy.replace("<script>", '<script nonce="spy">')
    source = tmp_path / "card.html"
    source.write_text(text.replace("</head>", f"{spy}</head>"), "utf-8")
    dom = dump(source, tmp_path / "profile")
    title, boxes = json.loads(html.unescape(re.search(r'<p id="seen">(.*?)</p>', dom, re.DOTALL)[1]))
    assert title == re.sub(r"\s+", " ", HOSTILE[0])
    if make is evaluate_page:
        for hostile in HOSTILE:
            assert boxes.count(hostile) == 4, hostile


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
def test_nothing_of_a_new_body_runs_in_a_page_that_is_open(tmp_path: Path) -> None:
    """Metaflow's viewer calls the page's one function with what the step sent."""
    live = page.page("calm", "<p>before</p>", reload_token="never")
    nonce = re.search(r'nonce="([^"]+)"', live)[1]
    new = json.dumps({"body": evaluate_page(HOSTILE).split("<main", 1)[1]}).replace("<", "\\u003c")
    viewer = f'<script nonce="{nonce}">window.onload=()=>metaflow_card_update({new})</script>'
    source = tmp_path / "live.html"
    source.write_text(live.replace("</head>", f"{viewer}</head>"), "utf-8")
    dom = dump(source, tmp_path / "profile")
    assert "<title>calm</title>" in dom
    assert "<p>before</p>" not in dom
    assert html.escape(HOSTILE[1], quote=False) in dom


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
def test_the_browser_of_these_tests_does_run_what_is_not_escaped(tmp_path: Path) -> None:
    source = tmp_path / "bare.html"
    source.write_text(f"<title>calm</title><body>{HOSTILE[1]}</body>", "utf-8")
    assert "<title>ran</title>" in dump(source, tmp_path / "profile")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
@PAGES
def test_no_text_is_wider_than_a_phone(make: Callable[[list[str]], str], tmp_path: Path) -> None:
    long = "Überwachungsaufgabenübertragungsgesetz" * 20
    text = re.sub(r"<meta http-equiv=[^>]*>", "", make([long] * 4))
    spy = (
        "<script>window.onload=()=>{document.title=`${document.documentElement.scrollWidth} of ${innerWidth}`}</script>"
    )
    source = tmp_path / "card.html"
    source.write_text(text.replace("</head>", f"{spy}</head>"), "utf-8")
    found, width = map(int, re.findall(r"<title>(\d+) of (\d+)", dump(source, tmp_path / "profile", width=390))[0])
    assert found <= width < 600


def dump(source: Path, profile: Path, *, width: int = 1200) -> str:
    """The page as it is after two seconds in a headless Chromium."""
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        f"--window-size={width},900",
        "--virtual-time-budget=2000",
    ]
    command = [str(CHROMIUM), *options, "--dump-dom", source.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=90).stdout
