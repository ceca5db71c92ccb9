"""Contains, Regex, TokenF1, RougeL: what counts as the same, and what an answer or a pattern may not do."""

from __future__ import annotations

import random
import re
import string
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from finetune_trainer.config import EvaluationConfig, MetricConfig
from finetune_trainer.evaluate import contains, overlap, scoring
from finetune_trainer.evaluate.client import Reply
from finetune_trainer.evaluate.pattern import Pattern
from finetune_trainer.evaluate.rows import TestRow
from finetune_trainer.evaluate.words import normalised, parts, words
from finetune_trainer.exits import UserError
from pydantic import ValidationError

Metric = Callable[[str, str], tuple[float, str]]
RUNS_AWAY = r"((a{1,1000}){1,1000}){1,1000}b"

# ---- words

WORDS = {
    "letters and digits": ("well-known 3.5 e_mail don't", ["well", "known", "3", "5", "e", "mail", "don", "t"]),
    "accents": ("cafe\u0301 straße", ["café", "strasse"]),
    "Cyrillic": ("Привет, Мир!", ["привет", "мир"]),
    "Greek, whose last sigma is one": ("ΣΊΣΥΦΟΣ", ["σίσυφοσ"]),
    "Devanagari with its marks": ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
    "Arabic": ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
    "Persian, joined by a non-joiner": ("می\u200cخواهم", ["می\u200cخواهم"]),
    "Hebrew": ("שלום, עולם", ["שלום", "עולם"]),
    "Korean has spaces": ("안녕 세계", ["안녕", "세계"]),
    "Chinese by character": ("你好，世界2024年", ["你", "好", "世", "界", "2024", "年"]),
    "Japanese, half width too": ("ｶﾀｶﾅーabc東京", ["カ", "タ", "カ", "ナ", "ー", "abc", "東", "京"]),
    "Thai with its marks": ("ที่นี่", ["ที่", "นี่"]),
    "full width Latin": ("ＡＢＣ１２", ["abc12"]),
    "a trade mark": ("ACME™", ["acmetm"]),
    "no words": ("?! 👍\ufe0f …", []),
}


@pytest.mark.parametrize(("text", "found"), WORDS.values(), ids=WORDS)
def test_words_of(text: str, found: list[str]) -> None:
    assert words(normalised(text)) == [normalised(word) for word in found]


def test_parts_hold_whatever_is_no_space() -> None:
    assert parts("👍 c++ 2024年ก็") == ["👍", "c++", "2024", "年", "ก็"]


# ---- Contains

CONTAINED = {
    "in a sentence": ("The capital is Paris.", "Paris"),
    "another case": ("it is STRASSE 5", "Straße 5"),
    "other white space": ("New\u00a0\n  York", "new york"),
    "another form of the same letter": ("un cafe\u0301 noir", "café"),
    "full width": ("答えはＡＢＣです", "abc"),
    "the whole answer": ("yes", "yes"),
    "its own punctuation": ("I like C++.", "C++"),
    "a second place where it is a word": ("concatenate the cat", "cat"),
    "a second place that overlaps the first": ("xa a a", "a a"),
    "in parentheses": ("(cat)", "cat"),
    "Chinese without spaces": ("首都是北京市", "北京"),
    "Japanese with a particle": ("私は東京にいます", "東京"),
    "Thai": ("เมืองหลวงคือกรุงเทพ", "กรุงเทพ"),
    "Korean with a particle": ("수도는 서울입니다", "서울"),
    "Russian": ("Столица — МОСКВА!", "москва"),
    "Arabic": ("العاصمة القاهرة.", "القاهرة"),
    "a number before a unit in Han": ("6月5日", "5"),
    "several words": ("He said: good  morning, all", "Good morning"),
}
NOT_CONTAINED = {
    "inside a word": ("concatenate", "cat", "no word of the reference"),
    "the beginning of a word": ("Parisian", "Paris", "no word of the reference"),
    "another number": ("$50", "$5", "no word of the reference"),
    "a letter whose accent differs": ("cafés", "cafe", "no word of the reference"),
    "a letter with a mark more": ("xq\u0301", "xq", "no word of the reference"),
    "Devanagari with a vowel sign more": ("कमी", "कम", "no word of the reference"),
    "Thai with a mark more": ("มา่", "มา", "some of the reference's words"),
    "Korean inside a word": ("남서울은", "서울", "no word of the reference"),
    "its words apart": ("York is new", "New York", "the reference's words, but not as one"),
    "some of its words": ("New Jersey", "New York", "some of the reference's words"),
    "joined by an underscore": ("cat_food", "cat", "the reference's words, but not as one"),
    "nothing": ("", "Paris", "no word of the reference"),
}


