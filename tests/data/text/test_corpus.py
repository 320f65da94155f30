import dataclasses

import pytest

from tests.meta_fixture import write_meta
from vlm_jax.data.conversation import RecordError
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.sources import MemorySource
from vlm_jax.data.text.corpus import training_text
from vlm_jax.data.text.render import render
from vlm_jax.data.text.templates import TEMPLATES

TEMPLATE = TEMPLATES["internvl2_5"]


def rendered(conversation):
    tiles = [1] * len(conversation.images)
    spans = render(conversation.turns, TEMPLATE, tiles, independent=conversation.independent)
    return "".join(span.text for span in spans if span.image is None)


@pytest.mark.parametrize(("at_most", "step"), [(1000, 1), (60, 2), (20, 4), (1, 61)])
def test_records_evenly_spread(conversations, at_most, step):
    records = [dataclasses.replace(c, independent=bool(c.images)) for c in conversations[:60]]
    text = "".join(training_text(MemorySource(records), TEMPLATE, at_most))
    assert text == "".join(map(rendered, records[::step]))
    assert len(records[::step]) <= at_most


def test_records_that_cannot_be_used_are_passed_over(tmp_path):
    meta = write_meta(tmp_path, scale=0.05)
    source = open_meta(meta)
    good = [rendered(source[number]) for number in range(len(source))]
    lines = (tmp_path / "pages.jsonl").read_text().splitlines()
    (tmp_path / "pages.jsonl").write_text("\n".join(["{broken", *lines[1:]]) + "\n")
    source = open_meta(meta)
    bad = next(number for number in range(len(source)) if source.part(number)[0].task == "pages")
    with pytest.raises(RecordError):
        source[bad]
    assert "".join(training_text(source, TEMPLATE, 1000)) == "".join(good[:bad] + good[bad + 1 :])
