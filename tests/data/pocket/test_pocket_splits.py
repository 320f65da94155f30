"""No split of the pocket data knows anything of another: what is written is read back and held against the material.

Three links make the proof. What a record says it was made from is all that was drawn (`test_provenance_...`); of that,
no two splits share anything, in the files themselves; and a photograph's pixel reaches one split at most.
"""

import collections
import functools
import hashlib
import io
import itertools
import json
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from vlm_jax.data.formats.tfds import TFDSSource
from vlm_jax.data.pocket import charts, digits, documents, photos, points
from vlm_jax.data.pocket import material as material_module
from vlm_jax.data.pocket.material import GUARD, PHOTOGRAPHS, load_material
from vlm_jax.data.pocket.prepare import prepare_pocket
from vlm_jax.data.pocket.records import draw_scene
from vlm_jax.data.pocket.scene import CURRICULUM, SPLITS, TASKS, split_of

KINDS = {"digits", "regions", "content"}

MADE_FROM = {
    "digits": {"digits", "count", "point", "reading", "finding", "looking", "searching"},
    "regions": {"photo", "point", "looking"},
    "content": {"document", "chart", "point", "looking"},
}
"""Kind of provenance → the tasks whose pictures are made from it."""


@pytest.fixture(scope="module", params=["tiny", pytest.param("quick", marks=pytest.mark.slow)])
def written(request, tmp_path_factory):
    """{split: (conversation, provenance) of every record in the files}."""
    folder = prepare_pocket(tmp_path_factory.mktemp("splits"), request.param, 0)
    builder = tfds.builder_from_directory(str(folder))
    assert set(builder.info.splits) == set(SPLITS)
    found = {}
    for split in SPLITS:
        stored = builder.as_data_source(split)
        provenance = {row["id"].decode(): json.loads(row["provenance"]) for row in stored}
        source = TFDSSource(folder, split)
        found[split] = [(source[k], provenance[source[k].id]) for k in range(len(source))]
        assert len(found[split]) == len(provenance) > 0
    return found


def used(records, kind):
    """All raw material of a kind that some records were made from."""
    values = [provenance.get(kind, []) for _, provenance in records]
    return {item for value in values for item in ([value] if isinstance(value, str) else value)}


def digest(conversation):
    """Of the pixels, whatever the file that holds them looks like."""
    (data,) = conversation.images
    image = Image.open(io.BytesIO(data))
    return hashlib.sha256(str((image.mode, image.size)).encode() + image.tobytes()).digest()


def test_every_kind_of_material_is_there_and_no_other(written):
    tasks, held = {kind: set() for kind in KINDS}, set()
    for conversation, provenance in itertools.chain(*written.values()):
        assert set(provenance) <= KINDS
        # A picture of shapes and words alone is made from nothing that is divided.
        assert provenance or conversation.task in ("point", "looking")
        held.add(conversation.task)
        for kind in provenance:
            tasks[kind].add(conversation.task)
    assert held - {"searching"} == {*TASKS, *CURRICULUM} - {"searching"}  # which few presets have
    assert tasks == {kind: made & held for kind, made in MADE_FROM.items()}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_raw_material_is_in_two_splits(written, kind):
    for one, other in itertools.combinations(SPLITS, 2):
        first, second = used(written[one], kind), used(written[other], kind)
        assert first
        assert second
        assert not first & second


def test_all_of_it_belongs_to_its_split(written):
    material = load_material(0)
    for split, records in written.items():
        assert used(records, "digits") <= set(material[split].indices.tolist())
        own = {region.id for regions in material[split].regions.values() for region in regions}
        assert used(records, "regions") <= own
        assert {split_of(content) for content in used(records, "content")} == {split}


def test_photograph_regions_of_two_splits_are_apart(written):
    boxes = {
        region.id: region.box
        for split in load_material(0).values()
        for regions in split.regions.values()
        for region in regions
    }
    compared = 0
    for one, other in itertools.combinations(SPLITS, 2):
        for a, b in itertools.product(used(written[one], "regions"), used(written[other], "regions")):
            if a.split("/")[0] == b.split("/")[0]:
                left, right = boxes[a], boxes[b]
                gaps = [max(left[k] - right[k + 2], right[k] - left[k + 2]) for k in (0, 1)]
                assert max(gaps) >= GUARD, (a, b)
                compared += 1
    assert compared > 15


