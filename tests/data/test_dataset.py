import pickle
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from xray_helpers.data import dataset as module
from xray_helpers.data.catalog import fingerprint
from xray_helpers.data.dataset import (
    EpochSampler,
    XrayDataset,
    class_names,
    make_loaders,
    prepare_data,
    worker_errors,
)
from xray_helpers.data.reader import read_image
from xray_helpers.data.splits import SPLITS, check_manifest, resplit
from xray_helpers.data.transforms import Preprocess
from xray_helpers.files import XrayError
from xray_helpers.settings import Settings, seed_everything

CLASSES = ("NORMAL", "PNEUMONIA")


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    """The tiny dataset at 32 pixels. Not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_HOME", str(tmp_path_factory.mktemp("prepared")))
        return prepare_data(Settings(data=str(tiny), image_size=32))


@pytest.fixture(scope="module")
def manifest(data):
    return data.manifest


@pytest.fixture(scope="module")
def cache(data):
    return data.cache


@pytest.fixture
def settings(tiny):
    return Settings(data=str(tiny), image_size=32)


class TestXrayDataset:
    def test_each_image_comes_with_its_own_label(self, tiny, manifest, cache):
        dataset = XrayDataset(manifest, cache, "val", CLASSES)
        rows = manifest[manifest["split"] == "val"]
        assert len(dataset) == len(rows)
        for index, row in enumerate(rows.itertuples()):
            image, label = dataset[index]
            assert image.shape == (1, 32, 32)
            assert image.dtype == torch.uint8
            assert (image[0].numpy() == read_image(tiny / "chest_xray" / row.path, 32)).all()
            assert CLASSES[label] == row.label
            assert dataset.paths[index] == row.path

    def test_a_list_of_indices_gives_a_whole_batch(self, manifest, cache):
        dataset = XrayDataset(manifest, cache, "train", CLASSES)
        indices = [5, 0, 17, 5]
        images, labels = dataset[indices]
        assert images.shape == (4, 1, 32, 32)
        assert images.dtype == torch.uint8
        assert labels.shape == (4,)
        assert labels.dtype == torch.int64
        for image, label, index in zip(images, labels, indices, strict=True):
            assert torch.equal(image, dataset[index][0])
            assert label == dataset[index][1]

    def test_any_data_loader_can_use_it(self, manifest, cache):
        dataset = XrayDataset(manifest, cache, "val", CLASSES)
        batches = list(DataLoader(dataset, batch_size=5))
        assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.labels)
        images = torch.cat([images for images, _ in batches])
        assert torch.equal(images, dataset[list(range(len(dataset)))][0])

    @pytest.mark.parametrize("index", [0, [0, 1]])
    def test_changing_what_it_gave_does_not_change_the_cache(self, manifest, cache, index):
        dataset = XrayDataset(manifest, cache, "val", CLASSES)
        dataset[index][0].zero_()
        assert dataset[index][0].any()

    def test_changing_the_labels_of_a_batch_does_not_change_the_dataset(self, manifest, cache):
        dataset = XrayDataset(manifest, cache, "val", CLASSES)
        labels = dataset.labels.clone()
        dataset[[0, 1, 2]][1].fill_(7)
        assert torch.equal(dataset.labels, labels)

    def test_it_says_what_it_holds(self, manifest, cache):
        dataset = XrayDataset(manifest, cache, "train", CLASSES)
        counts = manifest.loc[manifest["split"] == "train", "label"].value_counts()
        assert dataset.counts() == counts.to_dict()
        assert repr(dataset) == (
            f"XrayDataset(train: {counts.sum()} images of 32 × 32; "
            f"NORMAL {counts['NORMAL']}, PNEUMONIA {counts['PNEUMONIA']})"
        )

    def test_causes_are_numbered_in_the_order_given(self, manifest, cache):
        dataset = XrayDataset(manifest, cache, "train", ("normal", "bacterial", "viral"), "cause")
        rows = manifest[manifest["split"] == "train"]
        assert [dataset.classes[label] for label in dataset.labels] == rows["cause"].tolist()

    def test_guards(self, manifest, cache):
        with pytest.raises(ValueError, match="split='validation': this manifest has test, train, val"):
            XrayDataset(manifest, cache, "validation", CLASSES)
        with pytest.raises(ValueError, match="class 'PNEUMONIA' in train is not one of NORMAL, COVID"):
            XrayDataset(manifest, cache, "train", ("NORMAL", "COVID"))
        with pytest.raises(KeyError, match="such as elsewhere.png"):
            XrayDataset(manifest.assign(path="elsewhere.png"), cache, "train", CLASSES)
        with pytest.raises(ValueError, match=r"not uint8 \(N, 64, "):
            XrayDataset(manifest, replace(cache, size=64), "train", CLASSES)[0]

    def test_it_is_small_when_sent_to_another_process(self, manifest, cache):
        dataset = XrayDataset(manifest, cache, "train", CLASSES)
        image = dataset[0][0]
        text = pickle.dumps(dataset)
        assert len(text) < 60_000 < cache.images.nbytes
        assert torch.equal(pickle.loads(text)[0][0], image)


class TestClassNames:
    def test_each_task_has_its_classes_in_order(self, manifest):
        assert class_names(manifest, "pneumonia") == ("NORMAL", "PNEUMONIA")
        assert class_names(manifest, "cause") == ("normal", "bacterial", "viral")
        assert class_names(manifest.assign(label=manifest["cause"]), "folders") == ("bacterial", "normal", "viral")

    def test_data_of_other_classes_is_refused_with_the_way_out(self, manifest):
        with pytest.raises(ValueError, match=r"knows NORMAL, PNEUMONIA, and this data has COVID too, .*task='folders'"):
            class_names(manifest.replace({"label": {"NORMAL": "COVID"}}), "pneumonia")
        with pytest.raises(ValueError, match="needs two classes or more, and this data has only PNEUMONIA"):
            class_names(manifest[manifest["label"] == "PNEUMONIA"], "pneumonia")


def of_labels(*labels):
    """A manifest of one image of each label."""
    return pd.DataFrame({"label": labels, "path": [f"train/{label}/1.png" for label in labels]})


class TestFinding:
    """Field case 8: which of two classes counts as ill."""

    @pytest.mark.parametrize(
        ("well", "ill"),
        [
            ("NORMAL", "COVID"),
            ("Normal", "Abnormal"),
            ("Healthy", "TB"),
            ("normal_cxr", "effusion"),
            ("No Finding", "Atelectasis"),
            ("no_finding", "Cardiomegaly"),
            ("none", "fracture"),
            ("Controls", "cases"),
            ("covid-negative", "covid-positive"),
            ("NonCOVID", "COVID"),
            ("without tuberculosis", "tuberculosis"),
            ("no", "yes"),
            ("healthy", "Unhealthy"),
            ("BACTERIA", "Pneumonia"),
        ],
    )
    def test_it_is_the_class_beside_a_healthy_one_whatever_the_alphabet_says(self, well, ill):
        assert class_names(of_labels(ill, well), "folders") == (well, ill)
        assert class_names(of_labels(ill, well), "folders", finding=well) == (ill, well)

    @pytest.mark.parametrize("labels", [("0", "1"), ("cat", "dog"), ("normal", "healthy"), ("non_viral", "bacterial")])
    def test_where_names_do_not_say_it_it_must_be_given(self, labels):
        with pytest.raises(ValueError, match=f"classes {' and '.join(sorted(labels))} counts as ill.*FINDING="):
            class_names(of_labels(*labels), "folders")
        assert class_names(of_labels(*labels), "folders", finding=labels[0]) == labels[::-1]

    def test_it_must_be_a_class_of_the_data(self, manifest):
        for task in ("pneumonia", "cause", "folders"):
            with pytest.raises(ValueError, match="finding='COVID': the classes of this data are"):
                class_names(manifest, task, "COVID")

    def test_of_three_classes_none_is_chosen_and_a_given_one_comes_last(self):
        labels = of_labels("PNEUMONIA", "COVID", "NORMAL")
        assert class_names(labels, "folders") == ("COVID", "NORMAL", "PNEUMONIA")
        assert class_names(labels, "folders", "COVID") == ("NORMAL", "PNEUMONIA", "COVID")

    def test_it_has_to_be_named_before_images_are_decoded(self, tiny, home, monkeypatch, capsys):
        monkeypatch.setattr(module, "build_cache", None)
        for old, new in (("NORMAL", "a"), ("PNEUMONIA", "b")):
            for folder in ("train", "test"):
                shutil.copytree(tiny / "chest_xray" / folder / old, home / "letters" / folder / new)
        with pytest.raises(ValueError, match="which of the classes a and b counts as ill"):
            prepare_data(Settings(data=str(home / "letters"), task="folders"))
        monkeypatch.setattr(module, "build_cache", lambda *_: None)
        prepare_data(Settings(data=str(home / "letters"), task="folders", finding="a"))
        assert "the finding is a, told from b\n" in capsys.readouterr().out


class TestEpochSampler:
    def test_each_epoch_has_every_image_once_in_an_order_of_its_own(self):
        sampler = EpochSampler(100, seed=0)
        assert len(sampler) == 100
        first, second = list(sampler), list(sampler)
        assert sorted(first) == sorted(second) == list(range(100))
        assert first != second
        assert first != list(range(100))

    def test_the_order_depends_on_seed_and_epoch_alone(self):
        whole = EpochSampler(50, seed=3)
        orders = [list(whole) for _ in range(3)]
        seed_everything(99)
        resumed = EpochSampler(50, seed=3)
        resumed.set_epoch(2)
        assert list(resumed) == orders[2]
        assert list(EpochSampler(50, seed=4)) != orders[0]
        assert list(EpochSampler(50, seed=1)) != orders[1]  # seed and epoch are not just added


class TestMakeLoaders:
    def test_batches_are_whole_and_have_the_promised_shapes(self, data, capsys):
        loaders = make_loaders(data, batch_size=8)
        train, val = list(loaders.train), list(loaders.val)
        for images, labels in train + val:
            assert images.shape == (len(labels), 1, 32, 32)
            assert images.dtype == torch.uint8
            assert labels.dtype == torch.int64
        assert {len(labels) for _, labels in train} == {8}
        assert len(train) == len(loaders.train) == len(loaders.train.dataset) // 8
        assert len(val) == len(loaders.val) == -(-len(loaders.val.dataset) // 8)
        assert sum(len(labels) for _, labels in val) == len(loaders.val.dataset)
        assert loaders.classes == data.classes
        assert loaders.fingerprint == data.fingerprint
        assert loaders.preprocess == Preprocess(32, "squash")
        assert loaders.data_name == data.settings.data_name
        assert capsys.readouterr() == ("", "")

    def test_images_and_labels_stay_together_after_shuffling(self, tiny, data, manifest):
        rows = manifest[manifest["split"] == "train"]
        pixels = [read_image(tiny / "chest_xray" / path, 32).tobytes() for path in rows["path"]]
        known = {image: CLASSES.index(label) for image, label in zip(pixels, rows["label"], strict=True)}
        order = []
        for images, labels in make_loaders(data, batch_size=16).train:
            assert labels.tolist() == [known[image.numpy().tobytes()] for image in images]
            order += [image.numpy().tobytes() for image in images]
        assert not Counter(order) - Counter(pixels)  # some images are planted twice
        assert order != pixels[: len(order)]

    def test_the_seed_decides_the_order_and_each_epoch_has_another(self, data):
        def order(seed):
            loaders = make_loaders(data, batch_size=16, seed=seed)
            return [torch.cat([images for images, _ in loaders.train]) for _ in range(2)]

        first, second = order(0)
        assert not torch.equal(first, second)
        assert all(torch.equal(*pair) for pair in zip(order(0), (first, second), strict=True))
        assert not torch.equal(order(1)[0], first)

    def test_validation_comes_whole_and_in_order(self, data, manifest):
        loaders = make_loaders(data, batch_size=7)
        rows = manifest[manifest["split"] == "val"]
        assert len(rows) % 7 != 0
        labels = torch.cat([labels for _, labels in loaders.val])
        assert [loaders.classes[label] for label in labels] == rows["label"].tolist()
        assert loaders.val.dataset.paths == rows["path"].tolist()

    def test_the_test_split_is_closed_unless_asked_for(self, data, manifest):
        closed = make_loaders(data)
        with pytest.raises(ValueError, match=r"closed; evaluation opens it with make_loaders\(data, test=True\)"):
            closed.test  # noqa: B018 - a property
        opened = make_loaders(data, test=True)
        assert opened.test.dataset.paths == manifest.loc[manifest["split"] == "test", "path"].tolist()
        assert sum(len(labels) for _, labels in opened.test) == (manifest["split"] == "test").sum()

    def test_a_split_of_your_own_takes_the_place_of_the_prepared_one(self, data, manifest):
        readable = manifest.drop(columns="split")
        mine = resplit(readable.assign(error=""), seed=5)
        loaders = make_loaders(data, batch_size=16, manifest=mine, test=True)
        for split, loader in zip(SPLITS, (loaders.train, loaders.val, loaders.test), strict=True):
            assert loader.dataset.paths == mine.loc[mine["split"] == split, "path"].tolist()
        assert loaders.val.dataset.paths != manifest.loc[manifest["split"] == "val", "path"].tolist()
        without_test = mine[mine["split"] != "test"]
        assert len(make_loaders(data, manifest=without_test).train.dataset) == (mine["split"] == "train").sum()

    def test_the_same_batches_for_any_number_of_workers(self, data):
        orders = []
        for workers in (0, 1, 2):
            loaders = make_loaders(data, batch_size=16, workers=workers)
            orders.append([batch for _ in range(2) for batch in loaders.train])
        for other in orders[1:]:
            assert len(other) == len(orders[0])
            for (images, labels), (others, other_labels) in zip(orders[0], other, strict=True):
                assert torch.equal(images, others)
                assert torch.equal(labels, other_labels)

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_same_batches_in_a_fresh_process_and_under_spawn(self, data, tmp_path, workers):
        (tmp_path / "data.pickle").write_bytes(pickle.dumps(data))
        script = tmp_path / "script.py"
        script.write_text(
            "import pathlib, pickle, torch\n"
            "from xray_helpers.data.dataset import make_loaders\n"
            "if __name__ == '__main__':\n"
            "    torch.multiprocessing.set_start_method('spawn')\n"
            "    folder = pathlib.Path(__file__).parent\n"
            "    data = pickle.loads((folder / 'data.pickle').read_bytes())\n"
            f"    torch.save(list(make_loaders(data, batch_size=16, workers={workers}).train), folder / 'batches.pt')\n"
        )
        run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        expected, found = list(make_loaders(data, batch_size=16).train), torch.load(tmp_path / "batches.pt")
        assert len(found) == len(expected)
        for (images, labels), (others, other_labels) in zip(expected, found, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, other_labels)

    def test_making_and_using_loaders_leaves_the_global_random_state_alone(self, data):
        before = torch.get_rng_state()
        loaders = make_loaders(data)
        list(loaders.train)
        list(loaders.val)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_training_set_smaller_than_a_batch_is_one_batch(self, data):
        loaders = make_loaders(data, batch_size=1000)
        assert [len(labels) for _, labels in loaders.train] == [len(loaders.train.dataset)]
        exact = make_loaders(data, batch_size=len(loaders.train.dataset))
        assert [len(labels) for _, labels in exact.train] == [len(loaders.train.dataset)]

    def test_a_test_split_that_cannot_judge_is_said_at_the_start(self, data, manifest, capsys):
        """Field case 7."""
        one_class = manifest[(manifest["split"] != "test") | (manifest["label"] == "PNEUMONIA")]
        make_loaders(replace(data, manifest=one_class))
        said = capsys.readouterr().out
        assert said.startswith("note: test has no image of NORMAL (patients with NORMAL in this data: ")
        assert "it cannot judge the model" in said
        with pytest.raises(ValueError, match="test has no image of NORMAL"):
            make_loaders(replace(data, manifest=one_class), test=True)

    def test_one_image_a_class_says_how_many_are_needed(self, data, manifest):
        """Field case 7."""
        few = manifest.groupby("label").head(1).assign(split="train")
        with pytest.raises(
            ValueError, match=r"val has no image of NORMAL \(patients with NORMAL in this data: 1, and each"
        ):
            make_loaders(replace(data, manifest=few))

    def test_a_split_without_a_class_is_refused_before_anything_is_trained(self, data, manifest):
        one_class = manifest[(manifest["split"] != "val") | (manifest["label"] == "PNEUMONIA")]
        with pytest.raises(
            ValueError,
            match="val has no image of NORMAL .*: 15, and each split needs one.*use another SPLIT or FRACTIONS",
        ):
            make_loaders(data, manifest=one_class)

    def test_memory_is_pinned_on_cuda_only(self, data, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert not make_loaders(data).train.pin_memory
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert make_loaders(data).train.pin_memory

    def test_workers_are_kept_and_do_not_hang_for_ever(self, data):
        train = make_loaders(data, workers=1).train
        assert train.persistent_workers
        assert train.timeout == module.BATCH_TIMEOUT


class TestPrepareData:
    def test_everything_is_there_and_checked(self, settings, catalog, capsys):
        data = prepare_data(settings)
        assert set(data.manifest["split"]) == set(SPLITS)
        assert (data.manifest["error"] == "").all()
        assert data.manifest.index.tolist() == list(range(len(data.manifest)))
        check_manifest(data.manifest, "coarse")
        assert data.classes == CLASSES
        assert data.settings == settings
        assert data.root == settings.raw_folder / "chest_xray"
        assert all((data.root / path).is_file() for path in data.manifest["path"])
        assert set(data.cache.rows) == set(data.manifest["path"])
        assert data.fingerprint == data.cache.fingerprint == fingerprint(catalog)
        folder = settings.processed_folder
        assert [len(list(folder.glob(name))) for name in ("catalog-*.csv", "splits-*.csv", "images-*.npy")] == [1, 1, 1]
        assert "left out, since unreadable: 2 files (train/NORMAL/IM-9002" in capsys.readouterr().out

    def test_the_second_time_nothing_is_made_again(self, settings):
        first = prepare_data(settings)
        stamps = {path: path.stat().st_mtime_ns for path in settings.processed_folder.iterdir()}
        second = prepare_data(settings)
        pd.testing.assert_frame_equal(second.manifest, first.manifest)
        assert second.cache == first.cache
        assert {path: path.stat().st_mtime_ns for path in settings.processed_folder.iterdir()} == stamps

    def test_size_way_to_resize_and_task_are_those_of_the_settings(self, settings):
        data = prepare_data(replace(settings, image_size=40, resize="pad", task="cause"))
        assert (data.cache.size, data.cache.resize) == (40, "pad")
        assert data.classes == ("normal", "bacterial", "viral")
        loaders = make_loaders(data)
        assert loaders.preprocess == Preprocess(40, "pad")
        assert np.bincount(loaders.train.dataset.labels).tolist() == list(loaders.train.dataset.counts().values())
        assert len(loaders.train.dataset.counts()) == 3


class TestWorkerErrors:
    @pytest.mark.parametrize(
        ("message", "what"),
        [
            ("DataLoader worker (pid 12) is killed by signal: Killed.", "was killed, often since memory ran out"),
            ("DataLoader timed out after 120 seconds", "gave no batch for 120 s"),
        ],
    )
    def test_a_lost_process_is_named_with_what_to_do(self, message, what):
        expected = f"A process that loads images {what}. Set WORKERS to fewer, or to 0"
        with pytest.raises(XrayError, match=expected), worker_errors():
            raise RuntimeError(message)

    def test_other_errors_are_left_alone(self):
        with pytest.raises(RuntimeError, match="^shapes do not match$"), worker_errors():
            raise RuntimeError("shapes do not match")
        with pytest.raises(KeyError), worker_errors():
            raise KeyError("DataLoader worker")
