import io
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image, ImageOps

from xray_helpers.data.catalog import audit, build_catalog
from xray_helpers.data.near_duplicates import near_duplicates
from xray_helpers.data.reader import to_square
from xray_helpers.data.splits import check_manifest, resplit
from xray_helpers.data.synthetic import draw

CAUSES = ("normal", "bacterial", "viral")


@pytest.fixture(scope="module")
def films():
    """Forty phantoms of different patients, each of its own height and width."""
    rng = np.random.default_rng(5)
    sizes = rng.integers(150, 400, (40, 2)).tolist()
    return [Image.fromarray(draw(CAUSES[n % 3], rng, *size).image) for n, size in enumerate(sizes)]


def packed(film, quality):
    content = io.BytesIO()
    film.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("L")


def scaled(film, factor):
    return film.resize((round(film.width * factor), round(film.height * factor)), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda film: scaled(film, 0.5), 1),
        (lambda film: scaled(film, 2), 1),
        (lambda film: film.resize((224, 224)), 1),
        (lambda film: packed(film, 25), 1),
        (ImageOps.mirror, 1),
        (lambda film: ImageOps.mirror(packed(scaled(film, 0.6), 40)), 1),
        (lambda film: film.point(lambda level: 30 + level // 2), 1),
        (lambda film: film.rotate(-2, Image.Resampling.BILINEAR), 0.95),
        (lambda film: ImageOps.mirror(film.rotate(3, Image.Resampling.BILINEAR)), 0.9),
    ],
    ids=["half", "double", "square", "JPEG", "mirrored", "all three", "paler", "turned", "turned and mirrored"],
)
def test_the_same_film_is_found_again_and_no_other_is_joined(films, change, least):
    groups = near_duplicates(np.stack([to_square(film, 64) for film in films + [change(film) for film in films]]))
    first, second = groups[: len(films)], groups[len(films) :]
    assert (first == second).mean() >= least
    assert len(set(first)) == len(set(second)) == len(films)


def test_images_without_detail_are_no_near_duplicates():
    flat = [np.full((64, 64), level, dtype=np.uint8) for level in (0, 0, 90)]
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64), dtype=np.uint8)
    assert len(set(near_duplicates(np.stack([*flat, *noise])))) == 12


@pytest.mark.fault("the same radiograph under two patients")
def test_near_duplicates_across_patients_stand_in_the_catalog_and_the_audit_and_stay_together(films, tmp_path):
    """Field case 10: exact hashes miss the same radiograph once it is resized, compressed again or mirrored."""
    for number, film in enumerate(films):
        name = f"PNEUMONIA/person{number}_virus_{number}" if number % 2 else f"NORMAL/IM-{number:04d}-0001"
        path = tmp_path / "train" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        film.save(path)
    ImageOps.mirror(scaled(films[3], 0.7)).save(tmp_path / "train" / "PNEUMONIA" / "person901_virus_901.jpeg")
    packed(films[4], 50).save(tmp_path / "train" / "NORMAL" / "IM-0902-0001.png")
    packed(films[5], 50).save(tmp_path / "train" / "PNEUMONIA" / "person5_virus_903.png")  # of the same patient
    films[6].save(tmp_path / "train" / "NORMAL" / "IM-0904-0001.png")  # an exact copy
    (tmp_path / "train" / "NORMAL" / "IM-0905-0001.png").write_text("no image")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(
        tmp_path / "train" / "NORMAL" / "IM-0906-0001.png"
    )
    catalog = build_catalog(tmp_path, tmp_path / "cache")
    groups = catalog[catalog["near"] != ""].groupby("near")["patient_coarse"].agg(tuple)
    expected = {("NORMAL-4", "NORMAL-902"), ("NORMAL-6", "NORMAL-904")}
    expected |= {("PNEUMONIA-3", "PNEUMONIA-901"), ("PNEUMONIA-5", "PNEUMONIA-5")}
    assert set(groups) == expected
    row = audit(catalog).set_index("check").loc["near duplicates across patients"]
    assert row["found"] == 2
    for name in ("IM-0004-0001.png", "IM-0902-0001.png", "person3_virus_3.png", "person901_virus_901.jpeg"):
        assert name in row["note"]
    for seed in range(3):
        manifest = resplit(catalog, seed=seed)
        check_manifest(manifest, "coarse")
        assert manifest[manifest["near"] != ""].groupby("near")["split"].nunique().max() == 1
    assert build_catalog(tmp_path, tmp_path / "cache").equals(catalog)


def test_real_radiographs_are_not_joined_by_mistake(shared_data):
    """Two of one patient, or of two, are alike, but not that alike."""
    with ZipFile(shared_data / "chest-xray-pneumonia-224.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpeg")][::10]
        images = [np.asarray(Image.open(archive.open(name)).convert("L").resize((64, 64))) for name in names]
    assert len(set(near_duplicates(np.stack(images)))) >= len(images) - 3  # a few are exact copies of one patient
