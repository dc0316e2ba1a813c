"""The model against open_clip, torch's BatchNorm and arithmetic by hand."""

import json

import open_clip
import pytest
import torch
import torch.nn.functional as F

from service.config import BackboneConfig, ModelConfig, NeckConfig
from service.errors import ModelError
from service.modality import IMAGE_MODALITIES, Modality
from service.model.backbone import Backbone, _small, build_backbone
from service.model.fusion import fuse_all, fuse_rows
from service.model.neck import Neck
from service.model.reid import CrossReID
from tests.steps import SIZE, TOWER, Person, make_inputs, tiny_model_config

CAPTIONS = ["a man in a red coat", "a woman with a white bag and a hat", "person"]


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    torch.manual_seed(0)
    model = _small(TOWER, SIZE)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def test_features_equal_those_of_the_clip_they_came_from(clip: torch.nn.Module):
    backbone = Backbone(clip, (0.5,) * 3, (0.5,) * 3)
    images = torch.randn(6, 3, *SIZE)
    tokens = open_clip.SimpleTokenizer(context_length=12)(CAPTIONS)
    torch.testing.assert_close(
        backbone.encode_images(images, (2, 1, 3, 0)), clip.encode_image(images)
    )
    torch.testing.assert_close(backbone.encode_tokens(tokens), clip.encode_text(tokens))


def test_columns_after_the_longest_caption_change_nothing(clip: torch.nn.Module):
    backbone = Backbone(clip, (0.5,) * 3, (0.5,) * 3)
    tokens = open_clip.SimpleTokenizer(context_length=12)(CAPTIONS)
    longest = int((tokens != 0).sum(dim=1).max())
    assert longest < 12
    torch.testing.assert_close(
        backbone.encode_tokens(tokens[:, :longest]), backbone.encode_tokens(tokens)
    )


