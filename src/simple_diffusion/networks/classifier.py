"""A small convolutional classifier, whose last map also gives the features that samples are judged by."""

from torch import Tensor, nn


class Classifier(nn.Module):
    """Convolutions of 3 x 3 with BatchNorm and GELU, the first at full resolution, each further one halving it.

    channels  of the image
    classes   number of logits
    size      height and width of the image
    layers    convolutions, of widths start, 2 start, 4 start, 6 start, ...
    start     width of the first one

    x `[B, channels, size, size]` in [-1, 1] -> features `[B, F]`, the spatial mean of the last map, and logits
    `[B, classes]`, linear in the whole map. The defaults have 345,194 parameters and F = 192.

    Raises ValueError for numbers that make no network.
    """

    def __init__(self, channels: int = 1, classes: int = 10, size: int = 32, layers: int = 4, start: int = 32):
        super().__init__()
        self.architecture = {"channels": channels, "classes": classes, "size": size, "layers": layers, "start": start}
        if not all(1 <= n <= 4096 for n in self.architecture.values()) or layers > 16:
            raise ValueError(f"a classifier of {self.architecture} is not possible: use 1 to 4096, and 1 to 16 layers")
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
