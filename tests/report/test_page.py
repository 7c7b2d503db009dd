import base64
import dataclasses
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

import gradvar
from gradvar.report.page import render_page
from gradvar.report.tokens import DEEPEST, SCALES
from tests import cases
from tests.report.scored import Page, scores, sentence
from tests.runs.folders import write_arms

CONTRAST = 4.5
DATA = "data:image/svg+xml;base64,"


@pytest.fixture(scope="module")
def decomposition():
    return gradvar.decompose(cases.objective(padded=True), sentences=6, masks=3)


@pytest.fixture(scope="module")
def comparison():
    objective = cases.objective()
    found = gradvar.compare(objective, ["loss^0.25/pps", "uniform/disjoint:2", "logit/hard"], sentences=5, masks=4)
    return dataclasses.replace(found, tokens=scores(sentence(), sentence(seed=1)))


@pytest.fixture(scope="module", params=["decomposition", "comparison", "tokens", "runs"])
def result(request, tmp_path_factory):
    if request.param == "runs":
        return gradvar.compare_runs(write_arms(tmp_path_factory.mktemp("runs")))
    if request.param == "tokens":
        return scores(sentence(), sentence(seed=2), notices=("the text '<b>' was cut",))
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def page(result):
    return Page(render_page(result))


def test_there_is_no_script(page):
    tags = {element["tag"] for element in page.elements}
    assert tags & {"script", "noscript", "link", "iframe", "object", "embed", "base", "form", "template"} == set()
    for element in page.elements:
        assert [name for name in element["attributes"] if name.startswith("on")] == []
        assert "javascript:" not in str(element["attributes"])


def test_nothing_refers_to_anything_outside(page):
    for element in page.elements:
        attributes = element["attributes"]
        assert {"href", "srcset", "action", "poster", "background", "http-equiv"} & attributes.keys() == set()
        assert attributes.get("src", DATA).startswith(DATA)
        assert "url(" not in attributes.get("style", "")
    style = "".join(element["text"] for element in page.all("style"))
    assert re.findall(r"url\(|@import|@font-face|https?:", style) == []


def test_every_picture_is_whole_and_refers_to_nothing(page, result):
    images = page.all("img")
    counts = {"Decomposition": 3, "Comparison": 2, "TokenScores": 0, "RunComparison": 3}
    assert len(images) == counts[type(result).__name__]
    for image in images:
        assert len(image["attributes"]["alt"]) > 30
        assert image["parents"][-2]["tag"] == "figure"
        svg = base64.b64decode(image["attributes"]["src"].partition(",")[2]).decode()
        assert re.findall(r"@import|url\(['\"]?(?!#)|<script|<image|<text", svg) == []
        for element in ElementTree.fromstring(svg).iter():
            links = [x for name, x in element.attrib.items() if name.rpartition("}")[2] == "href"]
            assert [link for link in links if not link.startswith("#")] == []


def test_headings_tables_and_language(page):
    assert [page.elements[0]["tag"], page.elements[0]["attributes"]["lang"]] == ["html", "en"]
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) == 1
    levels = [int(e["tag"][1]) for e in page.elements if re.fullmatch("h[1-6]", e["tag"])]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for table in page.all("table"):
        (caption,) = page.inside(table, "caption")
        assert caption["text"].strip()
        assert {cell["attributes"].get("scope") for cell in page.inside(table, "th")} == {"col", "row"}
        width = len([th for th in page.inside(table, "th") if th["attributes"]["scope"] == "col"])
        for row in page.inside(table, "tr"):
            assert len([e for e in page.elements if e["parents"][-1:] == (row,)]) == width


def test_what_is_wide_scrolls_in_its_own_container(page):
    (viewport,) = [e for e in page.all("meta") if e["attributes"].get("name") == "viewport"]
    assert viewport["attributes"]["content"].startswith("width=device-width")
    for element in (*page.all("table"), *page.all("img")):
        container = element["parents"][-1]
        assert container["attributes"]["class"] == "scroll"
        assert (container["attributes"]["role"], container["attributes"]["tabindex"]) == ("region", "0")
        assert container["attributes"]["aria-label"]


def test_the_page_says_what_the_summary_says(page, result):
    """Every number of the summary, and every sentence of it; tables are compared cell by cell."""
    summary = repr(result).replace("█", "")
    numbers = set(re.findall(r"(?<![\w.])-?\d[\w.,]*\b", summary))
    assert len(numbers) > 10
    assert [number for number in numbers if number not in page.text] == []
    flowing = " ".join(summary.split())
    for line in [
        page.all("h1")[0],
        *(e for e in page.all("p") if e["parents"][-1]["attributes"].get("class") == "lead"),
    ]:
        assert " ".join(line["text"].split()) in flowing
    for note in result.notices:
        assert note in page.text


def test_tokens_are_escaped():
    page = Page(render_page(scores(sentence())))
    assert page.all("script") == []
    shown = [span["text"] for span in page.all("span", "t")]
    assert shown[:2] == ["<script>alert(1)</script>", "ing"]
    assert page.all("span", "t")[0]["attributes"]["title"].startswith("<script>alert(1)</script>, position 1: oracle ")
    assert "\x1b" not in page.text
    assert page.all("p", "source")[0]["text"] == "a/<b>"


