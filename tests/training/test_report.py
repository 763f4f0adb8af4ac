"""The report: one file that needs no other, is well formed whatever is written into it, and says what it is given."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest

from fastvae.training.report import ROWS, write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=")


class Page(HTMLParser):
    """Tags that were opened, in order; an error where they are not closed as they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.seen if name == tag]


@pytest.fixture
def written(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(PIXEL)
    history = [{"epoch": epoch, "step": 10 * epoch, "val_elbo": -100.0 + epoch / 7} for epoch in range(1, 101)]

    def write(**given):
        options = {
            "title": "vae on digits", "summary": {"ELBO": "-85.71 nats"},
            "settings": {"hidden": [400, 20], "beta": None},
            "pictures": [(picture, "What is seen")], "history": history, "commands": [("go on", "fastvae train")],
        }  # fmt: skip
        write_report(tmp_path / "report.html", **options | given)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


def test_the_page_is_well_formed_and_made_for_phones(written):
    text = written()
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.attributes("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.attributes("meta")
    assert {"charset": "utf-8"} in page.attributes("meta")
    assert "max-width: 100%" in text


def test_nothing_is_fetched_from_anywhere(written):
    page = Page(written())
    assert not page.attributes("script")
    assert not page.attributes("link")
    links = [value for _, attributes in page.seen for name, value in attributes.items() if name in ("src", "href")]
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "url(" not in written()


def test_pictures_are_inside_with_words_for_those_who_do_not_see_them(written):
    (image,) = Page(written()).attributes("img")
    assert base64.b64decode(image["src"].partition(",")[2]) == PIXEL
    assert image["alt"] == "What is seen"


def test_large_pictures_are_made_small_and_stay_pictures(written, tmp_path):
    np = pytest.importorskip("numpy")
    Image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    smooth = np.kron(random.integers(0, 200, (60, 60, 3)), np.ones((25, 25, 1))) + random.integers(
        0, 9, (1500, 1500, 3)
    )
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "photo.png")
    assert (tmp_path / "photo.png").stat().st_size > 2_000_000
    text = written(pictures=[(tmp_path / "photo.png", "a photo")])
    assert len(text) < 400_000
    (image,) = Page(text).attributes("img")
    kind, _, data = image["src"].partition(";base64,")
    assert kind == "data:image/jpeg"
    (tmp_path / "inside.jpg").write_bytes(base64.b64decode(data))
    assert Image.open(tmp_path / "inside.jpg").size == (960, 960)


def test_of_many_epochs_about_twenty_are_shown_and_the_last_is_one(written):
    page = Page(written())
    assert len(page.attributes("tr")) <= ROWS + 1 + 3
    assert "1,000" in page.words
    assert "-85.71" in page.words


def test_names_with_marks_of_html_do_no_harm(written):
    text = written(
        title="<b>&amp;", summary={"<i>": "<u>"}, settings={"output": "<script>alert(1)</script>"},
        commands=[("<p>", 'fastvae "<a>"')], pictures=[],
    )  # fmt: skip
    page = Page(text)
    assert not {tag for tag, _ in page.seen} & {"script", "b>", "i", "u", "a"}
    assert "<script>alert(1)</script>" in page.words
    assert "<b>&amp;" in page.words


def test_settings_and_commands_are_there(written):
    words = Page(written()).words
    assert "400 20" in words
    assert "fastvae train" in words


def test_a_run_without_an_epoch_has_a_report(written):
    assert "None is complete yet." in Page(written(history=[])).words


def test_a_report_that_fails_leaves_the_old_one(written, tmp_path):
    before = written()
    with pytest.raises(FileNotFoundError):
        written(pictures=[(tmp_path / "none.png", "none")])
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "report.html"]
