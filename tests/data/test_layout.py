import pandas as pd
import pytest

from xray_helpers.data.layout import SPLIT_NAMES, choose_images
from xray_helpers.files import DownloadError, project_root

GOOD = ("chest_xray/train/NORMAL/a.jpeg", "chest_xray/train/PNEUMONIA/b.jpeg")


def places(*names, table=None):
    return choose_images(names, "x", table)[0]


def test_images_are_taken_once_and_every_other_file_has_its_reason():
    taken = {
        GOOD[0]: "train/NORMAL/a.jpeg",
        GOOD[1]: "train/PNEUMONIA/b.jpeg",
        "chest_xray/test/NORMAL/c.JPG": "test/NORMAL/c.JPG",
    }
    others = {
        "chest_xray/chest_xray/train/NORMAL/a.jpeg": ("in a second copy", "NORMAL"),
        "chest_xray/chest_xray/train/NORMAL/new.jpeg": ("in no class folder, but in chest_xray", ""),
        "chest_xray/__MACOSX/train/NORMAL/._a.jpeg": ("hidden or system file", ""),
        "chest_xray/train/NORMAL/.DS_Store": ("hidden or system file", "NORMAL"),
        "chest_xray/train/NORMAL/.hidden.jpeg": ("hidden or system file", "NORMAL"),
        "chest_xray/train/NORMAL/Thumbs.db": ("hidden or system file", "NORMAL"),
        "chest_xray/train/NORMAL/notes.txt": ("not an image format: .txt", "NORMAL"),
        "chest_xray/train/NORMAL/README": ("not an image format: no suffix", "NORMAL"),
        "chest_xray/train/NORMAL/masks/a.png": ("in a folder of masks", "NORMAL"),
        "chest_xray/train/a.jpeg": ("in no class folder, but in train", ""),
        "chest_xray/dev/NORMAL/a.jpeg": ("in no class folder, but in dev", ""),
        "a.jpeg": ("in no class folder, but in x", ""),
        "docs/a.jpeg": ("in no class folder, but in docs", ""),
    }
    names = [*others, *taken, "chest_xray/train/NORMAL/a_folder.jpeg/"]
    assert choose_images(names, "x") == (taken, others)


@pytest.mark.parametrize("prefix", ["", "chest_xray/", "Downloads/archive/", "test/"])
def test_the_folders_are_found_at_any_depth(prefix):
    found = places(f"{prefix}train/cat/1.png", f"{prefix}val/dog/2.tif", f"{prefix}train/cow/3.bmp")
    assert sorted(found.values()) == ["train/cat/1.png", "train/cow/3.bmp", "val/dog/2.tif"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        *(("Train", "train"), ("TRAIN", "train"), ("training", "train"), ("valid", "val"), ("Validation", "val")),
        *(("VAL", "val"), ("testing", "test"), ("Tests", "test")),
    ],
)
def test_splits_have_their_usual_names_in_any_case(name, folder):
    """Field case 13."""
    found = places(f"x/{name}/A/1.png", f"x/{name}/B/2.png", "x/train/A/3.png")
    assert [found[f"x/{name}/{image}"] for image in ("A/1.png", "B/2.png")] == [
        f"{folder}/A/1.png",
        f"{folder}/B/2.png",
    ]


def test_of_two_files_for_one_place_the_second_is_counted():
    found, left_out = choose_images(["val/A/1.png", "valid/A/1.png", "valid/B/2.png"], "x")
    assert found == {"val/A/1.png": "val/A/1.png", "valid/B/2.png": "val/B/2.png"}
    assert left_out == {"valid/A/1.png": ("of the same folder and name as another", "A")}


@pytest.mark.parametrize("suffix", ["webp", "jfif", "JFIF", "gif", "dcm", "tiff"])
def test_the_formats_are_those_of_the_reader(suffix):
    """Field case 14."""
    assert len(places("train/A/1.png", f"train/B/2.{suffix}")) == 2


