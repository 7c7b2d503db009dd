"""Token scores and page parsing that several tests share."""

from html.parser import HTMLParser

import numpy as np

from gradvar.report.tokens import ScoredSentence, TokenScores

VOID = {"meta", "img", "wbr", "br", "hr"}
ODD = ("[CLS]", "<script>alert(1)</script>", "##ing", "\x1b[31m", "\"&'", "w5", "[SEP]")


def sentence(
    tokens: tuple[str, ...] = ODD, seed: int = 0, datum: int = 3, names: tuple[str, ...] = ("oracle", "loss", "logit")
) -> ScoredSentence:
    """A sentence whose first and last tokens are special, with random scores."""
    rng = np.random.default_rng(seed)
    maskable = np.array([False, *[True] * (len(tokens) - 2), False])
    scores = {name: np.where(maskable, rng.lognormal(size=len(tokens)), 0.0) for name in names}
    texts = tuple(token[2:] if token.startswith("##") else f" {token}" for token in tokens)
    return ScoredSentence(datum, tokens, texts, maskable, scores)


def scores(*sentences: ScoredSentence, **changes: object) -> TokenScores:
    study = {"sentences": len(sentences), "mask_rate": 0.15, "contexts": 4, "seed": 0}
    provenance = {"checkpoint": "a/<b>", "versions": {"python": "3"}}
    return TokenScores(sentences or (sentence(),), study, provenance, **changes)


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, parents and text; every tag must be closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.style = [], [], ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attributes": dict(attrs), "parents": tuple(self.open), "text": ""}
        assert len(dict(attrs)) == len(attrs)
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, kind=None):
        """Elements of a tag, perhaps of a class."""
        named = [element for element in self.elements if element["tag"] == tag]
        return [e for e in named if kind is None or kind in e["attributes"].get("class", "").split()]

    def inside(self, parent, tag, kind=None):
        return [e for e in self.all(tag, kind) if any(p is parent for p in e["parents"])]

    @property
    def text(self):
        """The text of the body, white space as a reader sees it."""
        return " ".join(self.all("body")[0]["text"].split())
