import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from xray_helpers import dataset as module
from xray_helpers.dataset import EpochSampler, XrayDataset, class_names, make_loaders, prepare
from xray_helpers.decoding import read_image
from xray_helpers.settings import Settings, seed_everything
from xray_helpers.splits import SPLITS, check_manifest, resplit
from xray_helpers.store import build_store

CLASSES = ("NORMAL", "PNEUMONIA")


@pytest.fixture(scope="module")
def manifest(catalog):
    return resplit(catalog)


@pytest.fixture(scope="module")
def store(tiny, catalog, tmp_path_factory):
    return build_store(tiny / "chest_xray", catalog, tmp_path_factory.mktemp("store"), 32)


@pytest.fixture
def settings(tiny):
    return Settings(data=str(tiny), image_size=32, batch_size=16)


class TestXrayDataset:
    def test_each_image_comes_with_its_own_label(self, tiny, manifest, store):
        dataset = XrayDataset(manifest, store, "val", CLASSES)
        rows = manifest[manifest["split"] == "val"]
        assert len(dataset) == len(rows)
        for index, row in enumerate(rows.itertuples()):
            image, label = dataset[index]
            assert image.shape == (1, 32, 32)
            assert image.dtype == torch.uint8
            assert (image[0].numpy() == read_image(tiny / "chest_xray" / row.path, 32)).all()
            assert CLASSES[label] == row.label
            assert dataset.paths[index] == row.path

    def test_many_at_once_are_the_same_as_one_by_one(self, manifest, store):
        dataset = XrayDataset(manifest, store, "train", CLASSES)
        indices = [5, 0, 17, 5]
        for (image, label), index in zip(dataset.__getitems__(indices), indices, strict=True):
            assert torch.equal(image, dataset[index][0])
            assert label == dataset[index][1]

    def test_any_data_loader_can_use_it(self, manifest, store):
        dataset = XrayDataset(manifest, store, "val", CLASSES)
        batches = list(DataLoader(dataset, batch_size=5))
        assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.labels)
        assert torch.cat([images for images, _ in batches]).shape == (len(dataset), 1, 32, 32)

    def test_changing_a_batch_does_not_change_the_store(self, manifest, store):
        dataset = XrayDataset(manifest, store, "val", CLASSES)
        dataset[0][0].zero_()
        assert dataset[0][0].any()

    def test_it_says_what_it_holds(self, manifest, store):
        dataset = XrayDataset(manifest, store, "train", CLASSES)
        counts = manifest.loc[manifest["split"] == "train", "label"].value_counts()
        assert repr(dataset) == (
            f"XrayDataset(train: {counts.sum()} images of 32 × 32; "
            f"NORMAL {counts['NORMAL']}, PNEUMONIA {counts['PNEUMONIA']})"
        )

    def test_causes_are_numbered_in_the_order_given(self, manifest, store):
        dataset = XrayDataset(manifest, store, "train", ("normal", "bacterial", "viral"), "cause")
        rows = manifest[manifest["split"] == "train"]
        assert [dataset.classes[label] for label in dataset.labels] == rows["cause"].tolist()

    def test_guards(self, manifest, store):
        with pytest.raises(ValueError, match="split='validation': this manifest has test, train, val"):
            XrayDataset(manifest, store, "validation", CLASSES)
        with pytest.raises(ValueError, match="class 'PNEUMONIA' in train is not one of NORMAL, COVID"):
            XrayDataset(manifest, store, "train", ("NORMAL", "COVID"))
        with pytest.raises(KeyError, match="such as elsewhere.png: these are other files"):
            XrayDataset(manifest.assign(path="elsewhere.png"), store, "train", CLASSES)
        with pytest.raises(ValueError, match=r"not uint8 \(N, 64, "):
            XrayDataset(manifest, replace(store, size=64), "train", CLASSES)[0]

    def test_it_is_small_when_sent_to_another_process(self, manifest, store):
        dataset = XrayDataset(manifest, store, "train", CLASSES)
        image = dataset[0][0]
        text = pickle.dumps(dataset)
        assert len(text) < 60_000 < store.images.nbytes
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


