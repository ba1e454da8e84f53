"""Your own data set: `Images` holds uint8 pixels [N, C, H, W], and optional labels with the names of the classes."""

import sys

import torch

import simple_diffusion as sd

# Colored discs on a dark ground: 2,000 images of 16 x 16 pixels in three classes.
generator = torch.Generator().manual_seed(0)
labels = torch.arange(2000) % 3
center = 4 + 8 * torch.rand(2000, 2, 1, 1, generator=generator)  # in pixels
radius = 2 + 2 * torch.rand(2000, 1, 1, generator=generator)
rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
inside = (rows - center[:, 0]) ** 2 + (columns - center[:, 1]) ** 2 < radius**2  # [N, H, W]
pixels = torch.full((2000, 3, 16, 16), 20, dtype=torch.uint8)
for label in range(3):
    pixels[:, label][inside & (labels == label)[:, None, None]] = 230

images = sd.Images("discs", pixels, labels, class_names=("red", "green", "blue"))
print(f"{len(images):,} images of shape {images.shape}, standard deviation {images.std:.3f}")

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
net = sd.UNet(channels=3, classes=images.classes, widths=(32, 64), blocks=(1, 2))
denoiser = sd.Denoiser(net, sd.Karras(), sd.targets.v, images.std, images.mean)
model = sd.fit(denoiser, images, steps, loss=sd.drop_labels(sd.denoising_loss, null=images.classes)).model
guided = sd.Clipped(sd.Guided(model, scale=1.5, null=images.classes))
samples = sd.sample(guided, (30, 3, 16, 16), sd.karras_grid(model.schedule, 12), torch.arange(3).repeat_interleave(10))
sd.make_grid(sd.to_uint8(samples), columns=10).save("own_data_set.png")
