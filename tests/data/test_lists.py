"""Lists of images: classes and their names, the door, and a sentence for every list that cannot be used."""

import re

import numpy as np
import pytest
from prepared import encoded, smooth

from nc_jax.data import lists, sources
from nc_jax.study.data import DataOptions, load

IMAGES = ["a/owl/1.png", "a/owl/2 of 2.png", "b/wren/3.png", "val/4.png", "val/5.png"]
TRAIN = "a/owl/1.png 1\n/a/owl/2 of 2.png 1\nb/wren/3.png 0\n"
TEST = "val/4.png 0\r\n\r\nval/5.png\t1\r\n"


@pytest.fixture
def birds(tmp_path):
    """Five images of different sizes, and a list to train on and one to test on."""
    for number, name in enumerate(IMAGES):
        path = tmp_path / "birds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(smooth(32 + number, 40), "png"))
    (tmp_path / "train.txt").write_text(TRAIN, encoding="utf-8")
    (tmp_path / "birds" / "test.txt").write_bytes(TEST.encode())
    return tmp_path


def loaded(birds, train="train.txt", test="test.txt"):
    return lists.load(birds / "birds", birds / train, birds / "birds" / test)


def test_the_images_come_in_the_order_of_the_list(birds):
    train, test = loaded(birds)
    assert [example["label"] for example in train] == [1, 1, 0]
    assert [example["label"] for example in test] == [0, 1]
    assert [example["image"].shape[0] for example in (*train, *test)] == [32, 33, 34, 35, 36]
    np.testing.assert_array_equal(test[1]["image"], smooth(36, 40))
    assert train.class_names == test.class_names == ("wren", "owl")


@pytest.mark.parametrize(
    "wrong",
    [
        TRAIN.replace("b/wren/3", "a/owl/2 of 2"),  # two classes in one folder
        TRAIN + "val/4.png 0\n",  # a class in two folders
    ],
)
def test_classes_are_numbers_where_folders_do_not_name_them(birds, wrong):
    (birds / "train.txt").write_text(wrong, encoding="utf-8")
    assert loaded(birds)[0].class_names == ("0", "1")


def test_the_door_leads_to_lists_here_and_in_the_folder(birds):
    train, test = sources.load_lists("birds", birds / "train.txt", "test.txt", birds)
    assert (repr(train)[:38], test.size) == ("ImageSource(3 images of 32x32, 3 chann", 32)
    options = {"train_list": str(birds / "train.txt"), "test_list": "test.txt", "data_dir": str(birds)}
    data = load(DataOptions("birds", **options, image_size=8, train_crop="stretch"))
    assert (data.train.stretch, data.test.stretch, data.size) == (True, False, 8)
    assert data.train.take(np.arange(3)).labels.tolist() == [1, 1, 0]


def test_what_is_not_read_as_stored_is_said(birds, caplog):
    (birds / "birds" / "val" / "4.png").write_bytes(encoded(smooth(9, 9), "png", mode="RGBA"))
    loaded(birds)
    assert caplog.messages == [f"2 images of {birds}/birds/test.txt: 1 with transparency, laid over white"]


WRONG_TRAIN = {
    "a/owl/1.png 0\nb/wren/9.png 1\nc.png 1": (
        "{file} must name images in {root}; 2 of 3 are not there, the first being 'b/wren/9.png' in line 2"
    ),
    "a/owl/1.png 0\na/owl/1.png\n": (
        "each line of {file} must be the path of an image and its label, a number; got 'a/owl/1.png' in line 2"
    ),
    "\na/owl/1.png -1": (
        "each line of {file} must be the path of an image and its label, a number; got 'a/owl/1.png -1' in line 2"
    ),
    "a/owl/1.png 0\nb/wren/3.png 7\nb.png 2": "labels of {file} must be 0, 1, ... without gaps; got none of 1 but 7",
    "a/owl/1.png 0\n": "{file} must have two classes at least; got the label 0 only",
    "\n\n": "{file} must have a line for each image; got none",
    "a/owl/1.png 0\nval 1": "{file} must name images in {root}; 1 of 2 are not there, the first being 'val' in line 2",
}


@pytest.mark.parametrize(("text", "sentence"), WRONG_TRAIN.items())
def test_a_wrong_list_to_train_on_is_one_sentence(birds, text, sentence):
    (birds / "train.txt").write_text(text, encoding="utf-8")
    sentence = sentence.format(file=birds / "train.txt", root=birds / "birds")
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        loaded(birds)


def test_other_mistakes_are_sentences_too(birds):
    (birds / "more.txt").write_text("val/4.png 0\n\nval/5.png 2\n", encoding="utf-8")
    sentence = f"every label of {birds}/more.txt must be one of {birds}/train.txt, 0..1; got 2 in line 3"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        lists.load(birds / "birds", birds / "train.txt", birds / "more.txt")
    with pytest.raises(FileNotFoundError, match=r"^a list of images must be a file here or in .*; got 'none\.txt'$"):
        sources.load_lists("birds", "none.txt", "test.txt", birds)
    (birds / "train.txt").write_bytes("a/owl/\xe9.png 0\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^list .*train\.txt must be readable; got .*utf-8"):
        loaded(birds)
    (birds / "train.txt").write_text("train.txt 0\n../train.txt 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"are not there|must be readable"):
        loaded(birds)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train_list": "a.txt"}, "train_list and test_list must be given together; got train_list='a.txt', test_list"),
        ({"test_list": "a.txt"}, "train_list and test_list must be given together; got train_list=None, test_list='a"),
        (
            {"train_list": "a.txt", "test_list": "b.txt", "test_share": 0.2},
            "train_list and test_list are for folders of images, and say what to test on; got test_share=0.2 for birds",
        ),
        (
            {"train_list": "a.txt", "test_list": "b.txt", "name": "digits"},
            "train_list and test_list are for folders of images, and say what to test on; got test_share=None for d",
        ),
        (
            {"train_list": "a.txt", "test_list": "b.txt", "name": "cifar10"},
            "lists name images in a folder, which must be given by its path; got 'cifar10'",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(birds, options, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        load(DataOptions(**({"name": "birds", "data_dir": str(birds)} | options)))
