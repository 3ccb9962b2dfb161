import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from xray_helpers.data import image_cache as module
from xray_helpers.data.catalog import build_catalog, fingerprint
from xray_helpers.data.image_cache import build_cache
from xray_helpers.data.reader import read_image
from xray_helpers.files import XrayError

BUILD = """
import sys
from pathlib import Path
from xray_helpers.data.catalog import build_catalog
from xray_helpers.data.image_cache import build_cache
root, folder, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
cache = build_cache(root, build_catalog(root, folder), folder, size)
print(cache.checksum)
"""


@pytest.fixture
def few(tiny, tmp_path):
    """A copy of some files, to be damaged: 10 per class, and a broken one."""
    root = tmp_path / "chest_xray"
    for label in ("NORMAL", "PNEUMONIA"):
        (root / "train" / label).mkdir(parents=True)
        for path in sorted((tiny / "chest_xray" / "train" / label).glob("*.jpeg"))[:10]:
            shutil.copy(path, root / "train" / label)
    shutil.copy(tiny / "chest_xray/train/PNEUMONIA/person9001_bacteria_9001.jpeg", root / "train" / "PNEUMONIA")
    return root


@pytest.fixture
def many(few, tmp_path):
    """The same pictures under 1,500 names, so that building takes a while."""
    files = [path for path in sorted(few.glob("*/*/*")) if "9001" not in path.name]
    for number in range(1500):
        target = tmp_path / "many" / files[number % 20].relative_to(few).with_name(f"{number}.jpeg")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(files[number % 20], target)
    return tmp_path / "many"