class TestWithoutSplits:
    @pytest.mark.parametrize("prefix", ["", "data/", "archive/data/"])
    def test_class_folders_are_one_pool(self, prefix):
        """Field case 13."""
        found, left_out = choose_images([f"{prefix}A/1.png", f"{prefix}B/p7/2.png", f"{prefix}B/x.txt", "0.png"], "x")
        assert found == {f"{prefix}A/1.png": "train/A/1.png", f"{prefix}B/p7/2.png": "train/B/p7/2.png"}
        assert left_out == {
            f"{prefix}B/x.txt": ("not an image format: .txt", "B"),
            "0.png": ("in no class folder, but in x", ""),
        }

    def test_splits_inside_classes_are_splits(self):
        assert places("A/train/1.png", "A/Testing/2.png", "B/valid/3.png", "B/4.png") == {
            "A/train/1.png": "train/A/train/1.png",
            "A/Testing/2.png": "test/A/Testing/2.png",
            "B/valid/3.png": "val/B/valid/3.png",
            "B/4.png": "train/B/4.png",
        }

    def test_a_copy_of_all_beside_the_classes_is_a_copy(self):
        found, left_out = choose_images(["A/1.png", "B/2.png", "old/A/1.png", "old/B/2.png", "old/B/3.png"], "x")
        assert found == {"A/1.png": "train/A/1.png", "B/2.png": "train/B/2.png"}
        assert left_out == {
            "old/A/1.png": ("in a second copy", "A"),
            "old/B/2.png": ("in a second copy", "B"),
            "old/B/3.png": ("in no class folder, but in old", ""),
        }

    def test_folders_of_patients_are_not_taken_for_classes(self):
        with pytest.raises(DownloadError, match="x holds 30 folders of images beside each other, such as p0: too many"):
            places(*(f"p{number}/1.png" for number in range(30)))


def test_folders_of_patients_inside_classes_are_kept():
    assert places("train/A/p1/1.png", "train/B/p2/day 3/1.png") == {
        "train/A/p1/1.png": "train/A/p1/1.png",
        "train/B/p2/day 3/1.png": "train/B/p2/day 3/1.png",
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "x holds no images in folders such as train/NORMAL.*Found: files nothing"),
        (["a.jpeg", "NORMAL/b.jpeg"], "holds no images in folders such as train/NORMAL"),
        (["train/A/b.heic"], r"Found: files not an image format: \.heic"),
        (["train/NORMAL/a.jpeg", "val/NORMAL/b.jpeg"], r"holds only one class \(NORMAL\)"),
        (["train/Normal/a.jpeg", "val/NORMAL/b.jpeg"], r"classes that differ only in capitals \(NORMAL, Normal\)"),
    ],
)
def test_another_structure_is_refused_with_the_expected_one(names, message):
    with pytest.raises(DownloadError, match=message):
        places(*names)


class TestTableOfLabels:
    """As NIH and RSNA come: folders of images, and a table."""

    NAMES = ("images_001/a.png", "images_002/b.png", "images_002/c.png", "other/d.png")

    def table(self, *rows, columns=("path", "patient", "label", "split")):
        return pd.DataFrame(rows, columns=list(columns), dtype=str)

    def test_labels_and_splits_come_from_the_table(self, capsys):
        table = self.table(
            ("images_001/a.png", "1", "ill", "Training"),
            ("b.png", "2", "0", "test"),
            ("c.png", "3", "", ""),
            ("gone.png", "4", "ill", "val"),
        )
        found, left_out = choose_images(self.NAMES, "x", table)
        assert found == {
            "images_001/a.png": "train/ill/images_001/a.png",
            "images_002/b.png": "test/0/images_002/b.png",
        }
        assert left_out == dict.fromkeys(("images_002/c.png", "other/d.png"), ("without a label in the table", ""))
        assert "note: 1 of the 4 rows of the table name no image of x" in capsys.readouterr().out

    def test_without_splits_in_the_table_the_folders_say_them(self):
        table = self.table(("a.png", "1", "ill"), ("b.png", "2", "well"), columns=("path", "patient", "label"))
        assert places("a.png", "Valid/b.png", table=table) == {
            "a.png": "train/ill/a.png",
            "Valid/b.png": "val/well/Valid/b.png",
        }

    def test_a_table_without_labels_changes_nothing(self):
        table = self.table(("a.jpeg", "1"), columns=("path", "patient"))
        assert places(*GOOD, table=table) == places(*GOOD)

    @pytest.mark.parametrize(
        ("label", "split"), [("../../etc", "train"), ("a/b", ""), ("..", ""), ("a\\b", ""), ("C:", ""), ("ill", "dev")]
    )
    def test_what_cannot_be_a_folder_or_a_split_is_refused(self, label, split):
        with pytest.raises(DownloadError, match="the table has the label .* for a.png: splits are train, val or test"):
            places(*self.NAMES, table=self.table(("a.png", "1", label, split)))

    def test_a_table_of_other_images_is_refused(self):
        with pytest.raises(DownloadError, match="Found: files without a label in the table"):
            places(*self.NAMES, table=self.table(("z.png", "1", "ill", "")))


def test_the_page_for_other_datasets_names_what_is_known():
    page = (project_root() / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    assert not [name for name in SPLIT_NAMES if name not in page]
