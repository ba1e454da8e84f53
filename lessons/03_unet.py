# %% [markdown]
# # 3 · The U-Net
#
# The network predicts the noise of each pixel. For this it needs *context*: is this stroke part of a 3 or of an 8? It
# also needs *detail*, because the output has full resolution. A *U-Net* (Ronneberger et al. 2015) has a path for each.
# The *downsampling path* leads to a small feature map, where distant pixels are close together. *Skip connections*
# carry the detail past it. You compare a U-Net with a plain convolutional network of equal compute, then disable parts
# of the U-Net. File: [`networks/unet.py`](../src/simple_diffusion/networks/unet.py).

# %%
import os
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import simple_diffusion as sd

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
STEPS, COUNT = (4, 20) if FAST else (400, 512)
_ = torch.manual_seed(0)

# %% [markdown]
# ## Two networks
#
# The plain network is a stack of 3 × 3 convolutions at full resolution. The noise level is its second input channel,
# with the same value at every pixel.


# %%
class Plain(nn.Sequential):
    def forward(self, x, noise_level, cond=None):  # [B, 1, H, W] and [B] -> [B, 1, H, W], like the U-Net
        return super().forward(torch.cat([x, noise_level[:, None, None, None].expand_as(x)], 1))


layers = [layer for c in (2, 24, 24, 24, 24, 24) for layer in (nn.Conv2d(c, 24, 3, padding=1), nn.SiLU())]
plain, unet = Plain(*layers, nn.Conv2d(24, 1, 3, padding=1)), sd.UNet(widths=(32, 64), blocks=(1, 2))
images, schedule = sd.load_images("digits"), sd.Discrete(sd.linear_betas(100))
nets = {"plain": sd.Denoiser(plain, schedule, sd.targets.noise), "U-Net": sd.Denoiser(unet, schedule, sd.targets.noise)}
for name, denoiser in nets.items():
    with FlopCounterMode(display=False) as count:
        denoiser.net(torch.zeros(1, 1, 28, 28), torch.zeros(1))
    print(f"{name}: {count.get_total_flops() / 1e6:.0f} million operations per image,", end=" ")
    print(f"{sum(p.numel() for p in denoiser.parameters()):,} weights")

# %% [markdown]
# The compute is equal, but the U-Net has eleven times the weights. Its small feature maps make this possible: at a
# quarter of the height and width a convolution costs a sixteenth. You train both as in lesson 2 and sample in 50 steps.


# %%
def show(rows: dict[str, torch.Tensor]) -> None:  # a row of twelve images for each name
    picture = sd.make_grid(torch.cat([pixels[:12] for pixels in rows.values()]), 12)
    plt.figure(figsize=(8, 0.62 * len(rows)), layout="constrained")
    plt.imshow(picture)
    plt.yticks([(i + 0.5) * picture.height / len(rows) for i in range(len(rows))], rows)
    plt.xticks([])
    plt.show()


samples, times = {}, sd.uniform_grid(schedule, 5 if FAST else 50)
for name, denoiser in nets.items():
    sd.fit(denoiser, images.without_labels(), STEPS, loss=partial(sd.denoising_loss, density=sd.on_steps))
    x0 = sd.sample(sd.Clipped(denoiser), (COUNT, 1, 28, 28), times, sampler=sd.ddpm)
    samples[name] = sd.to_uint8(x0)
show(samples)

# %% [markdown]
# ## The receptive field
#
# The receptive field of an output pixel is the set of input pixels that it depends on. You measure it as the gradient
# of the center output pixel with respect to the input, in absolute value, averaged over 64 noisy images. Seven 3 × 3
# convolutions have a receptive field of 15 × 15 pixels. The U-Net depends on the whole image, because of its small map,
# attention and normalization. In both networks the gradient is largest near the center.


# %%
def noisy(x0: torch.Tensor, t: float) -> torch.Tensor:
    return schedule.add_noise(x0, torch.tensor(t), torch.randn_like(x0))


figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
for axis, (name, t) in zip(axes, [(name, t) for name in nets for t in (0.1, 0.6)], strict=True):
    x_t = noisy(sd.to_unit(images.pixels[:64]), t).requires_grad_()
    center = nets[name].predict(x_t, torch.tensor(t))[:, 0, 14, 14]
    size = torch.autograd.grad(center.sum(), x_t)[0].abs().mean((0, 1))
    picture = axis.imshow(size / size.max(), norm="log", vmin=1e-4, vmax=1)
    axis.set(title=f"{name}, t = {t:g}", xticks=[0, 14, 27], yticks=[0, 14, 27], facecolor="black")
figure.colorbar(picture, ax=axes, label="gradient / largest")
plt.show()

# %% [markdown]
# ## Ablations
#
# You change two inputs inside the trained U-Net with forward hooks. The noisy images have $t = 0.2$.
#
# - The *skip connection*: the hook sets its channels to 0. What remains is the small map, which has too little detail.
# - The *noise level*: each block scales its channels by `h * (1 + self.scale(emb))`, where `emb` is an embedding of the
#   noise level. The hook replaces the noise level by that of another $t$.


# %%
def zero_skip(module: nn.Module, args: tuple) -> tuple:
    upsampled, skip = args[0].chunk(2, 1)
    return torch.cat([upsampled, torch.zeros_like(skip)], 1), args[1]


def replace_level(t: float, module: nn.Module, args: tuple) -> tuple:
    return schedule.ratio(torch.full_like(args[0], t)).log() / 4, args[1]  # as in `Denoiser.predict`


@torch.no_grad()
def x0_prediction() -> torch.Tensor:
    return sd.to_uint8(nets["U-Net"](x_t, torch.tensor(0.2)))


x_t = noisy(sd.to_unit(images.pixels[:12]), 0.2)
rows = {"clean": images.pixels, "noisy, t = 0.2": sd.to_uint8(x_t), "x0 prediction": x0_prediction()}
with unet.up[0].register_forward_pre_hook(zero_skip):
    rows["without skip"] = x0_prediction()
for t in (0.05, 0.1, 0.4, 0.8):
    with unet.embedding.register_forward_pre_hook(partial(replace_level, t)):
        rows[f"input t = {t:g}"] = x0_prediction()
show(rows)

# %% [markdown]
# With a noise level that is too low, noise remains in the output. With one that is too high, strokes fade and the
# background turns gray. The network needs the noise level to separate noise from image.
#
# ## Result

# %%
fids = ", ".join(f"{sd.fid(pixels, images):.2f} with {name}" for name, pixels in samples.items())
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {fids}")

# %% [markdown]
# **New code since lesson 2:** none, since lesson 2 used the same U-Net. With one downsampling step it computes
#
# ```python
# skip = down(h)
# h = middle(shrink(skip))
# h = up(torch.cat([F.interpolate(grow(h), scale_factor=2.0), skip], 1))
# ```
#
# **Try.** Add a level: `sd.UNet(widths=(32, 64, 64), blocks=(1, 1, 1))`. Does FID improve at equal steps?
#
# **Exercise.** Write `receptive_field(layers)`, the side in pixels of the receptive field of a list of (kernel,
# stride): `simple-diffusion check 3 my_solution.py`.
