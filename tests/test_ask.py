"""The few validation questions: how they are chosen, and what a model answers."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from tests.training.helpers import Memory, recipe_fields
from vlm_jax import ask
from vlm_jax.ask import validation_questions
from vlm_jax.config import build, to_plain
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.inference import generate
from vlm_jax.training.recipe import Recipe


@pytest.fixture(scope="module")
def recipe():
    fields = recipe_fields(system=to_plain(tiny.system()), evaluation=dict(watch=2, max_new_tokens=4))
    fields["teacher"]["vision"] = {**fields["system"]["model"]["vision"], "width": 36}
    return build(Recipe, fields)


def record(number, task="a", images=None, turns=None, **changes):
    images = (tiny.png(40, 30 + number, seed=number),) if images is None else images
    turns = turns or (Turn("user", "<image>\nWhat is the total?"), Turn("assistant", "128"))
    return Conversation(turns, images, changes.pop("id", f"r{number}"), task, **changes)


def asked(questions):
    return [question.id for question in questions._benchmark.questions]


def test_some_of_every_task_always_the_same_ones(recipe):
    source = Memory(record(n, "ab"[n % 2]) for n in range(40))
    questions = validation_questions(recipe, source, tiny.tokenizer())
    assert questions.count == 4
    assert sorted(q.task for q in questions._benchmark.questions) == ["a", "a", "b", "b"]
    assert asked(validation_questions(recipe, source, tiny.tokenizer())) == asked(questions)
    other = dataclasses.replace(recipe, seed=1)
    assert asked(validation_questions(other, source, tiny.tokenizer())) != asked(questions)


def test_none_where_none_are_wanted_or_there(recipe):
    source = Memory([record(0)])
    off = dataclasses.replace(recipe, evaluation=dataclasses.replace(recipe.evaluation, watch=0))
    assert validation_questions(off, source, tiny.tokenizer()) is None
    assert validation_questions(recipe, None, tiny.tokenizer()) is None
    assert validation_questions(recipe, Memory(), tiny.tokenizer()) is None
    talk = record(0, turns=(*record(0).turns, *record(0).turns))
    assert validation_questions(recipe, Memory([talk]), tiny.tokenizer()) is None


def test_what_cannot_be_asked_is_not(recipe):
    """A damaged picture, a question longer than the context, an id that another has: no reason to end a training."""
    room = recipe.system.model.decoder.context
    long = (Turn("user", "<image>\n" + "total " * room), Turn("assistant", "1"))
    source = Memory([record(0, images=(b"no picture",)), record(1, turns=long), record(2), record(3, id="r2")])
    wanted = dataclasses.replace(recipe, evaluation=dataclasses.replace(recipe.evaluation, watch=9))
    assert asked(validation_questions(wanted, source, tiny.tokenizer())) == ["r2"]
    assert validation_questions(wanted, source, tiny.tokenizer()).count == 1


def test_of_a_large_split_only_some_records_are_looked_at(recipe):
    seen = []

    class Counting(Memory):
        def __getitem__(self, number):
            seen.append(number)
            return super().__getitem__(number)

    validation_questions(recipe, Counting(record(n) for n in range(300)), tiny.tokenizer())
    assert len(seen) == 2 * ask.LOOKED_AT


def test_it_asks_student_and_teacher_and_compiles_once(recipe):
    from vlm_jax.training.loop import initial_params

    params = jax.device_get(jax.jit(lambda: initial_params(recipe))())
    questions = validation_questions(recipe, Memory(record(n, "ab"[n % 2]) for n in range(8)), tiny.tokenizer())
    for speaker in ("student", "teacher"):
        model = recipe.models.vlm(speaker, params)
        first = questions(*model)
        assert set(first.scores) == {"a", "b"}
        assert [example.task for example in first.examples] == [q.task for q in questions._benchmark.questions]
        assert all(example.answer == "128" and len(example.images) == 1 for example in first.examples)
        compiled = generate._prefill._cache_size(), generate._decode._cache_size()
        assert questions(*model) == first
        halved = jax.tree.map(lambda leaf: np.asarray(leaf) / 2, model[1])
        assert [e.prediction for e in questions(model[0], halved).examples] != [e.prediction for e in first.examples]
        assert (generate._prefill._cache_size(), generate._decode._cache_size()) == compiled


def test_a_stage_with_another_size_of_tiles_is_asked_at_that_size(recipe):
    from vlm_jax.training.loop import initial_params

    small = dataclasses.replace(recipe.stages[-1], name="small", image_size=16)
    recipe = dataclasses.replace(recipe, stages=(small, recipe.stages[-1]))
    params = jax.device_get(jax.jit(lambda: initial_params(recipe))())
    questions = validation_questions(recipe, Memory(record(n) for n in range(4)), tiny.tokenizer())
    seen = []
    answer = ask.Model.answer

    def answering(model, *arguments):
        seen.append((model.system.layout.tile_size, model.system.model.vision.image_size))
        return answer(model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ask.Model, "answer", answering)
        answers = questions(*recipe.models_in(small).vlm("student", params))
    assert seen == [(16, 16)]
    assert set(answers.scores) == {"a"}