@pytest.mark.parametrize(("answer", "reference"), CONTAINED.values(), ids=CONTAINED)
def test_it_stands_in_the_answer(answer: str, reference: str) -> None:
    assert contains.contains(answer, reference) == (1.0, "")


@pytest.mark.parametrize(("answer", "reference", "why"), NOT_CONTAINED.values(), ids=NOT_CONTAINED)
def test_it_does_not_stand_in_the_answer(answer: str, reference: str, why: str) -> None:
    assert contains.contains(answer, reference) == (0.0, why)


def test_a_reference_of_white_space_is_refused() -> None:
    with pytest.raises(UserError, match="test row r7: metric Contains has nothing to look for"):
        contains.check_reference("r7", " \u3000")


# ---- Regex

MATCHES = {
    "the first group": (r"answer: (\w+)", "So the answer: B. Or answer: C", "answer: B", 1.0, ""),
    "the whole match without groups": (r"\d+", "about 42, not 43", "42", 1.0, ""),
    "a group that is not counted": (r"(?:a|b)\d", "b1", "x b1", 1.0, ""),
    "white space at the ends": (r"=(.*)", "x = 5  ", "x =5", 1.0, ""),
    "the last one, if the pattern says so": (r"(?s).*answer: (\w+)", "answer: A\nanswer: B", "answer: B", 1.0, ""),
    "case counts": (r"[A-D]|[a-d]", "a", "A", 0.0, "another match than the reference's"),
    "or does not": (r"(?i)(yes|no)", "YES", "yes", 0.0, "another match than the reference's"),
    "another one": (r"answer: (\w+)", "answer: C", "answer: B", 0.0, "another match than the reference's"),
    "none": (r"answer: (\w+)", "B", "answer: B", 0.0, "no match of the pattern"),
    "a group that took no part": (r"(a)|b", "b", "a", 0.0, "no match of the pattern"),
    "an empty match": (r"x*", "y", "x", 0.0, "no match of the pattern"),
    "Devanagari's marks are of the word": (r"\w+", "नमस्ते!", "नमस्ते", 1.0, ""),
    "Han": (r"答案[:：]\s*(\S+)", "想一想。答案：北京", "答案: 北京", 1.0, ""),
}


@pytest.mark.parametrize(("pattern", "answer", "reference", "score", "why"), MATCHES.values(), ids=MATCHES)
def test_a_pattern_finds(pattern: str, answer: str, reference: str, score: float, why: str) -> None:
    found = Pattern(pattern)
    found.check_reference("1", reference)
    assert found.score(answer, reference) == (score, why)


@pytest.mark.parametrize("reference", ["nothing", "answer: ", "answer: \t", ""])
def test_a_reference_in_which_the_pattern_finds_nothing_is_refused(reference: str) -> None:
    with pytest.raises(UserError, match=r"test row r7: evaluation.metrics\[\].regex.pattern finds nothing") as found:
        Pattern(r"answer:(.*)").check_reference("r7", reference)
    assert found.value.reason == "ReferenceInvalid"


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "[b-a]"])
def test_a_pattern_that_does_not_compile_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match=r"evaluation.metrics\[\].regex.pattern does not compile"):
        Pattern(pattern)


def test_a_pattern_that_runs_away_is_stopped_and_on_many_answers_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.evaluate.runaway.RUNAWAYS", 3)
    found = Pattern(RUNS_AWAY, seconds=0.1)
    before = time.monotonic()
    assert [found.score("a" * 3000, "ab") for _ in range(2)] == [(0.0, "the pattern took longer than 0.1 s")] * 2
    assert found.score("ab", "ab") == (1.0, ""), "other answers count"
    with pytest.raises(UserError, match="on 3 answers") as refused:
        found.score("a" * 3000, "ab")
    assert refused.value.reason == "PatternTooSlow"
    with pytest.raises(UserError, match="on the reference of test row r7"):
        found.check_reference("r7", "a" * 3000)
    assert time.monotonic() - before < 20


# ---- TokenF1 and RougeL