def start(root, folder, size):
    command = [sys.executable, "-c", BUILD, str(root), str(folder), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("resize", ["squash", "pad", "crop"])
def test_it_holds_each_readable_image_as_decoded(tiny, catalog, tmp_path, resize):
    root = tiny / "chest_xray"
    cache = build_cache(root, catalog, tmp_path, 32, resize)
    readable = catalog.loc[catalog["error"] == "", "path"]
    assert list(cache.rows) == readable.tolist()
    assert cache.images.shape == (len(readable), 32, 32)
    assert cache.images.dtype == np.uint8
    assert cache.fingerprint == fingerprint(catalog)
    assert cache.seconds > 0
    for path in readable:
        assert (cache.images[cache.rows[path]] == read_image(root / path, 32, resize)).all()


def test_the_file_is_the_same_for_any_number_of_threads_and_any_block(tiny, catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 7)  # many blocks, the last one smaller
    several = build_cache(tiny / "chest_xray", catalog, tmp_path / "several", 32)
    monkeypatch.setattr(module, "BLOCK", 1000)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    one = build_cache(tiny / "chest_xray", catalog, tmp_path / "one", 32)
    assert several.file.read_bytes() == one.file.read_bytes()


def test_reading_keeps_the_order_asked_for_and_returns_copies(tiny, catalog, tmp_path):
    cache = build_cache(tiny / "chest_xray", catalog, tmp_path, 32)
    paths = list(cache.rows)[5:0:-1]
    images = cache.read(paths)
    images[:] = 0
    for path, image in zip(paths, cache.read(paths), strict=True):
        assert (image == cache.images[cache.rows[path]]).all()
        assert image.any()
    with pytest.raises(KeyError, match="1 images are not in .*such as other.png"):
        cache.read(["other.png"])


def test_rows_are_found_by_path(few, tmp_path):
    cache = build_cache(few, build_catalog(few), tmp_path / "cache", 32)
    paths = list(cache.rows)
    assert cache.find(paths[::-1]).tolist() == list(range(20))[::-1]
    assert cache.find(paths).dtype == np.int64
    assert cache.find([]).shape == (0,)
    with pytest.raises(KeyError, match="2 images are not in .*such as one.png"):
        cache.find([paths[0], "one.png", "two.png"])


def test_the_images_cannot_be_written_to(few, tmp_path):
    cache = build_cache(few, build_catalog(few), tmp_path / "cache", 32)
    with pytest.raises(ValueError, match="read-only"):
        cache.images[0] = 0


def test_it_says_what_it_holds(few, tmp_path):
    cache = build_cache(few, build_catalog(few), tmp_path / "cache", 32, "pad")
    assert repr(cache) == "ImageCache(20 images, uint8 32 × 32, pad)"


def test_the_second_time_it_is_opened_and_not_built(few, tmp_path, capsys):
    catalog = build_catalog(few)
    first = build_cache(few, catalog, tmp_path / "cache", 32)
    assert "20 images" in capsys.readouterr().out
    shutil.rmtree(few)
    second = build_cache(few, catalog, tmp_path / "cache", 32)
    assert second == first
    assert second.seconds == first.seconds
    assert capsys.readouterr().out == ""


def test_each_size_and_way_to_resize_has_a_cache_of_its_own(few, tmp_path):
    catalog = build_catalog(few)
    caches = [build_cache(few, catalog, tmp_path, *kind) for kind in ((32, "squash"), (40, "squash"), (32, "crop"))]
    assert len({cache.file for cache in caches}) == 3
    assert all(cache.file.is_file() for cache in caches)


@pytest.mark.parametrize("change", ["another picture", "one file more", "one file less", "new version"])
def test_a_stale_cache_is_replaced(few, tmp_path, monkeypatch, change):
    old = build_cache(few, build_catalog(few), tmp_path / "cache", 32)
    victim = few / next(iter(old.rows))
    if change == "another picture":
        Image.new("L", (50, 50), 200).save(victim)
    elif change == "one file more":
        Image.new("L", (50, 50), 200).save(victim.with_name("new.png"))
    elif change == "one file less":
        victim.unlink()
    else:
        monkeypatch.setattr(module, "VERSION", 999)
    catalog = build_catalog(few)
    new = build_cache(few, catalog, tmp_path / "cache", 32)
    assert new.file != old.file
    assert not old.file.exists()
    for path in catalog.loc[catalog["error"] == "", "path"]:
        assert (new.read([path])[0] == read_image(few / path, 32)).all()


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "one bit", "other array", "no array", "no index", "cut index", "other index"]
)
def test_a_damaged_cache_is_rebuilt(few, tmp_path, capsys, damage):
    catalog = build_catalog(few)
    cache = build_cache(few, catalog, tmp_path / "cache", 32)
    intact, index = cache.file.read_bytes(), cache.file.with_suffix(".json")
    content = json.loads(index.read_text())
    {
        "cut": lambda: os.truncate(cache.file, len(intact) // 2),
        "empty": lambda: os.truncate(cache.file, 0),
        "one bit": lambda: cache.file.write_bytes(intact[:5000] + bytes([intact[5000] ^ 1]) + intact[5001:]),
        "other array": lambda: np.save(cache.file, np.zeros((3, 3))),
        "no array": cache.file.unlink,
        "no index": index.unlink,
        "cut index": lambda: os.truncate(index, 40),
        "other index": lambda: index.write_text(json.dumps({**content, "surprise": 1})),
    }[damage]()
    capsys.readouterr()
    again = build_cache(few, catalog, tmp_path / "cache", 32)
    assert again == cache
    assert again.file.read_bytes() == intact
    printed = capsys.readouterr().out
    assert "decoded in" in printed
    assert ("and is rebuilt" in printed) == (damage not in ("no array", "no index"))
    if damage == "one bit":
        assert "its checksum does not match" in printed


@pytest.mark.parametrize("damage", ["cut", "no image", "gone"])
def test_an_image_that_changed_since_the_catalog_was_made_is_an_error_and_leaves_nothing(few, tmp_path, damage):
    catalog = build_catalog(few)
    victim = few / catalog.loc[catalog["error"] == "", "path"].iloc[5]
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:300] if damage == "cut" else b"no image")
    path = victim.relative_to(few).as_posix()
    with pytest.raises(XrayError, match=rf"{path} can no longer be read \(.+\): it has changed since the catalog"):
        build_cache(few, catalog, tmp_path / "cache", 32)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".images.lock"]


