import dataclasses
import io
import json
import pickle

import numpy as np
import pytest

from tests.imports import imported_by
from vlm_jax.data.conversation import RecordError, Turn
from vlm_jax.data.formats.tfds import TFDSSource, turns_from_json
from vlm_jax.errors import UserError


def marked(conversations):
    """Every third one's questions are independent."""
    return [dataclasses.replace(record, independent=number % 3 == 0) for number, record in enumerate(conversations)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, conversations):
    """Twelve of the conversations as a TFDS data set, with none, one or two images."""
    import tensorflow_datasets as tfds

    class SmallConversations(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path_factory.mktemp("code")  # builders want to lie in a package folder

        def _info(self):
            text, image = tfds.features.Text(), tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            features = {"id": text, "task": text, "conversations": text, "images": tfds.features.Sequence(image)}
            features["independent"] = tfds.features.Scalar(np.bool_)
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 8), "test": self._generate_examples(8, 12)}

        def _generate_examples(self, first, last):
            for record in marked(conversations)[first:last]:
                names = {"user": "human", "assistant": "gpt"}
                turns = [{"from": names[turn.role], "value": turn.text} for turn in record.turns]
                yield (
                    record.id,
                    {
                        "id": record.id,
                        "task": record.task,
                        "conversations": json.dumps(turns),
                        "images": [io.BytesIO(image) for image in record.images],
                        "independent": record.independent,
                    },
                )

    builder = SmallConversations(data_dir=tmp_path_factory.mktemp("data"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def test_records_come_back_as_they_were(folder, conversations):
    source = TFDSSource(folder, "train")
    assert len(source) == 8
    read = sorted((source[i] for i in range(8)), key=lambda record: int(record.id[1:]))
    assert read == marked(conversations)[:8]  # images are the files' own bytes
    assert len(TFDSSource(folder, "test")) == 4
    assert len(TFDSSource(folder, "train[:3]")) == 3


def test_sources_can_be_pickled_while_open(folder):
    source = TFDSSource(folder, "test")
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_reading_needs_no_tensorflow_and_no_jax(folder):
    code = f"from vlm_jax.data.formats.tfds import TFDSSource; assert TFDSSource({str(folder)!r}, 'train')[0].turns"
    assert imported_by(code, "tensorflow", "jax", "flax") == set()


def test_fingerprints_tell_splits_and_contents_apart(folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    first = TFDSSource(folder, "train").fingerprint()
    assert first == TFDSSource(copy, "train").fingerprint()  # copytree keeps times
    assert first != TFDSSource(folder, "test").fingerprint()
    next(copy.glob("*train.array_record*")).write_bytes(b"other")
    assert first != TFDSSource(copy, "train").fingerprint()


def test_mistakes_are_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"not a prepared TFDS data set"):
        len(TFDSSource(tmp_path, "train"))
    with pytest.raises(UserError, match=r"no split 'dev', there are test, train"):
        len(TFDSSource(folder, "dev"))


def test_turns_from_json():
    text = b'[{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]'
    assert turns_from_json(text, "7", 0) == (Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a"))


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        (b"", "json", "not valid JSON"),
        (b"\xff", "json", "not valid JSON"),
        (b"null", "type", "must be a list"),
        (b"[1]", "type", "must be an object"),
        (b'[{"from": "robot", "value": ""}]', "type", "must be 'system'"),
        (b'[{"from": "human", "value": "q"}, {"from": "gpt"}]', "type", "must be text, got nothing"),
        (b'[{"from": "human", "value": "q"}, {"from": "gpt", "value": 7}]', "type", "must be text, got a number"),
        (b'[{"from": "human", "value": "q"}]', "turns", "the last turn must be an answer"),
        (b'[{"from": "human", "value": "q"}, {"from": "gpt", "value": " "}]', "empty answer", "the answer is empty"),
        (b'[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]', "marks", "1 <image> mark"),
    ],
)
def test_bad_turns_count_by_the_reasons_of_annotation_files(text, reason, detail):
    with pytest.raises(RecordError, match=rf"^record 7: conversations.*{detail}") as caught:
        turns_from_json(text, "record 7", 0)
    assert caught.value.reason == reason