# answer, reference → TokenF1, RougeL: by hand
SCORES: dict[str, tuple[str, str, float, float]] = {
    "the same": ("Paris is big", "Paris is big", 1, 1),
    "case, punctuation and articles": ("The Paris!", "paris", 1, 2 / 3),
    "3 and 4 words, 2 in common": ("police kill gunman", "police ended gunman here", 4 / 7, 4 / 7),
    "another order": ("b c d", "d c b", 1, 1 / 3),
    "a word twice counts twice": ("no no yes", "no no", 4 / 5, 4 / 5),
    "a word once more than there is": ("no no no", "no", 1 / 2, 1 / 2),
    "punctuation inside": ("U.S.", "us", 1, 0),
    "a hyphen": ("well-known", "well known", 0, 1),
    "a curly apostrophe": ("don’t", "don't", 1, 1),
    "nothing in common": ("alpha", "beta", 0, 0),
    "an empty answer": ("", "beta", 0, 0),
    "only an article": ("a", "The", 0, 0),
    "the same article": ("A", "a.", 1, 1),
    "an article beside a word": ("a b", "a", 0, 2 / 3),
    "no word, the same": ("👍!", "👍!", 1, 1),
    "no word, another": ("?!", "!!", 0, 0),
    "symbols": ("👍 yes", "👎 yes", 1 / 2, 1),
    "Chinese by character": ("我在北京", "北京", 2 / 3, 2 / 3),
    "Chinese, another order": ("京北", "北京。", 1, 1 / 2),
    "Japanese with digits": ("2024年です", "2024年", 2 / 3, 2 / 3),
    "Thai by character": ("กขค", "กข", 4 / 5, 4 / 5),
    "Russian": ("Красный дом", "красный  кот", 1 / 2, 1 / 2),
    "Arabic": ("القاهرة الكبرى", "القاهرة", 2 / 3, 2 / 3),
    "Korean by word": ("서울 시", "서울", 2 / 3, 2 / 3),
    "Hindi": ("नमस्ते दुनिया", "नमस्ते", 2 / 3, 2 / 3),
    "German": ("STRASSE", "Straße", 1, 1),
}


@pytest.mark.parametrize(("answer", "reference", "f1", "rouge"), SCORES.values(), ids=SCORES)
def test_overlap(answer: str, reference: str, f1: float, rouge: float) -> None:
    assert (overlap.token_f1(answer, reference)[0], overlap.rouge_l(answer, reference)[0]) == pytest.approx((f1, rouge))


WHY = {
    "no word of the reference": ("x", "a b c"),
    "partly right, more than twice as long as the reference": ("b c d e f", "c b"),
    "partly right, less than half as long as the reference": ("b", "b c d"),
    "partly right": ("b c d", "b c e"),
    "": ("b c", "b c"),
}


@pytest.mark.parametrize("metric", [overlap.token_f1, overlap.rouge_l])
@pytest.mark.parametrize("why", WHY)
def test_why_an_overlap_is_not_whole(metric: Metric, why: str) -> None:
    assert metric(*WHY[why])[1] == why


def test_another_order_is_told_where_it_counts() -> None:
    assert overlap.rouge_l("b c", "c b") == (1 / 2, "the reference's words in another order")
    assert overlap.token_f1("b c", "c b") == (1.0, "")


def texts(seed: int, alphabet: Sequence[str], separator: str) -> list[tuple[str, str]]:
    """Pairs of random texts of 1 to 12 pieces, many of them shared."""
    drawn = random.Random(seed)
    return [
        (separator.join(drawn.choices(alphabet, k=drawn.randint(1, 12))), separator.join(drawn.choices(alphabet, k=drawn.randint(1, 12))))
        for _ in range(300)
    ]


ALPHABETS: dict[str, tuple[Sequence[str], str]] = {
    "English": (["the", "cat", "Sat", "on", "a", "mat", "dog"], " "),
    "ASCII": (["a", "the", "B", "7", " ", " ", *string.punctuation[:9], "_", "\t", "~"], ""),
    "Chinese": ("我在北京東，。", ""),
    "Hindi": (["नमस्ते", "दुनिया", "कम", "कमी"], " "),
    "everything": ("aB 1é\u0301ßİאبक\u093fก\u0e31東カー한👍\ufe0f\u200d\u200c，_-", ""),
}


@pytest.mark.parametrize("metric", [overlap.token_f1, overlap.rouge_l])
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_score_is_symmetric_between_0_and_1_and_1_of_equal_texts(metric: Metric, alphabet: str) -> None:
    pairs = texts(7, *ALPHABETS[alphabet])
    scores = [metric(one, other)[0] for one, other in pairs]
    assert scores == [metric(other, one)[0] for one, other in pairs]
    assert {metric(one, one) for one, _ in pairs} == {(1.0, "")}
    assert min(scores) >= 0
    assert max(scores) <= 1
    assert any(0 < score < 1 for score in scores), "some overlap, or nothing was tried"