class TestEpochSampler:
    def test_each_epoch_has_every_image_once_in_an_order_of_its_own(self):
        sampler = EpochSampler(100, seed=0)
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
    def test_images_and_labels_stay_together_after_shuffling(self, tiny, settings):
        loaders, manifest = make_loaders(settings), prepare(settings)
        rows = manifest[manifest["split"] == "train"]
        known = {
            read_image(tiny / "chest_xray" / row.path, 32).tobytes(): CLASSES.index(row.label)
            for row in rows.itertuples()
        }
        for images, labels in loaders.train:
            assert images.shape == (16, 1, 32, 32)
            assert images.dtype == torch.uint8
            assert labels.shape == (16,)
            assert labels.dtype == torch.int64
            assert labels.tolist() == [known[image.numpy().tobytes()] for image in images]

    def test_validation_comes_whole_and_in_order(self, settings):
        loaders, manifest = make_loaders(Settings(data=settings.data, image_size=32, batch_size=7)), prepare(settings)
        rows = manifest[manifest["split"] == "val"]
        assert len(rows) % 7 != 0
        labels = torch.cat([labels for _, labels in loaders.val])
        assert [loaders.classes[label] for label in labels] == rows["label"].tolist()

    def test_the_test_split_is_closed_unless_asked_for(self, settings):
        with pytest.raises(ValueError, match=r"closed; evaluation opens it with make_loaders\(settings, test=True\)"):
            _ = make_loaders(settings).test
        opened = make_loaders(settings, test=True)
        assert sum(len(labels) for _, labels in opened.test) == (prepare(settings)["split"] == "test").sum()

    def test_the_same_batches_for_any_number_of_workers(self, settings, tiny):
        orders = []
        for workers in (0, 1, 2):
            loaders = make_loaders(Settings(data=str(tiny), image_size=32, batch_size=16, workers=workers))
            orders.append([batch for _ in range(2) for batch in loaders.train])
        for other in orders[1:]:
            assert len(other) == len(orders[0])
            for (images, labels), (others, other_labels) in zip(orders[0], other, strict=True):
                assert torch.equal(images, others)
                assert torch.equal(labels, other_labels)

    def test_the_same_batches_in_a_fresh_process_and_under_spawn(self, settings, tiny):
        script = (
            "import torch, hashlib\n"
            "from xray_helpers.dataset import make_loaders\n"
            "from xray_helpers.settings import Settings\n"
            "def digest(loaders):\n"
            "    return hashlib.sha256(b''.join(x.numpy().tobytes() for x, _ in loaders.train)).hexdigest()\n"
            "if __name__ == '__main__':\n"
            "    torch.multiprocessing.set_start_method('spawn')\n"
            f"    print(digest(make_loaders(Settings(data={str(tiny)!r}, image_size=32, batch_size=16, workers=W))))\n"
        )
        digests = set()
        for workers in ("0", "2"):
            file = tiny.parent / f"spawn-{workers}-{os.getpid()}.py"
            file.write_text(script.replace("W))", f"{workers}))"))
            run = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr
            digests.add(run.stdout.split()[-1])
        assert len(digests) == 1

    def test_making_and_using_loaders_leaves_the_global_random_state_alone(self, settings):
        prepare(settings)
        before = torch.get_rng_state()
        loaders = make_loaders(settings)
        list(loaders.train)
        list(loaders.val)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_training_set_smaller_than_a_batch_is_one_batch(self, settings, tiny):
        loaders = make_loaders(Settings(data=str(tiny), image_size=32, batch_size=1000))
        assert [len(labels) for _, labels in loaders.train] == [len(loaders.train.dataset)]

    def test_a_split_without_a_class_is_refused_before_anything_is_trained(self, settings, monkeypatch):
        manifest = prepare(settings)
        one_class = manifest[(manifest["split"] != "val") | (manifest["label"] == "PNEUMONIA")]
        monkeypatch.setattr(module, "make_splits", lambda *_: one_class)
        with pytest.raises(ValueError, match="val has no image of NORMAL: use another SPLIT or FRACTIONS"):
            make_loaders(settings)

    def test_memory_is_pinned_on_cuda_only(self, settings, monkeypatch):
        assert not make_loaders(settings).train.pin_memory
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        assert make_loaders(settings).train.pin_memory

    def test_workers_are_kept_and_do_not_hang_for_ever(self, tiny):
        train = make_loaders(Settings(data=str(tiny), image_size=32, workers=1)).train
        assert train.persistent_workers
        assert train.timeout == module.PATIENCE


class TestPrepare:
    def test_everything_is_there_and_checked(self, settings, capsys):
        manifest = prepare(settings)
        assert set(manifest["split"]) == set(SPLITS)
        assert (manifest["error"] == "").all()
        check_manifest(manifest, "coarse")
        folder = settings.processed_folder
        assert [len(list(folder.glob(name))) for name in ("catalog-*.csv", "splits-*.csv", "images-*.npy")] == [1, 1, 1]
        assert "left out, since unreadable: 2 files (train/NORMAL/IM-9002" in capsys.readouterr().out

    def test_the_second_time_nothing_is_made_again(self, settings):
        first = prepare(settings)
        stamps = {path: path.stat().st_mtime_ns for path in settings.processed_folder.iterdir()}
        pd.testing.assert_frame_equal(prepare(settings), first)
        assert {path: path.stat().st_mtime_ns for path in settings.processed_folder.iterdir()} == stamps

    def test_an_image_that_the_store_left_out_is_not_in_the_manifest(self, settings, monkeypatch):
        victim = prepare(settings)["path"].iloc[0]
        real = module.build_store

        def without(*arguments):
            store = real(*arguments)
            store.left_out[victim] = "damaged"
            return store

        monkeypatch.setattr(module, "build_store", without)
        assert victim not in set(prepare(settings)["path"])
