"""The text form of proposals: what it means, what is refused and in which words, and that it survives a round trip."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.errors import GradvarError
from gradvar.masking.designs import sum_over
from gradvar.masking.hashing import hash_key
from gradvar.masking.pps import PPS
from gradvar.masking.proposal import GRAMMAR, Proposal, nearest, parse_proposal, with_absolute_path
from gradvar.masking.scores import SCORES, AtTargets, Frequency, Permuted, Power, TokenTable, Uniform
from gradvar.masking.sets import ConditionalPoisson, Disjoint, Midzuno, Pool
from gradvar.masking.units import Hard, Span, WholeWord
from tests.masking.enumeration import SENTENCES, scores_of

LOSS = AtTargets("loss")


@pytest.mark.parametrize(
    ("text", "proposal"),
    [
        ("uniform/simple", Proposal()),
        ("uniform/simple@0.3", Proposal(mask_rate=0.3)),
        ("loss/midzuno", Proposal(LOSS, Midzuno())),
        ("loss/midzuno~0.1", Proposal(LOSS, Midzuno(0.1))),
        ("logit^0.5/pps~0.1", Proposal(Power(AtTargets("logit"), 0.5), PPS(epsilon=0.1))),
        ("oracle/pps:systematic", Proposal(AtTargets("gradient"), PPS("systematic"))),
        ("loss/conditional-poisson", Proposal(LOSS, ConditionalPoisson())),
        ("loss/conditional-poisson:0.25~1", Proposal(LOSS, ConditionalPoisson(1.0, 0.25))),
        ("loss/conditional-poisson:-1", Proposal(LOSS, ConditionalPoisson(alpha=-1.0))),
        ("oracle/pool:8~0.05", Proposal(AtTargets("gradient"), Pool(8, 0.05))),
        ("uniform/disjoint:3@0.1", Proposal(Uniform(), Disjoint(3), 0.1)),
        ("last-layer^-2/hard", Proposal(Power(AtTargets("last-layer"), -2.0), Hard())),
        ("uniform/span:5~0.5@0.4", Proposal(Uniform(), Span(0.5, 5), 0.4)),
        ("frequency/whole-word", Proposal(Frequency(), WholeWord())),
        ("file=a/b.c/d~e@f:g.tsv^2/hard~0.2", Proposal(Power(TokenTable("a/b.c/d~e@f:g.tsv"), 2.0), Hard(0.2))),
    ],
)
def test_texts_and_their_proposals(text, proposal):
    """Both ways."""
    assert parse_proposal(text) == proposal
    assert str(proposal) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("loss/pool", "loss/pool:4"),
        ("uniform/disjoint", "uniform/disjoint:2"),
        ("loss/span:3", "loss/span"),
        ("loss/pps:conditional-poisson", "loss/pps"),
        ("loss^0.50/hard~1e-1@.25", "loss^0.5/hard~0.1@0.25"),
    ],
)
def test_defaults_are_written_one_way(text, shown):
    assert str(parse_proposal(text)) == shown


DESIGN_NAMES = "simple, midzuno, conditional-poisson, pool, pps, disjoint, epoch-stratified, hard, span, whole-word"
SCORE_NAMES = "uniform, oracle, logit, last-layer, loss, frequency, mapnet, mapnet-permuted, file=PATH"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, f"'{text}' is no proposal; write {GRAMMAR}") for text in ("", "simple", "/", "/simple", "loss/")),
        ("loss/pps@", f"'loss/pps@': there is no mask rate after '@'; write {GRAMMAR}"),
        ("loss/pps~", f"'loss/pps~': there is no epsilon after '~'; write {GRAMMAR}"),
        ("loss/pps~@0.1", f"'loss/pps~@0.1': there is no epsilon after '~'; write {GRAMMAR}"),
        ("loss/pps:", f"'loss/pps:': there is no argument after ':'; write {GRAMMAR}"),
        ("loss/pps@half", f"'loss/pps@half': the mask rate 'half' is not a number; write {GRAMMAR}"),
        ("loss/pps~x", f"'loss/pps~x': the epsilon 'x' is not a number; write {GRAMMAR}"),
        ("loss/pps@0.2~0.1", f"'loss/pps@0.2~0.1': the mask rate '0.2~0.1' is not a number; write {GRAMMAR}"),
        *(
            (f"loss/pps@{rate}", f"'loss/pps@{rate}': the mask rate {rate} is not between 0 and 1")
            for rate in ("0", "1", "-0.1", "15", "nan", "inf")
        ),
        *(
            (f"loss/pps~{epsilon}", f"'loss/pps~{epsilon}': the epsilon {epsilon} is not between 0 and 1")
            for epsilon in ("0", "1.01", "-0.1", "nan")
        ),
        ("loss/pp", f"'loss/pp': there is no design 'pp'; did you mean 'pps'? there are {DESIGN_NAMES}"),
        ("loss/xyz", f"'loss/xyz': there is no design 'xyz'; there are {DESIGN_NAMES}"),
        ("loss/~0.1", f"'loss/~0.1': there is no design ''; there are {DESIGN_NAMES}"),
        ("loss/midzuno:2", "'loss/midzuno:2': midzuno takes no argument"),
        ("uniform/simple:2", "'uniform/simple:2': simple takes no argument"),
        ("loss/hard:2", "'loss/hard:2': hard takes no argument"),
        ("loss/whole-word:2", "'loss/whole-word:2': whole-word takes no argument"),
        *(
            (f"loss/{name}:{value}", f"'loss/{name}:{value}': {name} takes {wants}, not '{value}'")
            for name, wants, values in (
                ("conditional-poisson", "a number", ("x", "nan", "inf")),
                ("pool", "a number of candidates, 1 to 1000", ("0", "1.5", "x", "1001")),
                ("pps", "conditional-poisson or systematic", ("poisson",)),
                ("disjoint", "a number of masks, 2 to 1000", ("1", "x", "9" * 20)),
                ("span", "a number of positions, 1 to 1000", ("0", "-3", "9" * 20)),
            )
            for value in values
        ),
        ("uniform/simple~0.1", "'uniform/simple~0.1': simple is uniform already; leave ~0.1 out"),
        ("uniform/disjoint:2~0.1", "'uniform/disjoint:2~0.1': disjoint is uniform already; leave ~0.1 out"),
        ("los/pps", f"'los/pps': there is no score 'los'; did you mean 'loss'? there are {SCORE_NAMES}"),
        ("x/pps", f"'x/pps': there is no score 'x'; there are {SCORE_NAMES}"),
        ("^2/pps", f"'^2/pps': there is no score ''; there are {SCORE_NAMES}"),
        (
            "loss^2^3/pps",
            f"'loss^2^3/pps': there is no score 'loss^2'; did you mean 'loss'? there are {SCORE_NAMES}",
        ),
        *(
            (f"loss^{x}/pps", f"'loss^{x}/pps': the exponent '{x}' is not a number; write {GRAMMAR}")
            for x in ("", "half", "nan", "-inf")
        ),
        *(
            (
                f"{name}/pps",
                f"'{name}/pps': {name} needs a fitted network; give --mapnet-dir (gradvar fit-mapnet makes one)",
            )
            for name in ("mapnet", "mapnet-permuted")
        ),
        ("loss^99/pps", "a score cannot be raised to the power 99; give -16 to 16"),
        ("loss/simple", "'loss/simple': simple takes the uniform score only"),
        ("uniform^2/simple", "'uniform^2/simple': simple takes the uniform score only"),
        ("loss/disjoint:3", "'loss/disjoint:3': disjoint takes the uniform score only"),
    ],
)
def test_what_is_refused_and_in_which_words(text, message):
    with pytest.raises(GradvarError) as error:
        parse_proposal(text)
    assert str(error.value) == message
    assert "\n" not in message


def test_a_pair_is_refused_however_it_is_made():
    with pytest.raises(GradvarError, match=r"^'frequency/disjoint:2': disjoint takes the uniform score only$"):
        Proposal(Frequency(), Disjoint())


def test_more_scores_may_be_given_by_name():
    """Then the network's are known too."""
    more = {"mapnet": Permuted(LOSS), "mine": Power(LOSS, 2.0)}
    assert parse_proposal("mapnet/pps", more) == Proposal(Permuted(LOSS), PPS())
    assert parse_proposal("mine^0.5/pps", more) == Proposal(Power(Power(LOSS, 2.0), 0.5), PPS())
    with pytest.raises(GradvarError, match="there is no score 'min'; did you mean 'mine'"):
        parse_proposal("min/pps", more)