@pytest.mark.parametrize("metric", [overlap.token_f1, overlap.rouge_l, contains.contains])
def test_texts_without_a_common_word_score_0(metric: Metric) -> None:
    drawn = random.Random(3)
    for ours, theirs, separator in (("bcd", "efg", " "), ("我在北", "京東人", ""), ("бвг", "джз", " ")):
        for _ in range(50):
            answer, reference = (separator.join(drawn.choices(of, k=drawn.randint(1, 9))) for of in (ours, theirs))
            assert metric(answer, reference) == (0.0, "no word of the reference")


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_every_text_contains_itself(alphabet: str) -> None:
    for one, other in texts(11, *ALPHABETS[alphabet]):
        assert contains.contains(one, one) == (1.0, "")
        assert contains.contains(f"{other} {one} {other}", one) == (1.0, "")


def squad(text: str) -> list[str]:
    """SQuAD's normalisation, as evaluate-v1.1.py has it: lower case, ASCII punctuation out, articles out."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def squad_f1(one: Sequence[str], other: Sequence[str]) -> float:
    same = sum((Counter(one) & Counter(other)).values())
    if not same:
        return 0.0
    precision, recall = same / len(one), same / len(other)
    return 2 * precision * recall / (precision + recall)


def rouge_f(one: str, other: str) -> float:
    """ROUGE-L as rouge_score has it: words of a-z and 0-9, the table of the longest common subsequence."""
    a, b = (re.sub(r"[^a-z0-9]+", " ", text.lower()).split() for text in (one, other))
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    if not (common := table[-1][-1]):
        return 0.0
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("alphabet", ["English", "ASCII"])
def test_ascii_scores_as_the_reference_implementations_do(alphabet: str) -> None:
    pairs = texts(13, *ALPHABETS[alphabet])
    known = [(one, other) for one, other in pairs if squad(one) and squad(other)]
    assert len(known) > 90, "the rest has no word by SQuAD"
    for one, other in known:
        assert overlap.token_f1(one, other)[0] == pytest.approx(squad_f1(squad(one), squad(other)))
        if words(normalised(one)) and words(normalised(other)):
            assert overlap.rouge_l(one, other)[0] == pytest.approx(rouge_f(one, other))


def test_a_long_answer_takes_bounded_work() -> None:
    drawn = random.Random(5)
    one, other = (" ".join(str(drawn.randint(0, 3000)) for _ in range(20_000)) for _ in range(2))
    before = time.process_time()
    score = overlap.rouge_l(one, other)[0]
    assert time.process_time() - before < 10, "the table of all pairs would take minutes"
    assert 0 < score < 1


# ---- as metrics


def config(*metrics: dict[str, Any]) -> EvaluationConfig:
    return EvaluationConfig.model_validate({"name": "tuned", "path": "/work/e", "metrics": list(metrics)})


def test_all_are_scored_of_a_row_with_why() -> None:
    asked = config(
        *({"type": name} for name in ("ExactMatch", "Contains", "TokenF1", "RougeL")), {"type": "Regex", "regex": {"pattern": "[A-Z]\\w+"}}
    )  # fmt: skip
    test = [TestRow("1", ({"role": "user", "content": "?"},), "Paris")]
    every = scoring.scorers(asked.metrics)
    scoring.check(every, test)
    [row] = scoring.score(every, test, {"1": Reply("It is Paris.")})
    assert row.scores == {"ExactMatch": 0.0, "Contains": 1.0, "Regex": 0.0, "TokenF1": 1 / 2, "RougeL": 1 / 2}
    longer = "partly right, more than twice as long as the reference"
    assert row.notes == {"Regex": "another match than the reference's", "TokenF1": longer, "RougeL": longer}


@pytest.mark.parametrize("metric", [{"type": "Contains"}, {"type": "Regex", "regex": {"pattern": "x"}}])
def test_a_reference_that_cannot_be_looked_for_is_named_before_anything_is_asked(metric: dict[str, Any]) -> None:
    test = [TestRow("r7", ({"role": "user", "content": "?"},), " ")]
    with pytest.raises(UserError, match="test row r7"):
        scoring.check(scoring.scorers(config(metric).metrics), test)


def test_a_metric_has_its_block() -> None:
    with pytest.raises(ValidationError, match=re.escape("metric Regex needs regex.pattern")):
        MetricConfig.model_validate({"type": "Regex"})
