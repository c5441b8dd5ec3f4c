"""Labels among the tokens that servers tell, in every form that they tell them."""

import math

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sieve_edge.errors import TaskError
from sieve_edge.task.told import (
    FORCING_BIAS,
    OUTSIDE,
    Found,
    LabelScorer,
    Piece,
    Told,
    label_pieces,
    next_token,
    piece_value,
    read_told,
)
from sieve_edge.task.told_chats import chat_scores

BYTES = pre_tokenizers.ByteLevel.alphabet()
TOKENS = {token: index for index, token in enumerate([*sorted(BYTES), "Ġg", "Ġgo", "od", "Ġgood", "Ġb", "ad", "Ġbad"])}


def make_tokenizer(*merges):
    pairs = [("Ġ", "g"), ("Ġ", "b"), ("o", "d"), ("a", "d"), ("Ġg", "o"), ("Ġb", "ad"), *merges]
    tokenizer = Tokenizer(models.BPE(TOKENS, [pair for pair in pairs if "".join(pair) in TOKENS]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def step(token, **top):
    return Told(token, top.get(token, OUTSIDE), top)


def test_every_form_is_read():
    columns = {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1, "b": -3.0}]}
    pairs = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -3.0}]
    chat = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": pairs}]}
    expected = [Told("a", -0.1, {"a": -0.1, "b": -3.0})]
    assert read_told(columns) == expected
    assert read_told(chat) == expected
    assert read_told(columns | {"top_logprobs": [None]}) == [Told("a", -0.1, {"a": -0.1})]
    with pytest.raises(ValueError, match="shorter"):
        read_told(columns | {"tokens": ["a", "b"]})


@pytest.mark.parametrize("unreached", [-9999.0, -math.inf, math.nan, None])
def test_what_servers_say_of_tokens_out_of_reach_is_no_likelihood(unreached):
    columns = {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1, " good": unreached}]}
    assert read_told(columns)[0].top == {"a": -0.1}
    assert read_told(columns | {"token_logprobs": [unreached]})[0].value == OUTSIDE


def test_the_longest_token_goes_on_with_a_label_and_its_space_counts():
    told = {" pos": -1.0, " positive": -2.0, " p": -3.0, "positive": -0.5, "": -0.1, " ": -0.2, "x": -5.0}
    assert next_token(" positive", told) == (9, -2.0)
    assert next_token(" negative", told) is None
    assert next_token(" positive", {"pos": -1.0}) == (4, -1.0), "servers that tell tokens without their space"
    assert next_token("itive", {" itive": -1.0}) is None


class Server:
    """Tells log-likelihoods of a table: text so far -> token -> value; ``before`` tells them without the bias."""

    def __init__(self, table, top=9, before=False):
        self.table, self.top, self.before, self.asked = table, top, before, []

    def __call__(self, context, bias):
        self.asked.append((context, dict(bias)))
        values = dict(self.table[context])
        names = {index: token.replace("Ġ", " ") for token, index in TOKENS.items()}
        biased = {
            token: value + sum(b for t, b in bias.items() if names[t] == token) for token, value in values.items()
        }
        total = math.log(sum(map(math.exp, biased.values())))
        shown = values if self.before else {token: value - total for token, value in biased.items()}
        written = max(biased, key=biased.get)
        likeliest = sorted(shown, key=shown.get)[-self.top :]
        return Told(written, shown[written], {token: shown[token] for token in {*likeliest, written}})


TABLE = {
    "Is it?": {"x": math.log(0.9), " bad": math.log(0.0997), " go": math.log(0.0003)},
    "Is it? go": {"od": math.log(0.25), "y": math.log(0.75)},
}
EXPECTED = [math.log(0.0003 * 0.25), math.log(0.0997)]


def test_all_tokens_of_a_label_count():
    server = Server(TABLE)
    found = LabelScorer([" good", " bad"]).scores(server, "Is it?")
    assert [each.score for each in found] == pytest.approx(EXPECTED)
    assert [each.outside for each in found] == [False, False]
    assert len(server.asked) == 2, "the prompt once, and one beginning"
    few = LabelScorer([" good", " bad"]).scores(Server(TABLE, top=2), "Is it?")
    assert (few[0].score, few[0].outside, few[1].outside) == (OUTSIDE, True, False)


@pytest.mark.parametrize("before", [False, True])
def test_a_label_outside_the_told_tokens_is_found_by_a_bias(before):
    labels = [" good", " bad"]
    scorer = LabelScorer(labels, label_pieces(make_tokenizer(), labels))
    server = Server(TABLE, top=2, before=before)
    found = scorer.scores(server, "Is it?")
    assert [each.score for each in found] == pytest.approx(EXPECTED)
    assert [each.outside for each in found] == [True, False]
    assert [bias for _, bias in server.asked if bias] == [{TOKENS["Ġgo"]: FORCING_BIAS}]


def test_a_server_that_heeds_no_bias_leaves_the_label_outside():
    labels = [" good", " bad"]
    scorer = LabelScorer(labels, label_pieces(make_tokenizer(), labels))
    server = Server(TABLE, top=2)
    found = scorer.scores(lambda context, _: server(context, {}), "Is it?")
    assert found[0] == Found(OUTSIDE, True)


def test_labels_whose_tokens_end_within_a_character_are_refused():
    with pytest.raises(TaskError, match="no whole characters"):
        label_pieces(make_tokenizer(), [" é"])


def test_labels_of_a_chat_are_told_apart_further_on():
    steps = [step(" (", **{" (": -0.1, "x": -3.0}), step("B", A=-2.0, B=-0.5)]
    assert [each.score for each in chat_scores(steps, [" (A)", " (B)"])] == pytest.approx([-2.0, -0.5])
    assert [each.score for each in chat_scores([step("x", x=0.0)], [" (A)", " (B)"])] == [OUTSIDE, OUTSIDE]
    assert [each.score for each in chat_scores(steps[1:], [" A", " B"])] == pytest.approx([-2.0, -0.5])


def test_a_label_is_the_token_that_it_is_written_as():
    both = step("yes", **{"yes": -0.1, " yes": -2.0, " no": -1.0, "no": -3.0})
    assert [each.score for each in chat_scores([both], [" yes", " no"])] == [-2.0, -1.0]
    assert [each.score for each in chat_scores([both], ["yes", "no"])] == [-0.1, -3.0]
    other = {"good": -0.1, " bad": -1.0}
    assert next_token(" good", other) is None, "the server tells spaces, so this is another token"
    piece = Piece(" good", 0, frozenset({" good", "good"}))
    assert piece_value(piece, other) is None
    assert piece_value(piece, {"good": -0.1}) == -0.1
    assert piece_value(piece, {"good": -0.1, " good": -3.0}) == -3.0


def test_a_label_of_a_chat_that_is_only_begun_has_no_score():
    found = chat_scores([step("Very", Very=-0.1, No=-2.0)], [" Very good", " No"])
    assert found == [Found(OUTSIDE, True, True), Found(-2.0, False, True)]
