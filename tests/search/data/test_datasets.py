"""Data sets as they come: made here in every odd form, and 500 real ImageNet photographs where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from search.data.datasets import FRESH_OFFSET, Data, DataError, DataSpec
from search.data.imagenet import read_classes
from search.data.images import glance, read_image
from search.metrics.feature_net import extract
from search.metrics.features import load_features
from search.metrics.moments import Moments
from search.metrics.reference import reference_features, reference_key, reference_moments

REAL = Path(__file__).parents[4] / "shared" / "data" / "imagenet500"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here: 500 real ImageNet photographs in synset folders")
TENCH, FISH, SHARK = "n01440764", "n01443537", "n01484850"


def picture(path: Path, size: tuple[int, int] = (30, 20), mode: str = "RGB", **save: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **save)  # type: ignore[arg-type]
    return path


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for synset, count in ((TENCH, 3), (FISH, 1), (SHARK, 2)):
        for i in range(count):
            picture(tmp_path / "images" / synset / f"{synset}_{i}.JPEG")
    return tmp_path / "images"


def spec(kind: str, **changes: object) -> DataSpec:
    return DataSpec(**{"name": "x", "kind": kind, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = picture(tmp_path / ("a.jpg" if mode in ("L", "CMYK") else "a.png"), mode=mode)
    assert read_image(path).shape == (3, 20, 30)
    assert read_image(path, 16).shape == (3, 16, 16)


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, 0].tolist() == [0, 128, 255]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera lay on its side
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 30, 20)


def folder_with_broken_images(tmp_path: Path) -> DataSpec:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    for i in range(3):
        picture(tmp_path / "images" / f"{i}.png", (30 + i // 2, 20))
    whole = picture(tmp_path / "images" / "truncated.jpg").read_bytes()
    (tmp_path / "images" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images" / "none.jpg").write_bytes(b"")
    return spec("folder", prompts=str(tmp_path / "prompts.txt"), images=str(tmp_path / "images"))


def test_unreadable_images_are_all_named(tmp_path: Path) -> None:
    broken = folder_with_broken_images(tmp_path)
    with pytest.raises(DataError, match=r"2 of 5 real images cannot be used: .*none.jpg is not a readable image.*truncated.jpg is not a readable image.*data.on_unreadable=skip"):
        list(Data(broken).reference())


def test_skipped_images_are_counted_and_the_rest_comes_in_batches_of_one_size(tmp_path: Path) -> None:
    data = Data(DataSpec(**{**folder_with_broken_images(tmp_path).__dict__, "on_unreadable": "skip"}))
    assert [tuple(b.shape) for b in data.reference()] == [(2, 3, 20, 30), (1, 3, 20, 31)]
    assert [message.split(" ")[0].rsplit("/")[-1] for message in data.unreadable] == ["none.jpg", "truncated.jpg"]
    assert [data.prompt(i) for i in (0, 1, 2)] == ["a cat", "a dog", "a cat"]
    list(data.reference())
    assert len(data.unreadable) == 2
    for _ in range(2):  # computed, then from the cache
        moments, unreadable = reference_moments(data, "embedded", cache=tmp_path / "cache")
        assert (moments.count, unreadable) == (3, data.unreadable)


def test_synset_folders(imagenet: Path) -> None:
    data = Data(spec("imagenet", images=str(imagenet)))
    assert sorted(data.prompts) == ["a photo of a goldfish", "a photo of a great white shark", "a photo of a tench"]
    assert len(data.paths) == 6
    assert {p.parent.name for p in data.paths[:3]} == {TENCH, FISH, SHARK}
    assert len({p.parent.name for p in Data(spec("imagenet", images=str(imagenet), num_reference_images=3)).paths}) == 3
    assert data.prompt(FRESH_OFFSET) in data.prompts
    assert data.real(0).shape == (3, 20, 30)
    assert Data(spec("imagenet", images=str(imagenet), template="{}, sharp")).prompts[0].endswith(", sharp")


@pytest.mark.parametrize("line", ["ILSVRC2012_val_0000000{i}.JPEG {index}", "ILSVRC2012_val_0000000{i},{synset} 1 2 3 4"])
def test_the_flat_validation_set(tmp_path: Path, line: str) -> None:
    rows = [(1, 1, FISH), (2, 0, TENCH), (3, 1, FISH)]
    for i, _, _ in rows:
        picture(tmp_path / "val" / f"ILSVRC2012_val_0000000{i}.JPEG")
    labels = tmp_path / "val.txt"
    labels.write_text("\n".join(["ImageId,PredictionString"] * ("," in line) + [line.format(i=i, index=n, synset=s) for i, n, s in rows]))
    data = Data(spec("imagenet", images=str(tmp_path / "val"), labels=str(labels)))
    assert sorted(data.prompts) == ["a photo of a goldfish", "a photo of a tench"]
    assert len(data.paths) == 3


def test_bad_imagenet_is_refused(tmp_path: Path, imagenet: Path) -> None:
    def message(text: str, **changes: object) -> None:
        with pytest.raises(DataError, match=text):
            Data(spec("imagenet", **{"images": str(imagenet), **changes}))

    labels = tmp_path / "labels.txt"
    message("holds no folder named after a synset.*give data.labels", images=str(imagenet / TENCH))
    message("which is no folder", images="/nowhere")
    message("data.labels is '/nowhere', which cannot be read", labels="/nowhere")
    labels.write_text("490\n361\n")
    message("bare numbers count classes in an order of their own", labels=str(labels))
    labels.write_text("n01440764_0.JPEG 7777\n")
    message("'7777' is neither a synset nor an index", labels=str(labels))
    labels.write_text("absent.JPEG 0\n")
    message("names 1 images that are not in .*such as absent.JPEG", labels=str(labels))
    message("data.classes is '/nowhere.csv', which cannot be read", classes="/nowhere.csv")
    labels.write_text("a,b\n1,2\n")
    message("its columns must be index,synset,name", classes=str(labels))
    labels.write_text(f"index,synset,name\n0,{TENCH},tench\n")
    message("2 synsets that the class file does not name, such as n01443537", classes=str(labels))
    message("data.template is 'a photo'", template="a photo")
    message("data.num_reference_images is 7, but only 6 real images", num_reference_images=7)


def test_the_shipped_classes() -> None:
    classes = read_classes(None)
    assert len(classes) == 1000
    assert sorted(index for index, _ in classes.values()) == list(range(1000))
    assert classes[TENCH] == (0, "tench")


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, str]:
    images = [{"id": i, "file_name": f"{i:012}.jpg"} for i in (9, 4, 6)]
    for row in images:
        picture(tmp_path / "val" / str(row["file_name"]))
    annotations = [{"id": 100 - i, "image_id": image, "caption": f" caption {100 - i} of {image}\n"} for i, image in enumerate([4, 9, 4, 6, 9])]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return {"captions": str(tmp_path / "captions.json"), "images": str(tmp_path / "val")}


def test_coco_gives_one_caption_an_image(coco: dict[str, str]) -> None:
    data = Data(spec("coco", **coco))
    assert sorted(data.prompts) == ["caption 96 of 9", "caption 97 of 6", "caption 98 of 4"]
    assert [p.name for p in data.paths] == ["000000000004.jpg", "000000000006.jpg", "000000000009.jpg"]
    assert Data(spec("coco", **coco, count=2)).prompts == data.prompts[:2]
    assert len(Data(spec("coco", **coco, num_reference_images=2)).paths) == 2


def test_bad_coco_is_refused(tmp_path: Path, coco: dict[str, str]) -> None:
    def message(text: str, **changes: object) -> None:
        with pytest.raises(DataError, match=text):
            Data(spec("coco", **{**coco, **changes}))

    message("data.count is 4, but .* captions only 3 images", count=4)
    message("data.captions is '/nowhere.json', which cannot be read", captions="/nowhere.json")
    (Path(coco["images"]) / "000000000006.jpg").unlink()
    message(r"1 of the 3 images of data.captions are not in data.images .*such as 000000000006.jpg", **{})
    (tmp_path / "bad.json").write_text("{}")
    message("is no COCO caption file", captions=str(tmp_path / "bad.json"))
    stray = {"images": [], "annotations": [{"id": 1, "image_id": 5, "caption": "x"}]}
    (tmp_path / "bad.json").write_text(json.dumps(stray))
    message("1 captions are of images that it does not list, such as 5", captions=str(tmp_path / "bad.json"))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("web", {}, "data.kind is 'web'; allowed are digits, folder, imagenet, coco and prompts"),
        ("coco", {}, r"needs data.captions .* and data.images"),
        ("folder", {"prompts": "p"}, "needs data.prompts .* and data.images"),
        ("digits", {"images": "x"}, "data.images is 'x', which data of kind 'digits' does not have; set it to null"),
        ("coco", {"template": "{}"}, "which data of kind 'coco' does not have"),
        ("imagenet", {"images": "x", "on_unreadable": "ignore"}, "data.on_unreadable is 'ignore'; allowed are fail and skip"),
        ("imagenet", {"images": "x", "num_reference_images": 1}, "data.num_reference_images is 1; give an integer of at least 2"),
        ("coco", {"images": "x", "captions": "y", "count": "all"}, "data.count is 'all'"),
    ],
)
def test_bad_settings_are_refused(kind: str, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        spec(kind, **changes)


def test_statistics_are_computed_once(tmp_path: Path, imagenet: Path) -> None:
    data = Data(spec("imagenet", images=str(imagenet), image_size=16))
    first, unreadable = reference_moments(data, "embedded", cache=tmp_path / "cache")
    assert unreadable == []
    whole = extract(load_features("embedded"), data.reference())
    torch.testing.assert_close(first.mean, whole.double().mean(0))
    (path,) = (tmp_path / "cache").glob("*.npz")
    marked = Moments(first.count, first.mean + 1, first.scatter)
    marked.save(path)
    torch.testing.assert_close(reference_moments(data, "embedded", cache=tmp_path / "cache")[0].mean, first.mean + 1)
    other = Data(spec("imagenet", images=str(imagenet), image_size=20))
    assert reference_moments(other, "embedded", cache=tmp_path / "cache")[0].count == 6
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 2


def test_features_are_computed_once(tmp_path: Path, imagenet: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Data(spec("imagenet", images=str(imagenet), image_size=16))
    first, unreadable = reference_features(data, "embedded", cache=tmp_path / "cache")
    assert unreadable == []
    assert torch.equal(first, extract(load_features("embedded"), data.reference()))
    (path,) = (tmp_path / "cache").glob("*.npy")
    np.save(path, first.numpy() + 1)
    assert torch.equal(reference_features(data, "embedded", cache=tmp_path / "cache")[0], first + 1)
    (tmp_path / "file").write_text("")
    assert torch.equal(reference_features(data, "embedded", cache=tmp_path / "file")[0], first)
    assert "set DATO_CACHE to a folder that you may write" in caplog.text


def test_the_key_follows_the_images_bytes(imagenet: Path) -> None:
    data = Data(spec("imagenet", images=str(imagenet)))
    first = reference_key(data, "embedded")
    assert reference_key(data, "embedded") == first
    assert reference_key(data, "clip") != first
    changed = bytearray(data.paths[0].read_bytes())
    changed[-3] ^= 1
    data.paths[0].write_bytes(bytes(changed))
    assert reference_key(data, "embedded") != first


def test_statistics_in_place_of_images(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    np.savez(tmp_path / "fid.npz", mu=np.zeros(32), sigma=np.eye(32))
    data = Data(spec("folder", prompts=str(tmp_path / "prompts.txt"), statistics=str(tmp_path / "fid.npz")))
    assert torch.equal(reference_moments(data, "embedded")[0].covariance, torch.eye(32, dtype=torch.float64))
    with pytest.raises(DataError, match=r"these data have statistics only; give data\.images"):
        list(data.reference())


@real
def test_real_imagenet_photographs() -> None:
    data = Data(spec("imagenet", images=str(REAL), num_reference_images=40, image_size=64))
    batches = list(data.reference(batch=16))
    assert [len(b) for b in batches] == [16, 16, 8]
    assert data.unreadable == []
    assert len(data.prompts) == 500
    assert len(set(p.parent.name for p in data.paths)) == 40
    as_they_are = Data(spec("imagenet", images=str(REAL), num_reference_images=40))
    assert sum(len(b) for b in as_they_are.reference()) == 40
    assert Moments.stream(extract(load_features("embedded"), [b]) for b in batches).count == 40


def test_files_with_a_byte_order_mark_are_as_those_without(tmp_path: Path, imagenet: Path, coco: dict[str, str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("a cat\r\n".encode("utf-8-sig") + "a dog, by\u2028night\n".encode("utf-8-sig") + b"\n")
    images = {"images": str(imagenet)}
    assert Data(spec("folder", prompts=str(prompts), **images)).prompts == ["a cat", "a dog, by\u2028night"]
    labels, classes = tmp_path / "labels.txt", tmp_path / "classes.csv"
    labels.write_text(f"{TENCH}_0.JPEG 0\n{TENCH}_1.JPEG 0\n", encoding="utf-8-sig")
    classes.write_text(f"index,synset,name\n0,{TENCH},tench\n", encoding="utf-8-sig")
    assert Data(spec("imagenet", **images, labels=str(labels), classes=str(classes))).prompts == ["a photo of a tench"]
    whole = Path(coco["captions"]).read_text()
    Path(coco["captions"]).write_text(whole, encoding="utf-8-sig")
    assert len(Data(spec("coco", **coco)).prompts) == 3


@pytest.mark.parametrize("kind", ["folder", "imagenet", "labels"])
def test_linked_folders_are_walked_once_and_loops_end(tmp_path: Path, kind: str) -> None:
    here, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    for i in range(2):
        picture(here / TENCH / f"a{i}.png")
    for i in range(3):
        picture(elsewhere / f"b{i}.png")
    (here / FISH).symlink_to(elsewhere)
    (here / TENCH / "again").symlink_to(here)
    (here / "loop").symlink_to(here)
    (elsewhere / "b9.png").symlink_to(elsewhere / "b0.png")
    (here / TENCH / "a9.png").symlink_to(here / TENCH / "a0.png")
    (tmp_path / "prompts.txt").write_text("a cat")
    (tmp_path / "labels.txt").write_text("".join(f"b{i}.png 1\n" for i in range(3)))
    if kind == "folder":
        data = Data(spec("folder", prompts=str(tmp_path / "prompts.txt"), images=str(here)))
    elif kind == "imagenet":
        (here / TENCH / "again").unlink()
        data = Data(spec("imagenet", images=str(here)))
    else:
        data = Data(spec("imagenet", images=str(here), labels=str(tmp_path / "labels.txt")))
    assert sorted(p.name for p in data.paths) == (["a0.png", "a1.png"] if kind != "labels" else []) + ["b0.png", "b1.png", "b2.png"]


def folder_of(tmp_path: Path) -> Data:
    (tmp_path / "prompts.txt").write_text("a cat")
    return Data(spec("folder", prompts=str(tmp_path / "prompts.txt"), images=str(tmp_path / "images")))


def test_a_link_to_the_folder_itself_and_links_to_its_files_count_nothing_twice(tmp_path: Path) -> None:
    here, linked = tmp_path / "images", tmp_path / "linked"
    for i in range(2):
        picture(here / f"{i}.png")
    picture(linked / "2.png")
    (here / "loop").symlink_to(here)
    (here / "a.png").symlink_to(here / "1.png")
    (here / "b.png").symlink_to(linked / "2.png")  # found in the linked folder too
    (here / "folder").symlink_to(linked)
    (here / "c.png").symlink_to(picture(tmp_path / "elsewhere.png"))
    (here / "d.png").symlink_to(tmp_path / "elsewhere.png")
    assert [p.relative_to(here).as_posix() for p in folder_of(tmp_path).paths] == ["0.png", "1.png", "c.png", "folder/2.png"]


@pytest.mark.parametrize("kind", ["folder", "imagenet", "labels"])
def test_a_linked_folder_that_is_not_there_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    for i in range(2):
        picture(tmp_path / "images" / TENCH / f"{i}.png")
    (tmp_path / "images" / FISH).symlink_to("/nowhere/disk")
    (tmp_path / "labels.txt").write_text("0.png 0\n1.png 0\n")
    with pytest.raises(DataError, match=rf"data.images is .*{FISH} is a link to '/nowhere/disk', which is not there; mount its disk"):
        if kind == "folder":
            folder_of(tmp_path)
        else:
            Data(spec("imagenet", images=str(tmp_path / "images"), labels=str(tmp_path / "labels.txt") if kind == "labels" else None))


def test_an_image_is_of_one_class(tmp_path: Path, imagenet: Path) -> None:
    (imagenet / "n01491361").symlink_to(imagenet / TENCH)
    with pytest.raises(DataError, match="3 images are in two classes through links; remove the links"):
        Data(spec("imagenet", images=str(imagenet)))
    (imagenet / "n01491361").unlink()
    (tmp_path / "labels.txt").write_text(f"{TENCH}_0.JPEG 0\n{TENCH}_0 0\n{TENCH}_1.JPEG 0\n")
    assert len(Data(spec("imagenet", images=str(imagenet), labels=str(tmp_path / "labels.txt"))).paths) == 2
    picture(imagenet / FISH / f"{TENCH}_0.png")
    with pytest.raises(DataError, match=f"line 2: '{TENCH}_0' is the name of 2 images, .*keep the one that is meant"):
        Data(spec("imagenet", images=str(imagenet), labels=str(tmp_path / "labels.txt")))


def test_what_pillow_reads_is_read_and_the_rest_is_said(tmp_path: Path) -> None:
    names = ["a.tif", "b.tiff", "c.gif", "d.jfif", "e.jpe", "f.JPG", "g.avif", "h.jp2", "i.ppm", "j.tga", "k.webp", "l.bmp", "m.png"]
    for name in names:
        picture(tmp_path / "images" / name)
    for name in ("notes.txt", "x.heic", "y.heic", "plain", "page.eps", "film.mpg", ".hidden"):
        (tmp_path / "images" / name).write_bytes(b"x")
    data = folder_of(tmp_path)
    assert [p.name for p in data.paths] == names
    assert sum(len(batch) for batch in data.reference()) == len(names)
    said = data.reference_in_words()
    assert said.startswith("13 real images of ")
    assert all(part in said for part in ("2 .heic", "1 .txt", "1 .eps", "1 .mpg", "1 without suffix")), said
    for name in names[1:]:
        (tmp_path / "images" / name).unlink()
    with pytest.raises(DataError, match=r"holds 1 images that Pillow reads .*2 \.heic"):
        folder_of(tmp_path)


def test_deep_pixels_keep_their_range_or_are_refused(tmp_path: Path) -> None:
    deep = np.array([[0, 32768, 65535]])
    for name, pixels in (("16.tif", deep.astype(np.uint16)), ("32.tif", deep.astype(np.int32))):
        Image.fromarray(pixels).save(tmp_path / name)
        assert read_image(tmp_path / name)[0, 0].tolist() == [0, 128, 255]
    for name, pixels in (("float.tif", np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), ("deep.tif", (deep * 1000).astype(np.int32))):
        Image.fromarray(pixels).save(tmp_path / name)
        with pytest.raises(DataError, match=f"{name} has (float32|int32) pixels .*save it with 8 or 16 bits"):
            read_image(tmp_path / name)


def test_a_file_that_would_run_another_program_is_no_image(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "page.jpg")
    with pytest.raises(DataError, match=r"page\.jpg is not a readable image"):
        read_image(tmp_path / "page.jpg")


def test_what_is_no_image_file_is_named_or_skipped_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat")
    for i in range(2):
        picture(tmp_path / "images" / f"{i}.png")
    os.mkfifo(tmp_path / "images" / "pipe.png")
    (tmp_path / "images" / "gone.png").symlink_to(tmp_path / "nothing")
    settings = {"prompts": str(tmp_path / "prompts.txt"), "images": str(tmp_path / "images")}
    with pytest.raises(DataError, match=r"2 of 4 real images cannot be used: .*gone.png .*pipe.png is no file"):
        list(Data(spec("folder", **settings)).reference())
    moments, unreadable = reference_moments(Data(spec("folder", **settings, on_unreadable="skip")), "embedded", cache=tmp_path / "cache")
    assert (moments.count, len(unreadable)) == (2, 2)


def test_a_damaged_cache_is_said_and_computed_again(tmp_path: Path, imagenet: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Data(spec("imagenet", images=str(imagenet), image_size=16))
    first, _ = reference_moments(data, "embedded", cache=tmp_path)
    features, _ = reference_features(data, "embedded", cache=tmp_path)
    for damaged in ("*.json", "*.npz", "*.npy"):
        for path in tmp_path.glob(damaged):
            path.write_bytes(b"[")
            caplog.clear()
            torch.testing.assert_close(reference_moments(data, "embedded", cache=tmp_path)[0].scatter, first.scatter)
            torch.testing.assert_close(reference_features(data, "embedded", cache=tmp_path)[0], features)
            assert "they are computed again" in caplog.text


@pytest.mark.parametrize("key", ["prompts", "labels", "classes", "captions"])
@pytest.mark.parametrize("given", ["/dev/zero", "{folder}", "{folder}/pipe", "~nobody_of_this_name/x", "{folder}/utf16", "n" * 300])
def test_what_is_no_text_file_is_refused_by_key_and_reason(tmp_path: Path, imagenet: Path, key: str, given: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "utf16").write_text("a cat", encoding="utf-16")
    kind = {"prompts": "folder", "captions": "coco"}.get(key, "imagenet")
    with pytest.raises(DataError, match=rf"data.{key} is .*cannot be read \(.*; give"):
        Data(spec(kind, images=str(imagenet), **{key: given.format(folder=tmp_path)}))


@pytest.mark.parametrize(
    "content", ["[]", "3", '{"images": 3, "annotations": 3}', '{"images": [{"id": {}, "file_name": 1}], "annotations": []}', '{"images": [], "images": []}', "[" * 100_000, '{"images": [{"id": 1e400}]}']
)
def test_captions_that_are_none(tmp_path: Path, coco: dict[str, str], content: str) -> None:
    Path(coco["captions"]).write_text(content)
    with pytest.raises(DataError, match="is no COCO caption file"):
        Data(spec("coco", **coco))


def test_a_glance_reads_every_header_and_some_images_to_their_ends(tmp_path: Path) -> None:
    for number in range(20):
        Image.effect_noise((64, 64), 100).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "03.png").write_bytes(b"")
    (tmp_path / "05.png").write_text("<html>not found</html>")
    for cut in ("08.png", "11.png"):
        (tmp_path / cut).write_bytes((tmp_path / cut).read_bytes()[:1000])
    paths = sorted(tmp_path.iterdir())
    assert [m.split()[0] for m in glance(paths, whole=5)] == [str(tmp_path / n) for n in ("03.png", "05.png", "08.png")], "of those cut off, the one that is read to its end"
    assert [m.split()[0] for m in glance(paths, whole=20)] == [str(tmp_path / n) for n in ("03.png", "05.png", "08.png", "11.png")]
