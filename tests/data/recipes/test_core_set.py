import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.data.recipes.balance import yes_or_no
from vlm_jax.data.recipes.core_set import Rules, Sample, select
from vlm_jax.errors import UserError

CONCEPTS = {"color": ["red", "dark green"], "place": ["left", "next to"], "people": ["man"], "rare": ["unicorn"]}
WORDS = ["red", "dark", "green", "left", "next", "to", "man", "unicorn", "the", "what"]

answers = st.one_of(
    st.sampled_from(["Yes.", "No.", "yes", "No, it is not."]),
    st.lists(st.sampled_from(WORDS), min_size=1).map(" ".join),
)
pair = st.tuples(st.lists(st.sampled_from(WORDS), max_size=5).map(lambda words: " ".join(["Is", *words])), answers)


@st.composite
def pools(draw, most=3):
    pairs = st.lists(pair, min_size=1, max_size=most)
    drawn = draw(st.lists(st.tuples(st.sampled_from("ab"), pairs), min_size=1, max_size=40))
    return [Sample(f"{number:03}", kind, found) for number, (kind, found) in enumerate(drawn)]


def quota_for(pool, size):
    return dict.fromkeys(sorted({sample.type for sample in pool}), size)


def by_hand(sample, kept=None):
    """Keywords of a sample, found in another way than by the code."""
    found = set()
    for text in itertools.chain(*sample.questions):
        plain = " " + " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split()) + " "
        found |= {word for words in CONCEPTS.values() for word in words if f" {word} " in plain}
    return found if kept is None else found & set(kept)


@settings(max_examples=40)
@given(pools(), st.integers(0, 12), st.integers(1, 4))
def test_the_best_of_each_type_are_taken(pool, size, min_frequency):
    found = select(pool, Rules(CONCEPTS, quota_for(pool, size), min_frequency, ratio=None))
    frequency = Counter(word for sample in pool for word in by_hand(sample))
    assert found.kept == {word: count for word, count in frequency.items() if count >= min_frequency}
    for kind in {sample.type for sample in pool}:
        ranked = sorted((-len(by_hand(s, found.kept)), s.id) for s in pool if s.type == kind)
        assert [pool[n].id for n in found.chosen if pool[n].type == kind] == [id_ for _, id_ in ranked[:size]]
    assert found.covered == set().union(*(by_hand(pool[number], found.kept) for number in found.chosen))


@settings(max_examples=40)
@given(pools(), st.integers(0, 12), st.booleans(), st.booleans(), st.randoms())
def test_the_order_of_the_pool_does_not_matter(pool, size, inverse, cover, rng):
    rules = Rules(CONCEPTS, quota_for(pool, size), 1, inverse, 1.0, cover)
    shuffled = list(pool)
    rng.shuffle(shuffled)
    first, second = select(pool, rules), select(shuffled, rules)
    assert [pool[number].id for number in first.chosen] == [shuffled[number].id for number in second.chosen]
    assert (first.kept, first.covered, first.yes, first.no) == (second.kept, second.covered, second.yes, second.no)


@settings(max_examples=40)
@given(pools(most=1), st.integers(1, 12), st.booleans())
def test_yes_and_no_are_equal_and_no_quota_is_exceeded(pool, size, cover):
    """With one question a record the balance is exact, and a place is empty only where nothing could fill it."""
    quota = quota_for(pool, size)
    found = select(pool, Rules(CONCEPTS, quota, cover=cover))
    taken = Counter(pool[number].type for number in found.chosen)
    assert len(set(found.chosen)) == len(found.chosen)
    assert all(taken[kind] <= most for kind, most in quota.items())
    said = Counter(yes_or_no(*pool[number].questions[0]) for number in found.chosen)
    assert (said["yes"], said["no"]) == (found.yes, found.no)
    if not cover:
        assert found.yes == found.no
        free = [kind for kind, most in quota.items() if taken[kind] < most]
        left = [sample for number, sample in enumerate(pool) if number not in found.chosen and sample.type in free]
        assert not any(yes_or_no(*sample.questions[0]) == "" for sample in left)
        if len(quota) == 1 and size - len(found.chosen) >= 2:
            assert len({yes_or_no(*sample.questions[0]) for sample in left}) < 2


