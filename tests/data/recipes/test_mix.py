import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.recipes.conftest import load
from tests.meta_fixture import write_meta
from vlm_jax.data.formats.open import open_data
from vlm_jax.data.recipes.mix import capped, histogram, mixture, proportional
from vlm_jax.errors import UserError

sizes = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 60), min_size=1, max_size=6)


@settings(max_examples=40)
@given(sizes, st.integers(1, 50), st.integers(0, 5))
def test_the_cap(sizes, cap, seed):
    kept = mixture(sizes, cap=cap, seed=seed)
    assert {name: len(numbers) for name, numbers in kept.items()} == {n: min(size, cap) for n, size in sizes.items()}
    for name, numbers in kept.items():
        assert np.all(np.diff(numbers) > 0)
        assert set(numbers.tolist()) <= set(range(sizes[name]))
        alone = mixture({name: sizes[name]}, cap=cap, seed=seed)  # other sources change nothing
        assert numbers.tolist() == alone[name].tolist()


def test_draws_depend_on_seed_and_name_and_are_nested():
    draws = {tuple(capped(1000, 100, name, seed).tolist()) for name in "ab" for seed in range(3)}
    assert len(draws) == 6
    assert set(capped(1000, 100, "a", 0)) < set(capped(1000, 300, "a", 0))
    assert abs(np.mean([capped(1000, 500, "a", seed).mean() for seed in range(20)]) - 499.5) < 10


@settings(max_examples=40)
@given(sizes, st.data())
def test_shares_are_in_proportion(sizes, data):
    total = data.draw(st.integers(0, sum(sizes.values())))
    shares = proportional(sizes, total)
    assert sum(shares.values()) == total
    for name, share in shares.items():
        exact = sizes[name] * total / max(sum(sizes.values()), 1)
        assert int(exact) <= share <= int(exact) + 1
        assert share <= sizes[name]


def test_proportional_counts_capped_sizes():
    kept = mixture({"large": 900, "small": 50}, cap=150, records=40)
    assert {name: len(numbers) for name, numbers in kept.items()} == {"large": 30, "small": 10}
    with pytest.raises(UserError, match="200"):
        mixture({"large": 900, "small": 50}, cap=150, records=201)


def test_histogram():
    rows = histogram({"a": 3000, "long name": 500}, {"a": 750, "long name": 250}).splitlines()
    assert rows[1].split() == ["a", "3,000", "750", "75.0", "%", "█" * 30]
    assert rows[2].split() == ["long", "name", "500", "250", "25.0", "%", "█" * 10]
    assert rows[3].split() == ["all", "3,500", "1,000"]


def test_the_command_writes_a_meta_file_that_is_read(recipe, tmp_path, make_records):
    meta = write_meta(tmp_path / "set", 0.1)
    more = make_records("more", 9)
    code, said = recipe("mix", "--data", meta, "--data", f"extra={more}", "--cap=5", "--seed=3", "--out", "mixed.json")
    assert code == 0
    entries = json.loads((tmp_path / "mixed.json").read_text())
    assert {name: entry["length"] for name, entry in entries.items()} == {
        "captions": 5, "pages": 5, "pairs": 5, "talk": 4, "extra": 5,
    }  # fmt: skip
    assert entries["pages"]["max_dynamic_patch"] == 2
    assert entries["pages"]["repeat_time"] == 2
    assert entries["captions"]["data_augment"]
    old, new = open_data(meta), open_data(tmp_path / "mixed.json")
    assert new.weights == {**old.weights, "talk": 1.0, "extra": 1.0}
    before = {
        (record.task, record.turns, record.images)
        for part in old.parts
        for record in (part[n] for n in range(len(part)))
    }
    after = [
        (record.task, record.turns, record.images)
        for part in new.parts[:4]
        for record in (part[n] for n in range(len(part)))
    ]
    assert len(after) == 19
    assert set(after) < set(before)
    assert new.parts[4][0].images[0] in [path.read_bytes() for path in more.parent.rglob("*.png")]
    assert "extra" in said
    assert said.splitlines()[-2].split() == ["all", "37", "24"]

    first = {path.name: path.read_bytes() for path in tmp_path.glob("mixed*")}
    assert "already exists" in recipe("mix", "--data", meta, "--out", "mixed.json")[0]
    again = (
        "mix",
        "--data",
        meta,
        "--data",
        f"extra={more}",
        "--cap=5",
        "--seed=3",
        "--out",
        "mixed.json",
        "--overwrite",
    )
    assert recipe(*again)[0] == 0
    assert {path.name: path.read_bytes() for path in tmp_path.glob("mixed*")} == first


def test_one_file_of_records_names_pictures_from_its_own_folder(recipe, tmp_path, make_records):
    one, two = make_records("one", 4), make_records("two", 3, image=False)
    code, _ = recipe("mix", "--data", one, "--data", two, "--out", "all.jsonl")
    assert code == 0
    records = load(tmp_path / "all.jsonl")
    assert [record.get("image") for record in records[:2]] == ["one-data/pictures/0.png", "one-data/pictures/1.png"]
    source = open_data(tmp_path / "all.jsonl")
    assert [len(source[number].images) for number in range(7)] == [1] * 4 + [0] * 3

    (tmp_path / "elsewhere").mkdir()
    code, _ = recipe("mix", "--data", one, "--out", "elsewhere/all.jsonl")
    assert "lies outside" in code
    assert "all.json" in code
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert recipe("mix", "--data", one, "--out", "elsewhere/all.json")[0] == 0
    assert open_data(tmp_path / "elsewhere" / "all.json")[0].images == source[0].images


def test_mistakes(recipe, tmp_path, make_records):
    one = make_records("one", 2)
    for arguments, part in (
        (("--data", one, "--data", one, "--out", "x.json"), "a source 'one' already"),
        (("--data", "nowhere.jsonl", "--out", "x.json"), "nowhere.jsonl"),
        (("--data", one, "--out", "x.txt"), ".jsonl"),
        (("--data", one, "--out", "no/x.json"), "folder does not exist"),
        (("--data", one, "--out", "x.json", "--records=3"), "3 are wanted"),
        (("--data", one, "--out", "x.json", "--cap=-1"), "--cap"),
    ):
        assert part in recipe("mix", *arguments)[0]
    assert not list(tmp_path.glob("x*"))
    assert "did you mean 'mix'" in recipe("mxi")[0]
    assert "which recipe" in recipe()[0]
