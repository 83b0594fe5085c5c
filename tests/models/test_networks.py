from __future__ import annotations

import pytest
import torch
from torch import nn

from actx.models.vision_transformer import VisionTransformer


def _model(activation: type[nn.Module] = nn.GELU) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(activation).eval()


def test_size_is_that_of_a_demonstration() -> None:
    assert 100_000 < sum(p.numel() for p in _model().parameters()) < 200_000


@pytest.mark.parametrize("activation", [nn.GELU, nn.Mish, nn.Hardswish, nn.PReLU])
def test_every_block_has_an_activation_of_its_own(activation: type[nn.Module]) -> None:
    found = [module for module in _model(activation).modules() if isinstance(module, activation)]
    assert len(set(map(id, found))) == 3


def test_images_of_a_batch_do_not_see_each_other() -> None:
    image = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        together, alone = _model()(image), _model()(image[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


def test_position_matters() -> None:
    image = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        logits, mirrored = _model()(image), _model()(image.flip(-1))
    assert not torch.allclose(logits, mirrored, atol=1e-3)


def test_other_image_and_patch_sizes() -> None:
    model = VisionTransformer(image_size=12, patch_size=3, channels=3, classes=4, width=16, depth=1, heads=2, hidden=24)
    assert model(torch.zeros(2, 3, 12, 12)).shape == (2, 4)