def test_each_visual_modality_has_its_own_patch_embedding(clip: torch.nn.Module):
    backbone = Backbone(clip, (0.5,) * 3, (0.5,) * 3)
    image = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        backbone.patch["nir"].weight.mul_(2.0)
    outs = [
        backbone.encode_images(image, tuple(int(m is n) for n in IMAGE_MODALITIES))
        for m in IMAGE_MODALITIES
    ]
    assert not torch.allclose(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_every_parameter_has_a_gradient_without_rows_of_most_modalities():
    model = CrossReID(tiny_model_config(), num_classes=4)
    people = [Person(c, (Modality.VIS, Modality.SK)) for c in range(3)]
    inputs, _ = make_inputs(people, [0, 3], 0, seed=0, dtype=torch.float32)
    model(inputs).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert float(model.backbone.patch["nir"].weight.grad.abs().sum()) == 0.0
    assert float(model.backbone.patch["sk"].weight.grad.abs().sum()) > 0.0


def test_the_neck_is_batchnorm_in_training_and_in_evaluation():
    torch.manual_seed(0)
    neck = Neck(5, NeckConfig(norm_scale=None)).double()
    reference = torch.nn.BatchNorm1d(5).double()
    with torch.no_grad():
        neck.weight.copy_(torch.rand(5))
        reference.weight.copy_(neck.weight)
    for _ in range(3):
        rows = torch.randn(7, 5, dtype=torch.float64) * 3 + 1
        a, b = rows.clone().requires_grad_(), rows.clone().requires_grad_()
        torch.testing.assert_close(neck(a, a), reference(b))
        neck(a, a).square().sum().backward()
        reference(b).square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    neck.running_mean.copy_(reference.running_mean)
    neck.running_var.copy_(reference.running_var)
    neck.eval(), reference.eval()
    torch.testing.assert_close(neck(rows), reference(rows))


def test_running_statistics_follow_torch():
    neck, reference = Neck(3, NeckConfig(norm_scale=None)), torch.nn.BatchNorm1d(3)
    for _ in range(4):
        rows = torch.randn(6, 3)
        neck(rows, rows), reference(rows)
    torch.testing.assert_close(neck.running_mean, reference.running_mean)
    torch.testing.assert_close(neck.running_var, reference.running_var)


def test_the_norm_scale_sets_the_length_and_what_is_expected():
    rows = torch.randn(8, 6)
    neck = Neck(6, NeckConfig(norm_scale=8.0))
    torch.testing.assert_close(neck(rows, rows).norm(dim=1), torch.full((8,), 8.0))
    assert neck.expected_norm == 8.0
    free = Neck(512, NeckConfig(norm_scale=None))
    assert free.expected_norm == pytest.approx(512**0.5, rel=1e-4)


def test_a_neck_needs_two_rows_to_train():
    with pytest.raises(ValueError, match="at least two rows"):
        Neck(3, NeckConfig())(torch.randn(1, 3), torch.randn(1, 3))


def test_fusion_is_the_unit_mean_of_the_present_members():
    rows = F.normalize(torch.randn(5, 4), dim=1)
    members = torch.tensor([[0, 2, -1, -1], [4, 3, 1, 0]])
    expected = torch.stack([(rows[0] + rows[2]) / 2, rows[[4, 3, 1, 0]].mean(dim=0)])
    torch.testing.assert_close(fuse_rows(rows, members), F.normalize(expected, dim=1))
    torch.testing.assert_close(fuse_all(rows[members[1:]]), F.normalize(expected[1:], dim=1))


def test_no_fused_query_is_an_empty_table():
    rows = F.normalize(torch.randn(2, 4), dim=1)
    assert fuse_rows(rows, torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 4)


def test_training_and_retrieval_see_the_same_features():
    torch.manual_seed(0)
    model = CrossReID(tiny_model_config(), num_classes=4).eval()
    images = torch.randint(0, 256, (3, *SIZE, 3), dtype=torch.uint8)
    mean, std = torch.tensor(model.backbone.mean), torch.tensor(model.backbone.std)
    pixels = ((images / 255.0 - mean) / std).permute(0, 3, 1, 2)
    path = model.backbone.encode_images(pixels, (0, 0, 3, 0))
    expected = F.normalize(path, dim=1)
    torch.testing.assert_close(model.embed_images(images, Modality.CP), expected)


def test_parameters_fall_into_named_groups_exactly_once():
    model = CrossReID(tiny_model_config(), num_classes=4)
    groups = model.parameter_groups()
    ids = [id(p) for params in groups.values() for p in params]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert groups["head"] == [model.classifier.weight]
    assert len(groups["patch"]) == 4


@pytest.mark.parametrize(
    ("name", "message"), [("backbone.nothing", "no module"), ("neck", "random")]
)
def test_a_freeze_that_matches_nothing_or_freezes_noise_is_refused(name: str, message: str):
    config = tiny_model_config().model_copy(update={"freeze": (name,)})
    with pytest.raises(ModelError, match=message):
        CrossReID(config, num_classes=4)


def test_an_unknown_backbone_is_named():
    with pytest.raises(ModelError, match="NoSuchNet"):
        build_backbone(BackboneConfig(name="NoSuchNet"))
    with pytest.raises(ModelError, match="RN50"):
        build_backbone(BackboneConfig(name="RN50", image_size=(64, 32)))


def test_pretrained_weights_come_from_a_file(tmp_path):
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    (tmp_path / "test-vit.json").write_text(
        json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text})
    )
    open_clip.add_model_config(tmp_path / "test-vit.json")
    config = BackboneConfig(name="test-vit", image_size=(64, 32))
    first = open_clip.create_model("test-vit")
    path = tmp_path / "weights.pt"
    torch.save(first.state_dict(), path)
    found = build_backbone(config.model_copy(update={"pretrained": str(path)}))
    torch.testing.assert_close(found.image_projection, first.visual.proj)
    assert found.image_positions.shape == (1 + 8 * 4, 32)
    frozen = ModelConfig(
        backbone=config.model_copy(update={"pretrained": str(path)}),
        freeze=("backbone.image_transformer",),
    )
    model = CrossReID(frozen, num_classes=3)
    assert not any(p.requires_grad for p in model.backbone.image_transformer.parameters())
    assert all(p.requires_grad for p in model.backbone.patch.parameters())