def test_nothing_to_decode_is_an_error(few, tmp_path):
    catalog = build_catalog(few)
    with pytest.raises(ValueError, match="no readable image"):
        build_cache(few, catalog[catalog["error"] != ""], tmp_path / "cache", 32)
    with pytest.raises(ValueError, match="expected squash, pad, crop"):
        build_cache(few, catalog, tmp_path / "cache", 32, "stretch")


@pytest.mark.fault("disk too small for what comes")
def test_a_disk_that_is_too_small_is_named_before_anything_is_written(few, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(OSError, match="the image cache needs"):
        build_cache(few, build_catalog(few), tmp_path / "cache", 32)
    assert not list((tmp_path / "cache").glob("*images-*"))


def test_what_a_killed_process_left_is_removed(few, tmp_path):
    leftover = tmp_path / ".images-squash-32-abc.123.partial.npy"
    leftover.write_bytes(b"half an array")
    build_cache(few, build_catalog(few), tmp_path, 32)
    assert not leftover.exists()


def test_images_of_several_blocks_are_where_they_belong(few, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 3)
    catalog = build_catalog(few)
    cache = build_cache(few, catalog, tmp_path / "cache", 32)
    assert len(cache.rows) == 20
    for row, path in enumerate(catalog.loc[catalog["error"] == "", "path"]):
        assert cache.rows[path] == row
        assert (cache.images[row] == read_image(few / path, 32)).all()


def _first_image(cache):
    return cache.images[0].tobytes()


def test_sent_to_another_process_it_is_a_path_and_not_the_images(few, tmp_path):
    cache = build_cache(few, build_catalog(few), tmp_path / "cache", 128)
    first = cache.images[0].tobytes()
    assert len(pickle.dumps(cache)) < 5_000 < cache.images.nbytes
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_first_image, (cache,)) == first


@pytest.mark.slow
def test_killed_while_building_it_leaves_the_old_cache_and_starts_again(many, tmp_path):
    catalog, folder = build_catalog(many), tmp_path / "cache"
    small = build_cache(many, catalog, folder, 32)
    before = small.file.read_bytes()
    process = start(many, folder, 600)
    wait_for(lambda: list(folder.glob(".images-*.partial.npy")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(folder.glob(".images-*.partial.npy"))  # it was in the middle
    assert [path.name for path in folder.glob("images-*.npy")] == [small.file.name]
    assert small.file.read_bytes() == before
    cache = build_cache(many, catalog, folder, 600)
    assert not list(folder.glob(".images-*.partial*"))
    for path in list(cache.rows)[::100]:
        assert (cache.read([path])[0] == read_image(many / path, 600)).all()


@pytest.mark.slow
def test_two_that_build_at_once_do_not_disturb_each_other(many, tmp_path):
    processes = [start(many, tmp_path / "cache", 200) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("decoded in" in out for out, _ in outputs) == 1
    assert outputs[0][0].split()[-1] == outputs[1][0].split()[-1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(many, tmp_path):
    """The array is 94 MB at first, then 1.5 GB."""
    catalog, peaks = build_catalog(many), []
    for count in (94, 1500):
        root = tmp_path / str(count)
        for path in catalog["path"].head(count):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(many / path, root / path)
        folder = tmp_path / f"cache {count}"
        build_catalog(root, folder)  # so that the process only reads it: its search for near duplicates needs memory
        process, peak = start(root, folder, 1000), 0
        while process.poll() is None:
            try:
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            except psutil.NoSuchProcess:
                continue
            time.sleep(0.02)
        output = process.communicate()
        assert process.returncode == 0, output
        peaks.append(peak / 1e6)
    assert peaks[1] < peaks[0] + 60, peaks
    assert peaks[1] < 1000
