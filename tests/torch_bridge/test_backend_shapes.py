"""Models that move elements, and normalize each image, are one region and right."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.torch_bridge.eager import assert_as_eager

pytestmark = pytest.mark.usefixtures("compiling")


class Decoder(nn.Module):
    """Up in three ways, with borders of every kind."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect")
        self.norm = nn.BatchNorm2d(8)
        self.rise = nn.ConvTranspose2d(8, 8, 2, 2)
        self.smooth = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.near = nn.Upsample(scale_factor=2)
        self.last, self.pool = nn.Conv2d(24, 4, 3, stride=2), nn.AdaptiveMaxPool2d((3, 2))

    def forward(self, x):
        y = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        y = torch.cat([self.rise(y), self.smooth(y), self.near(y)], 1)
        return self.pool(F.silu(self.last(F.pad(y, (0, 1, 0, 1)))))


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 1, bias=False)
        self.norm, self.up, self.down = nn.BatchNorm2d(8), nn.PixelShuffle(2), nn.PixelUnshuffle(2)

    def forward(self, x):
        a, b = self.first(x).chunk(2, dim=1)
        x = torch.cat((a, F.relu(self.norm(self.last(b)))), 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        a, b = torch.split(x, [6, 10], dim=1)
        x = torch.cat([b.flip(3), torch.roll(a, 1, 2)], 1)
        return self.down(self.up(x)) + torch.stack([x, x * 2], 1).unbind(1)[1][:, :, ::1]


class Normalized(nn.Module):
    """Normalizations of channels first and last, of groups, and of other ranks."""

    def __init__(self):
        super().__init__()
        self.first, self.groups = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.layer, self.volume = nn.LayerNorm(8, eps=1e-6), nn.BatchNorm3d(4)
        self.instance, self.row = nn.InstanceNorm2d(8, affine=True), nn.BatchNorm1d(8)

    def forward(self, x):
        x = F.silu(self.groups(self.first(x)))
        x = x + self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        n, c, h, w = x.shape
        x = self.instance(self.volume(x.view(n, 4, 2, h, w)).view(n, c, h, w))
        return self.row(x.flatten(2)), F.layer_norm(x, x.shape[1:])


@pytest.mark.parametrize("kind", [Decoder, Shuffled, Normalized])
def test_one_region(kind):
    torch.manual_seed(0)
    assert_as_eager(kind(), (torch.randn(2, 3, 8, 6),), regions=1)
