"""Metrics against torchmetrics' own classes and independent computations."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.multimodal.clip_score import CLIPScore
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from search.embedded.train import make_tokenizer
from search.metrics.clip import _projected, load_clip
from search.metrics.feature_net import class_logits, extract
from search.metrics.features import load_features
from search.metrics.inception import Inception, resize_like_tensorflow
from search.metrics.intervals import Groups, Value
from search.metrics.moments import Moments
from search.metrics.quality import FewImagesWarning, Fid, Kid, QualityError, inception_score, load_scorer, mean_score


def naive_fid(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of two Gaussians fitted in float64, with a matrix square root."""
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb)
    return float(mean + np.trace(ca + cb - 2 * np.real(root)))


class Flat(nn.Module):
    """A net for torchmetrics itself: the first pixels are the features."""

    num_features = 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().flatten(1)[:, :16] / 16


@pytest.mark.parametrize("count", [60, 300])
def test_fid_equals_an_independent_computation_and_torchmetrics(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    real = torch.randint(0, 256, (400, 3, 3, 3), generator=generator, dtype=torch.uint8)
    fake = torch.randint(0, 200, (count, 3, 3, 3), generator=generator, dtype=torch.uint8)
    theirs = FrechetInceptionDistance(feature=Flat()).set_dtype(torch.float64)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    a, b = Flat()(real), Flat()(fake)
    found = Fid(a)(b)
    assert found == pytest.approx(naive_fid(a.numpy(), b.numpy()), abs=1e-3)
    assert found == pytest.approx(float(theirs.compute()), abs=1e-3)
    assert Fid(Moments.of(a))(b) == pytest.approx(found, abs=1e-9)


def test_the_reference_stays_between_computations() -> None:
    generator = torch.Generator().manual_seed(0)
    fid = Fid(torch.randn(200, 8, generator=generator))
    one, other = torch.randn(50, 8, generator=generator), torch.randn(50, 8, generator=generator) + 1
    first = fid(one)
    assert fid(other) > first
    assert fid(one) == first


def test_the_interval_holds_the_value_and_shrinks_with_more_images() -> None:
    generator = torch.Generator().manual_seed(0)
    fid = Fid(torch.randn(400, 4, generator=generator))
    few, many = torch.randn(40, 4, generator=generator) + 1, torch.randn(640, 4, generator=generator) + 1
    first, second = fid.value(few, Groups()), fid.value(many, Groups())
    assert first.low < fid(few) < first.high
    assert second.high - second.low < (first.high - first.low) / 2
    assert fid.value(few, Groups()) == first
    assert np.isnan(fid.value(few, Groups(most=0)).low)


def test_the_interval_of_a_difference_is_narrower_than_those_of_its_parts() -> None:
    """Images of the same prompts and seeds vary together, and the groups are the same."""
    generator = torch.Generator().manual_seed(0)
    fid = Fid(torch.randn(400, 4, generator=generator))
    one = torch.randn(80, 4, generator=generator) + 1
    a, b = fid.value(one, Groups()), fid.value(one + 0.1 * torch.randn(80, 4, generator=generator), Groups())
    difference = b.minus(a)
    assert difference.low < difference.value == b.value - a.value < difference.high
    assert difference.high - difference.low < (a.high - a.low) / 2
    assert np.isnan(b.minus(Value(value=1.0)).low)


def test_unusable_features_are_refused() -> None:
    fid = Fid(torch.randn(20, 4))
    with pytest.raises(QualityError, match="got 1 images"):
        fid(torch.randn(1, 4))
    with pytest.raises(QualityError, match="finite: False"):
        fid(torch.full((5, 4), torch.nan))
    with pytest.raises(QualityError, match="the reference has 4 features, the images 5"):
        fid(torch.randn(5, 5))
    with pytest.raises(QualityError, match="2 of 5 images are not finite"):
        Fid(torch.cat([torch.randn(3, 4), torch.full((2, 4), torch.inf)]))
    with pytest.raises(QualityError, match="2 are not finite"):
        mean_score(torch.tensor([1.0, torch.nan, torch.inf]), Groups())
    with pytest.raises(QualityError, match="at least 10 images with finite logits; got 4"):
        inception_score(torch.randn(4, 3), Groups())
    with pytest.raises(QualityError, match="KID needs at least 2"):
        Kid(torch.randn(20, 4)).value(torch.full((5, 4), torch.nan), Groups())


def test_fewer_reference_images_than_features_are_told_with_the_number() -> None:
    with pytest.warns(FewImagesWarning, match=r"has 20 images for 32 features.*more than 32 real images"):
        Fid(torch.randn(20, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Fid(torch.randn(33, 32))


def test_kid_sees_a_shift_and_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    real, same = torch.randn(200, 8, generator=generator), torch.randn(150, 8, generator=generator)
    kid = Kid(real, subsets=20, subset_size=100)
    state = torch.random.get_rng_state()
    near, far = kid.value(same, Groups()), kid.value(same + 1, Groups())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert near.low < 0.05 < far.low < far.value
    assert kid.value(same, Groups()) == near
    unbiased = naive_mmd(real.double().numpy(), same.double().numpy())
    assert Kid(real[:150], subsets=4, subset_size=150).value(same, Groups()).value == pytest.approx(naive_mmd(real[:150].double().numpy(), same.double().numpy()), abs=1e-6)
    assert abs(near.value - unbiased) < near.high - near.low


def test_kids_interval_is_that_of_other_images() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 8, generator=generator)
    kid = Kid(real, subsets=2, subset_size=300)
    several = [kid.value(torch.randn(300, 8, generator=generator) + 0.3, Groups()) for _ in range(40)]
    spread = float(torch.tensor([v.value for v in several]).std())
    widths = torch.tensor([(v.high - v.low) / 2 / 2.093 for v in several])
    assert float(widths.median()) == pytest.approx(spread, rel=0.35)
    x = torch.randn(300, 8, generator=generator)
    difference = kid.value(x + 0.3, Groups()).minus(kid.value(x + 0.31, Groups()))
    assert 0 < difference.high - difference.low < (several[0].high - several[0].low) / 4, "the same groups: what both share drops out"


def naive_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x y / F + 1)^3."""
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    kx, ky = kernel(x, x), kernel(y, y)
    return float((kx.sum() - np.trace(kx)) / (n * (n - 1)) + (ky.sum() - np.trace(ky)) / (m * (m - 1)) - 2 * kernel(x, y).mean())


def test_the_inception_score_of_certain_and_of_undecided_images() -> None:
    certain = 50 * torch.eye(5).repeat(40, 1)
    assert inception_score(certain, Groups(), splits=1).value == pytest.approx(5, abs=1e-3)
    assert inception_score(torch.zeros(40, 5), Groups()).value == pytest.approx(1, abs=1e-5)
    noisy = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    found = inception_score(noisy, Groups())
    assert found.low < found.value < found.high
    assert inception_score(noisy, Groups()) == found


def test_feature_nets_by_name() -> None:
    net = load_features("embedded")
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    found = extract(net, [images[:2], images[2:]])
    assert found.shape == (3, net.num_features)
    torch.testing.assert_close(class_logits(net, found), net.logits(images))  # type: ignore[attr-defined]
    with pytest.raises(QualityError, match="allowed are 'embedded', 'inception', 'inception:<weight file>', 'clip'"):
        load_features("vgg")
    with pytest.raises(QualityError, match=r"weight file '/nowhere.pth' cannot be loaded .*protocol.features=inception:/path/to/weights-inception-2015"):
        load_features("inception:/nowhere.pth")
    with pytest.raises(QualityError, match=r"CLIP '/nowhere' cannot be loaded"):
        load_features("clip:/nowhere")
    with pytest.raises(QualityError, match="Flat classifies nothing"):
        class_logits(Flat(), torch.zeros(1, 16))


def test_inception_has_the_published_shape(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Inception()
    # 21,785,568 is Keras' InceptionV3 without its classes, counting batch norm's scale, which Keras leaves out.
    assert sum(p.numel() for name, p in net.named_parameters() if not name.startswith("fc")) == 21_785_568
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    loaded = load_features(f"inception:{tmp_path / 'weights.pth'}")
    images = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)
    found = extract(loaded, [images])
    assert found.shape == (2, 2048)
    assert class_logits(loaded, found).shape == (2, 1008)
    torch.testing.assert_close(extract(loaded, [images[1:]]), found[1:], rtol=1e-4, atol=1e-5)


def test_inception_features_equal_torch_fidelitys(tmp_path: Path) -> None:
    if not _has_torch_fidelity():
        pytest.skip("torch-fidelity is not installed: it needs torchvision")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    net = Inception().eval()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(tmp_path / "weights.pth")).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(net(images), theirs(images)[0], rtol=1e-3, atol=1e-4)


def _has_torch_fidelity() -> bool:
    from importlib.util import find_spec

    return find_spec("torch_fidelity") is not None and find_spec("torchvision") is not None


def test_tensorflows_resize_has_no_half_pixel_centres() -> None:
    row = torch.tensor([0.0, 10.0, 20.0, 30.0]).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert resize_like_tensorflow(row, 8)[0, 0, 0].tolist() == [0, 5, 10, 15, 20, 25, 30, 30]
    assert resize_like_tensorflow(row, 2)[0, 0, 0].tolist() == [0, 20]
    assert torch.equal(resize_like_tensorflow(row, 4), row)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = make_tokenizer()
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length, eos_token_id=tokenizer.eos_token_id, **size)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **size).to_dict(), projection_dim=16))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_clip_scores_equal_torchmetrics(clip_folder: Path) -> None:
    clip = load_clip(str(clip_folder))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prompts = ["a handwritten seven", "the digit two written by hand", "zero", "a photo of a handwritten one"]
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    prepare = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

    class Outputs:
        """transformers 5 returns objects where torchmetrics 1.9 expects tensors."""

        def __init__(self, model: CLIPModel) -> None:
            self.model, self.config = model, model.config

        def to(self, _device: torch.device) -> Outputs:
            return self

        def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
            return _projected(self.model.get_image_features(pixels))

        def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return _projected(self.model.get_text_features(ids, mask))

    def processor(text: list[str] | None = None, images: list[torch.Tensor] | None = None, **settings: object) -> dict:
        return clip.tokenizer(text, **settings) if text is not None else prepare(images, return_tensors="pt")

    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    expected, _ = _clip_score_update(list(images), prompts, Outputs(clip.model), processor)  # type: ignore[arg-type]
    assert CLIPScore.__name__ == "CLIPScore"
    torch.testing.assert_close(clip.score(images, prompts), expected.detach(), rtol=1e-3, atol=1e-3)
    value = mean_score(clip.score(images, prompts), Groups(most=10))
    assert value.value == pytest.approx(float(expected.mean()), abs=1e-3)


def test_clip_is_a_feature_net_and_a_scorer(clip_folder: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 50, 40), dtype=torch.uint8)
    assert extract(load_features(f"clip:{clip_folder}"), [images]).shape == (3, 16)
    scorer = load_scorer(f"clip:{clip_folder}")
    long = "a handwritten seven " * 200
    assert scorer.higher_is_better
    assert scorer.score(images, [long, "two", "three"]).shape == (3,)


PLUGIN = """
import torch

class Brightness:
    higher_is_better = True

    def __init__(self, device):
        self.device = device

    def score(self, images, prompts):
        return images.float().mean((1, 2, 3))

def useless(device):
    return object()
"""


def test_metrics_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brightness_plugin.py").write_text(PLUGIN)
    info = tmp_path / "brightness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brightness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dato.metrics]\nbrightness = brightness_plugin:Brightness\nuseless = brightness_plugin:useless\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "brightness_plugin", None)
    monkeypatch.delitem(sys.modules, "brightness_plugin")
    images = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 100)]).to(torch.uint8)
    assert load_scorer("brightness").score(images, ["a", "b"]).tolist() == [0, 100]
    with pytest.raises(QualityError, match="'useless' is no ImageScorer"):
        load_scorer("useless")
    with pytest.raises(QualityError, match=r"metric is 'beauty'; allowed are 'fid', 'kid', 'is', .*'clip', .*'brightness', 'useless'"):
        load_scorer("beauty")