def test_a_score_that_was_given_is_listed_once():
    with pytest.raises(GradvarError) as error:
        parse_proposal("mapnett/pps", {"mapnet": LOSS, "mapnet-permuted": Permuted(LOSS)})
    assert str(error.value) == (
        f"'mapnett/pps': there is no score 'mapnett'; did you mean 'mapnet'? there are {SCORE_NAMES}"
    )


def test_a_suggestion_is_made_of_what_is_near_alone():
    assert nearest("ab", ["abc", "xyz"]) == "; did you mean 'abc'? there are abc, xyz"
    assert nearest("q", iter(["abc", "xyz"])) == "; there are abc, xyz"


@st.composite
def texts(draw, number):
    """Any proposal's text; `number` gives numbers as they are written, of at most 1."""

    def maybe(*strategies):
        return draw(st.one_of(st.just(""), *strategies))

    exponent = number.map(lambda x: f"^{x}")
    name = draw(st.sampled_from([*SCORES, "file=a/b~c.tsv"])) + maybe(exponent, number.map(lambda x: f"^-{x}"))
    design = draw(
        st.one_of(
            st.sampled_from(["midzuno", "hard", "whole-word", "pps", "pps:systematic", "pool", "span"]),
            st.integers(1, 99).map("pool:{}".format),
            st.integers(1, 99).map("span:{}".format),
            number.map("conditional-poisson:{}".format),
            st.just("conditional-poisson"),
        )
    )
    mixing = maybe(number.map("~{}".format))
    if draw(st.booleans()):
        name, mixing, design = "uniform", "", draw(st.sampled_from(["simple", "disjoint", "disjoint:5"]))
    return f"{name}/{design}{mixing}{maybe(number.map('@{}'.format))}"


