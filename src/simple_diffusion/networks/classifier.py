"""A small convolutional classifier. Its last feature map also gives the features for the evaluation of samples."""

from torch import Tensor, nn


class Classifier(nn.Module):
    """3 x 3 convolutions with batch normalization and GELU; each but the first halves the resolution.

    channels  of the image
    classes   number of logits
    size      height and width of the image
    layers    number of convolutions; their widths are start, 2 start, 4 start, 6 start, ...
    start     width of the first convolution

    x `[B, channels, size, size]` in [-1, 1] -> features `[B, F]`, the spatial mean of the last map, and logits
    `[B, classes]`, linear in the whole map. The defaults have 345,194 parameters and F = 192.

    Raises ValueError for a number that is out of range.
    """

    def __init__(self, channels: int = 1, classes: int = 10, size: int = 32, layers: int = 4, start: int = 32):
        super().__init__()
        self.architecture = {"channels": channels, "classes": classes, "size": size, "layers": layers, "start": start}
        if not all(1 <= n <= 4096 for n in self.architecture.values()) or layers > 16:
            raise ValueError(
                f"a classifier needs numbers from 1 to 4096 and at most 16 layers, got {self.architecture}"
            )
        body: list[nn.Module] = []
        for i in range(layers):
            width, stride = (2 * start * i, 2) if i else (start, 1)
            body += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.GELU()]
            channels, size = width, -(-size // stride)
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(channels * size**2, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.body(x)  # [B, F, H, W]
        return maps.mean((2, 3)), self.head(maps.flatten(1))
