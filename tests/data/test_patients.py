import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xray_helpers.data.catalog import audit, build_catalog
from xray_helpers.data.patients import assign_patients, match_rows, patients_claim, patients_known, read_table
from xray_helpers.data.splits import make_splits
from xray_helpers.settings import Settings


def catalog_of(*names, folder="train/A"):
    """A catalog that needs no files, as `build_catalog` describes these file names."""
    paths = [f"{folder}/{name}" for name in names]
    own = ["file-" + path for path in paths]
    return pd.DataFrame({"path": paths, "patient_fine": own, "patient_coarse": own})


def table_at(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def draw_files(root, *names):
    """Small images, each with noise of its own."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(noise).save(root / name)


def test_a_table_is_read_as_text_with_or_without_a_byte_order_mark(tmp_path):
    text = "Path, patient ,Label,Age\r\nA\\1.png, 007,NA,5\r\n./B/2.png,true,0,\r\nc.png,,1,\r\n"
    for encoding in ("utf-8", "utf-8-sig"):
        table = read_table(table_at(tmp_path / "t.csv", text, encoding))
        assert table.to_dict("list") == {
            "path": ["A/1.png", "B/2.png", "c.png"], "patient": ["007", "true", ""], "label": ["NA", "0", "1"],
        }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv is no table of values separated by commas"),
        ("path;patient\n1.png;2\n", "no column path, its columns are path;patient. Expected path, patient and maybe"),
        ("path,label\n1.png,2\n", "no column patient"),
        ("path,patient\n", "names no image"),
        ("path,patient\na.png,1\n,1\n", "line 3 of t.csv names no image"),
        ("path,patient\na.png,1\nb.png,1\na.png,2\n", "line 4 of t.csv names an image again: 'a.png'"),
        ('path,patient\na.png,1\n"b.png,2\n', "is no table of values separated by commas"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_table(table_at(tmp_path / "t.csv", text))


def test_a_table_that_is_not_in_utf_8_says_how_to_save_it(tmp_path):
    with pytest.raises(ValueError, match="not a text file in UTF-8: save it as 'CSV UTF-8'"):
        read_table(table_at(tmp_path / "t.csv", "path,patient\na.png,1\n", "utf-16"))


@pytest.mark.parametrize(
    ("paths", "named", "rows"),
    [
        (["train/N/a.png", "train/P/b.png"], ["b.png", "a.png"], [1, 0]),
        (["train/N/a.png", "train/P/a.png"], ["train/N/a.png", "train/P/a.png"], [0, 1]),
        (["train/N/x/a.png", "train/N/y/a.png"], ["y/a.png", "x/a.png"], [1, 0]),
        (["train/N/a.png", "train/P/a.png"], ["a.png"], [-1, -1]),  # which of the two?
        (["train/N/a.png"], ["x/a.png", "y/a.png"], [-1]),
        (["train/N/a.png"], ["chest_xray/train/N/a.png"], [0]),
        (["train/N/a.png", "train/P/a.png"], ["train/N/a.png", "q/z/a.png"], [0, -1]),
        (["a.png"], ["b.png"], [-1]),
    ],
)
def test_images_are_matched_by_as_much_of_their_paths_as_is_unique(paths, named, rows):
    assert match_rows(paths, pd.DataFrame({"path": named, "patient": "1"})).tolist() == rows


def test_a_pattern_gives_the_patients_and_what_it_misses_is_counted(capsys):
    """Field case 10: NIH's names, of which each counted as a patient of its own, "patients apart"."""
    catalog = catalog_of("00000001_000.png", "00000001_003.png", "00000002_000.png", "x.png")
    found = assign_patients(catalog, Settings(patients=r"^(\d+)_"))
    assert found["patient_fine"].tolist() == ["patient-00000001"] * 2 + ["patient-00000002", "file-train/A/x.png"]
    assert found["patient_coarse"].equals(found["patient_fine"])
    assert "gives 1 of 4 images no patient" in capsys.readouterr().out


@pytest.mark.fault("patients that are not known")
def test_a_pattern_that_matches_no_file_is_refused():
    with pytest.raises(ValueError, match=r"gives no image a patient, such as train/A/a.png"):
        assign_patients(catalog_of("a.png"), Settings(patients=r"^(\d+)_"))


@pytest.mark.parametrize("name", ["labels.csv", "LABELS.CSV"])
def test_a_table_gives_the_patients(tmp_path, name):
    table = table_at(tmp_path / name, "path,patient\na.png,01\nA/b.png,01\nc.png,\nelsewhere.png,3\n")
    found = assign_patients(catalog_of("a.png", "b.png", "c.png", "d.png"), Settings(patients=str(table)))
    unknown = ["file-train/A/c.png", "file-train/A/d.png"]
    assert found["patient_fine"].tolist() == ["patient-01", "patient-01", *unknown]
    with pytest.raises(ValueError, match="gives no image a patient"):
        assign_patients(catalog_of("q.png"), Settings(patients=str(table)))


@pytest.mark.parametrize(
    ("names", "recognised"),
    [
        (["person1_bacteria_1.png", "person1_bacteria_2.png", "IM-0001-0001.png", "x.png"], True),
        (["person1_virus_1.png", "x.png"], True),
        (["person1_virus_1.png", "x.png", "y.png"], False),
        (["IM-0001-0001.png", "IM-0001-0002.png"], False),  # as DICOM viewers name them
        (["00000001_000.png", "00000001_001.png"], False),
    ],
)
def test_kaggle_s_names_are_recognised_and_not_assumed(tmp_path, names, recognised):
    draw_files(tmp_path, *(f"train/A/{name}" for name in names))
    catalog = build_catalog(tmp_path)
    unknown = catalog["patient_fine"].str.startswith("file-").sum()
    assert unknown == (sum(name == "x.png" for name in names) if recognised else len(names))
    assert (catalog["patient_coarse"].nunique() == len(names)) == (not recognised or len(names) == 2)
    audited = audit(catalog).set_index("check")["found"]
    assert audited["file names of an unknown pattern"] == unknown


@pytest.mark.parametrize(
    ("known", "unknown", "claim"),
    [
        (40, 0, "patients apart"),
        (5231, 1, "patients apart; 1 of 5,232 images has no patient number and counts as a patient of its own"),
        (38, 2, "patients apart; 2 of 40 images have no patient number and count as patients of their own"),
        (37, 3, "patients unknown: split by image"),
        (0, 9, "patients unknown: split by image"),
    ],
)
def test_what_is_said_of_patients_follows_from_what_is_known(known, unknown, claim):
    keys = ["patient-1"] * known + [f"file-{number}" for number in range(unknown)]
    manifest = pd.DataFrame({"patient_fine": keys})
    assert patients_claim(manifest) == claim
    assert patients_known(manifest) == claim.startswith("patients apart")


def test_names_of_another_scheme_are_split_by_image_unless_a_pattern_tells_the_patients(tmp_path, capsys):
    names = [f"train/{'AB'[patient % 2]}/{patient:08d}_{visit:03d}.png" for patient in range(24) for visit in range(3)]
    draw_files(tmp_path, *names)
    make_splits(Settings(), build_catalog(tmp_path, tmp_path / "cache"))
    assert "72 images; patients unknown: split by image" in capsys.readouterr().out
    settings = Settings(patients=r"^(\d+)_")
    manifest = make_splits(settings, build_catalog(tmp_path, tmp_path / "cache", settings))
    assert "72 images; patients apart\n" in capsys.readouterr().out
    patient = manifest["path"].str.extract(r"/(\d+)_", expand=False)
    assert manifest.groupby(patient)["split"].nunique().max() == 1