def assert_survives(text):
    once = parse_proposal(text)
    again = parse_proposal(str(once))
    assert again == once
    assert str(again) == str(once)


@settings(deadline=None, max_examples=300)
@given(texts(st.integers(1, 10**6 - 1).map(lambda x: f"{x * 1e-6:.6f}") | st.sampled_from(["1e-7", "2.5e-300"])))
def test_a_proposal_survives_its_text(text):
    """Numbers of up to six digits."""
    assert_survives(text)


@pytest.mark.parametrize(
    "text", ["loss^0.1234567/hard", "loss/hard~0.1234567", "loss/hard@0.1234567", "loss/conditional-poisson:0.1234567",
             "loss/hard@0.9999999"]
)  # fmt: skip
def test_a_proposal_with_many_digits_survives_its_text(text):
    assert_survives(text)


@dataclass(frozen=True)
class Own:
    """A design of a user's own."""

    takes_scores = True


def test_a_users_own_design_goes_by_its_class_or_name():
    assert str(Proposal(LOSS, Own(), 0.2)) == "loss/Own@0.2"
    named = type("Named", (Own,), {"name": "mine"})
    assert str(Proposal(LOSS, named())) == "loss/mine"


class Task:
    """An objective with one loss a position, and norms of whole sets."""

    def __init__(self):
        self.scores = scores_of("mild")

    def at_targets(self, quantity, sentences):
        return 5 * self.scores.unsqueeze(0)

    def norms_of_sets(self, sentences):
        return lambda positions, valid, keys: sum_over(1 / self.scores.clamp(min=1e-9), positions, valid)


KEYS = hash_key(0, torch.arange(70).view(7, 10))


def drawn(proposal):
    task = Task()
    scores = proposal.scores(SENTENCES, task)
    return scores, proposal.draw(SENTENCES, scores, KEYS, task)


def test_a_pool_by_norms_of_whole_cells_measures_no_positions(monkeypatch):
    def measured(*_):
        raise AssertionError("the gradients of all positions were measured, some hundred times the step")

    monkeypatch.setattr(Task, "at_targets", measured)
    scores, masks = drawn(parse_proposal("oracle/pool:3"))
    assert torch.equal(scores, SENTENCES.maskable.double())
    assert len(masks.keys) == KEYS.numel()


@pytest.mark.parametrize("design", ["midzuno", "pps", "pool:3", "hard", "conditional-poisson"])
def test_a_proposal_draws_as_its_design_does_with_positive_scores(design):
    proposal = parse_proposal(f"loss/{design}~0.2")
    scores, masks = drawn(proposal)
    torch.testing.assert_close(scores, scores_of("mild"), rtol=1e-12, atol=0)
    plain = proposal.design.draw(SENTENCES, scores, KEYS)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(vars(masks).values(), vars(plain).values(), strict=True)
    )


def test_the_oracles_pool_asks_for_the_norms_of_sets_and_no_other_pair_does():
    for text, asks in (
        ("oracle/pool:3", True),
        ("oracle^2/pool:3", True),
        ("loss/pool:3", False),
        ("oracle/hard", False),
    ):
        proposal = parse_proposal(text)
        scores, masks = drawn(proposal)
        plain = proposal.design.draw(SENTENCES, scores, KEYS)
        assert torch.equal(masks.weights, plain.weights) != asks
    norms = Task().norms_of_sets(SENTENCES)
    expected = Pool(3).draw(SENTENCES, scores, KEYS, norms)
    assert torch.equal(drawn(parse_proposal("oracle/pool:3"))[1].weights, expected.weights)


def test_scores_that_are_none_are_refused_by_the_name_of_the_score():
    class Own:
        def __call__(self, sentences, task):
            return torch.full(sentences.ids.shape, -1.0)

        def __str__(self):
            return "mine"

    for text in ("mine/hard", "mine^0.5/hard"):
        with pytest.raises(GradvarError, match=r"^the score 'mine' gives -1 to position 1 of a sentence"):
            parse_proposal(text, {"mine": Own()}).scores(SENTENCES, Task())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file=a.tsv/pps", "file={here}/a.tsv/pps"),
        ("file=b/a.tsv^0.5/pps~0.1@0.3", "file={here}/b/a.tsv^0.5/pps~0.1@0.3"),
        ("file=a^b/midzuno", "file={here}/a^b/midzuno"),
        ("file=/x/a.tsv/pps", "file=/x/a.tsv/pps"),
        ("logit^0.5/pps", "logit^0.5/pps"),
    ],
)
def test_a_score_files_path_is_made_absolute(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    assert with_absolute_path(text) == expected.format(here=tmp_path)