@settings(max_examples=25)
@given(pools(), st.floats(0.2, 5))
def test_balancing_never_makes_it_worse(pool, ratio):
    rules = Rules(CONCEPTS, quota_for(pool, 6), ratio=None)
    before = select(pool, rules)
    after = select(pool, Rules(CONCEPTS, quota_for(pool, 6), ratio=ratio))
    assert abs(after.yes - ratio * after.no) <= abs(before.yes - ratio * before.no) + 1e-6


@settings(max_examples=25)
@given(pools())
def test_more_room_never_covers_less(pool):
    covered = [select(pool, Rules(CONCEPTS, quota_for(pool, size), ratio=None)).covered for size in range(8)]
    assert all(few <= many for few, many in itertools.pairwise(covered))


@settings(max_examples=25)
@given(pools())
def test_with_cover_every_keyword_has_a_record(pool):
    pool = [sample._replace(type="a") for sample in pool]
    size = sum(map(len, CONCEPTS.values()))
    found = select(pool, Rules(CONCEPTS, {"a": size}, cover=True))
    assert found.covered == set(found.kept)


def test_rare_keywords_count_more_if_asked():
    pool = [Sample("1", "a", [("What?", "red man left")]), Sample("2", "a", [("What?", "unicorn")])]
    pool += [Sample(f"{number}", "a", [("What?", "red man left")]) for number in range(3, 30)]
    plain, inverse = (select(pool, Rules(CONCEPTS, {"a": 1}, 1, inverse)) for inverse in (False, True))
    assert pool[plain.chosen[0]].id == "1"
    assert pool[inverse.chosen[0]].id == "2"
    assert math.log(29) > 3 * math.log(29 / 28)


def test_keywords_are_whole_words_in_a_row_within_one_text():
    texts = ["a dark-green door", "Dark, green", "darker green", "reddish", "he is next", "TO the left"]
    pool = [Sample(str(number), "a", [("?", text)]) for number, text in enumerate(texts)]
    pool.append(Sample("9", "a", [("What comes next", "to whom")]))
    found = select(pool, Rules(CONCEPTS, {"a": 9}))
    assert found.kept == {"dark green": 2, "left": 1}


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ("Is it red?", "Yes", "yes"),
        ("Is it red?", "Yes it is red.", "yes"),
        ("Are there any?", "No, there are none.", "no"),
        ("What is it? Yes or no?", "no.", "no"),
        ("How many dogs are there?", "No dogs can be seen.", ""),
        ("Who is it?", "Nobody.", ""),
        ("Is it old?", "Nothing says so.", ""),
        ("When?", "Yesterday.", ""),
        ("Is it a dog or a cat?", "A dog.", ""),
        ("Can it fly?", '"No"', "no"),
    ],
)
def test_yes_or_no(question, answer, said):
    assert yes_or_no(question, answer) == said


def test_ties_go_to_the_lower_id_and_the_majority_loses_its_lowest():
    pool = [Sample(f"{n:02}", "a", [("Is it?", "Yes." if n % 4 else "No.")]) for n in range(20)]
    found = select(pool, Rules({}, {"a": 10}))
    assert (found.yes, found.no) == (5, 5)  # of ten the first would have been seven and three
    assert [pool[number].id for number in found.chosen] == ["00", "01", "02", "03", "04", "05", "06", "08", "12", "16"]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (Rules({"empty": []}, {"a": 1}), "concept 'empty'"),
        (Rules({"marks": ["?!"]}, {"a": 1}), "concept 'marks'"),
        (Rules(CONCEPTS, {"b": 1}), "no record of type 'b'"),
        (Rules(CONCEPTS, {"a": 1}, ratio=0.0), "ratio"),
    ],
)
def test_mistakes(rules, said):
    with pytest.raises(UserError, match=said):
        select([Sample("1", "a", [("What?", "red")])], rules)


def test_ids_must_be_unique():
    with pytest.raises(UserError, match="id 'x'"):
        select([Sample("x", "a", [("What?", "red")])] * 2, Rules(CONCEPTS, {"a": 1}))


def test_the_balance_holds_for_a_large_pool():
    rng = random.Random(0)
    pool = [
        Sample(f"{n:04}", "ab"[n % 2], [("Is the man red?", "Yes." if rng.random() < 0.8 else "No.")])
        if rng.random() < 0.5
        else Sample(f"{n:04}", "ab"[n % 2], [("What is left?", "A red man.")])
        for n in range(2000)
    ]
    found = select(pool, Rules(CONCEPTS, {"a": 300, "b": 100}))
    assert (found.yes, len(found.chosen)) == (found.no, 400)