def test_no_picture_is_in_two_splits(written):
    pictures = {split: {digest(conversation) for conversation, _ in records} for split, records in written.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not pictures[one] & pictures[other]


def test_contents_are_those_that_the_answers_tell(written):
    """A record's content is not a mere claim: its questions and answers are read from it."""
    told = collections.Counter()
    for conversation, provenance in itertools.chain(*written.values()):
        content = provenance.get("content", "")
        said = dict(part.rsplit(" ", 1) for part in content.partition(": ")[2].split(", ") if " " in part)
        for question, answer in itertools.pairwise(turn.text for turn in conversation.turns):
            named = re.search(r"What is the (?:value of |price of )?(\w+)\?$", question)
            if named and content and not content.startswith("form"):
                assert said[{"total": "Total"}.get(named[1], named[1])] == answer
                told[content.split(":")[0]] += 1
            elif named and content:
                # Dates hold a space, so that forms are not taken apart.
                assert f"{named[1].capitalize()} {answer}" in content
                told["form"] += 1
            elif pointed := re.search(r"<ref>the (?:line|bar) (\w+)</ref>", answer):
                assert f"{pointed[1]} " in content
                told["point"] += 1
    assert set(told) == {"chart", "receipt", "form", "point"}


@pytest.mark.parametrize("task", [*TASKS, *CURRICULUM])
@pytest.mark.parametrize("split", SPLITS)
def test_provenance_names_all_that_is_drawn(monkeypatch, material, split, task):
    """Spies stand where material becomes pixels."""
    if task in CURRICULUM and split != "train":
        return
    drawn = []  # (kind, name that an answer would call it, what)
    images = load_digits().images
    index = {np.round(image * (255 / 16)).astype(np.uint8).tobytes(): k for k, image in enumerate(images)}

    def spy(module, name, note):
        real = getattr(module, name)

        @functools.wraps(real)
        def wrapped(*args, **kwargs):
            result = real(*args, **kwargs)
            if result is not None:  # a document that no font fits
                drawn.append(note(args))
            return result

        monkeypatch.setattr(module, name, wrapped)

    for module in (digits, points):
        spy(module, "ink_mask", lambda args: ("digits", index[args[1].tobytes()]))
    for module in (photos, points):
        spy(module, "crop_region", lambda args: ("regions", args[1].id))
    for module in (charts, documents):
        spy(module, "_draw", lambda args: ("content", args[1].content))

    for number in range(60 if task in ("point", "looking") else 12):
        drawn.clear()
        scene, _ = draw_scene(np.random.default_rng([6, number]), material[split], task, number)
        listed = {
            (kind, item)
            for kind, value in scene.provenance.items()
            for item in ([value] if isinstance(value, str) else value)
        }
        assert listed <= set(drawn)
        # `point` draws a thing anew whose name is taken: what was thrown away is called as something that is there.
        left = {called(item, material[split]) for item in set(drawn) - listed}
        assert left <= {called(item, material[split]) for item in listed}
        assert not left or task in ("point", "looking")


def called(item, own):
    """What answers call a piece of material."""
    kind, value = item
    if kind == "digits":
        return int(own.labels[own.indices == value][0])
    return value.split("/")[0] if kind == "regions" else value


def test_no_pixel_of_a_photograph_reaches_two_splits(monkeypatch, tmp_path):
    """Photographs are reduced before they are cut, and that mixes neighbours: half of the guard is more than it mixes.

    For each split, photographs that are black around the split's own cells and white elsewhere: not a trace of white
    may be in the cells. The black areas of two splits do not touch, because the guard lies between their cells.
    """
    true = load_material(0)
    originals = {name: material_module._package_file(*where) for name, where in PHOTOGRAPHS.items()}
    for split in SPLITS:
        for name, original in originals.items():
            with Image.open(original) as file:
                size = file.size
            factor = min(1.0, material_module.SHORTER_SIDE / min(size))
            own = np.full(size[::-1], 255, np.uint8)
            for region in true[split].regions[name]:
                box = [side / factor for side in region.box]
                margin = GUARD / 2 / factor
                left, top = (max(0, int(np.ceil(box[k] - margin))) for k in (0, 1))
                own[top : int(box[3] + margin), left : int(box[2] + margin)] = 0
            Image.fromarray(own).save(tmp_path / f"{name}.png")
        with monkeypatch.context() as patch:
            patch.setattr(
                material_module,
                "PHOTOGRAPHS",
                {name: ("pictures", f"{name}.png") for name in PHOTOGRAPHS},
            )
            real = material_module._package_file
            patch.setattr(
                material_module,
                "_package_file",
                lambda package, path, real=real: tmp_path / path if package == "pictures" else real(package, path),
            )
            masked = load_material(0)
        for name in PHOTOGRAPHS:
            for region, like in zip(masked[split].regions[name], true[split].regions[name], strict=True):
                assert (region.id, region.box) == (like.id, like.box)
                assert region.pixels.max() == 0, region.id
        others = [region for part in SPLITS if part != split for own in masked[part].regions.values() for region in own]
        assert min(region.pixels.min() for region in others) == 255  # nothing of theirs is in the black areas


def test_no_two_digit_images_are_equal_so_that_any_seed_divides_them():
    images = load_digits().images
    assert len({image.tobytes() for image in images}) == len(images)