def test_the_highest_tokens_are_named():
    one = sentence(("[CLS]", "w1", "##w2", "w3", "w4", "[SEP]"))
    one.scores["loss"][:] = [9, 1, 4.5678, 2, 3, 9]
    page = Page(render_page(scores(one)))
    (box,) = page.all("div", "loss")
    assert [e["text"] for e in page.inside(box, "p", "highest")] == ["Highest: ##w2 4.57, w4 3, w3 2"]


def test_words_are_put_together_again():
    page = Page(render_page(scores(sentence(("[CLS]", "play", "##ing", "well", "[SEP]")))))
    assert page.all("p", "tokens")[0]["text"].split() == ["[CLS]", "playing", "well", "[SEP]"]


@pytest.mark.parametrize("name", ["oracle", "loss", "logit", "mapnet"])
def test_shades_grow_with_the_score(name):
    names = ("oracle", "mapnet", "loss", "logit")
    one = sentence(("[CLS]", *(f"w{i}" for i in range(20)), "[SEP]"), names=names)
    one.scores[name][4] = 0.0
    page = Page(render_page(scores(one)))
    (box,) = page.all("div", name)
    opacities = [float(t["attributes"]["style"].removeprefix("--a:")) for t in page.inside(box, "span", "t")]
    expected = DEEPEST * one.scores[name][1:-1] / one.scores[name].max()
    assert np.allclose(opacities, expected, atol=1e-4)
    assert opacities[3] == 0
    assert max(opacities) == DEEPEST
    assert [t["text"] for t in page.inside(box, "span", "special")] == ["[CLS]", "[SEP]"]


def test_a_sentence_whose_scores_are_zero_has_no_shade():
    one = sentence()
    one.scores["loss"][:] = 0.0
    page = Page(render_page(scores(one)))
    (box,) = page.all("div", "loss")
    assert {t["attributes"]["style"] for t in page.inside(box, "span", "t")} == {"--a:0.0000"}


def luminance(colour):
    parts = np.asarray(colour) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(first, second):
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def colour(text):
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)])


def test_contrast_is_what_it_should_be():
    """The formula of WCAG, on values that it gives itself."""
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stays_readable_on_every_shade(scheme):
    style = Page(render_page(scores())).all("style")[0]["text"]
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    values = dict(re.findall(r"--([\w-]+): ([^;]+);", blocks[0]))
    hues = {name: np.array(values[name].split(), dtype=float) for name in SCALES}
    if scheme == "dark":
        values |= dict(re.findall(r"--([\w-]+): ([^;]+);", blocks[1]))
    text, ground = colour(values["text"]), colour(values["ground"])
    for hue in hues.values():
        for opacity in np.linspace(0, DEEPEST, 13):
            assert contrast(text, opacity * hue + (1 - opacity) * ground) >= CONTRAST
    assert contrast(colour(values["soft"]), ground) >= CONTRAST
    assert contrast(text, colour(values["panel"])) >= CONTRAST
    assert min(contrast(text, hue) for hue in hues.values()) < CONTRAST  # so that full shades would not do


def test_the_numbers_on_hover_are_there_as_text():
    one = sentence()
    page = Page(render_page(scores(one)))
    (table,) = [t for t in page.all("table") if any(p["tag"] == "details" for p in t["parents"])][:1]
    rows = [r for r in page.inside(table, "tr") if r["parents"][-1]["tag"] == "tbody"]
    texts = [[e["text"] for e in page.elements if e["parents"][-1:] == (row,)] for row in rows]
    spans = page.inside(page.all("div", "oracle")[0], "span", "t")
    assert len(texts) == len(spans) == 5
    for (token, position, *numbers), span in zip(texts, spans, strict=True):
        labels = (SCALES[name].label for name in ("oracle", "loss", "logit"))
        said = ", ".join(f"{label} {number}" for label, number in zip(labels, numbers, strict=True))
        assert span["attributes"]["title"] == f"{token}, position {position}: {said}"
    assert float(texts[0][2]) == pytest.approx(one.scores["oracle"][1], rel=5e-3)


@pytest.mark.usefixtures("undrawn")
def test_scores_come_with_a_result_only_where_it_has_some(decomposition, comparison):
    assert Page(render_page(decomposition)).all("p", "tokens") == []
    with_scores = dataclasses.replace(decomposition, tokens=scores())
    for result, sentences in ((with_scores, 1), (comparison, 2)):
        page = Page(render_page(result))
        assert len(page.all("p", "tokens")) == 3 * sentences
        assert len(page.all("details")) == sentences + 1


@pytest.mark.usefixtures("undrawn")
def test_the_titles_of_figures_are_captions(decomposition):
    page = Page(render_page(decomposition))
    titles = [decomposition.plot(name).axes[0].get_title(loc="left") for name in ("layers", "batch", "cells")]
    captions = [" ".join(e["text"].split()) for e in page.all("figcaption")]
    assert captions == [" ".join(title.split()) for title in titles]
    assert "" not in captions


def test_the_same_result_gives_the_same_page(decomposition):
    assert render_page(decomposition) == render_page(decomposition)


def test_a_long_proposal_may_break(comparison):
    row = dataclasses.replace(comparison.proposals[1], proposal="file=/a/very/long/path.tsv/pps")
    page = Page(render_page(dataclasses.replace(comparison, proposals=(row,))))
    names = [th for th in page.all("th") if th["text"] == row.proposal]
    assert len(names) == 2
    assert all(len(page.inside(name, "wbr")) == 6 for name in names)
