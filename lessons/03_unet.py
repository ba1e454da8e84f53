# %% [markdown]
# # 3 · What the U-Net does
#
# The network guesses the noise of every pixel. To tell ink from noise it must see far: is this stroke part of a 3 or of
# an 8? And its answer must be exact to the pixel. A *U-Net* (Ronneberger et al. 2015) has a way for each: down to a
# coarse map, where far things are near, and a *skip connection* past it, which keeps the detail. This lesson sets it
# against a network of equal arithmetic that has neither, and takes its parts away. File:
# [`networks/unet.py`](../src/simple_diffusion/networks/unet.py).

# %%
import os
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import simple_diffusion as sd

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
STEPS, COUNT = (4, 64) if FAST else (400, 512)
torch.manual_seed(0)

# %% [markdown]
# ## Two networks
#
# The plain one is a stack of 3 × 3 convolutions at full resolution. It is told the noise level in the simplest way: as
# a second channel of its input, which has this one value everywhere.


# %%
class Plain(nn.Sequential):
    def forward(self, x, noise_level, cond=None):  # [B, 1, H, W] and [B] -> [B, 1, H, W], as a U-Net is called
        return super().forward(torch.cat([x, noise_level[:, None, None, None].expand_as(x)], 1))


layers = [layer for c in (2, 24, 24, 24, 24, 24) for layer in (nn.Conv2d(c, 24, 3, padding=1), nn.SiLU())]
plain, unet = Plain(*layers, nn.Conv2d(24, 1, 3, padding=1)), sd.UNet(widths=(32, 64), blocks=(1, 2))
images, schedule = sd.load_images("digits"), sd.Discrete(sd.linear_betas(100))
nets = {"plain": sd.Denoiser(plain, schedule, sd.targets.noise), "U-Net": sd.Denoiser(unet, schedule, sd.targets.noise)}
for name, denoiser in nets.items():
    with FlopCounterMode(display=False) as count:
        denoiser.net(torch.zeros(1, 1, 28, 28), torch.zeros(1))
    print(f"{name}: {count.get_total_flops() / 1e6:.0f} million operations an image,", end=" ")
    print(f"{sum(p.numel() for p in denoiser.parameters()):,} weights")

# %% [markdown]
# As much arithmetic, and eleven times the weights: at a quarter of the resolution a convolution costs a sixteenth, so
# there the U-Net can afford wide layers. Both learn and draw as in lesson 2, but for every second step when drawing.


# %%
def show(rows: dict[str, torch.Tensor]) -> None:  # twelve images a row
    picture = sd.make_grid(torch.cat([pixels[:12] for pixels in rows.values()]), 12)
    plt.figure(figsize=(8, 0.62 * len(rows)), layout="constrained")
    plt.imshow(picture)
    plt.yticks([(i + 0.5) * picture.height / len(rows) for i in range(len(rows))], rows)
    plt.xticks([])
    plt.show()


samples, times = {}, sd.uniform_grid(schedule, 5 if FAST else 50)
for name, denoiser in nets.items():
    sd.fit(denoiser, images, STEPS, loss=partial(sd.denoising_loss, density=sd.on_steps))
    x0 = sd.sample(sd.Clipped(denoiser), (COUNT, 1, 28, 28), times, sampler=sd.ddpm)
    samples[name] = sd.to_uint8(x0)
show(samples)

# %% [markdown]
# ## What one pixel of the output sees
#
# How much does the centre pixel of the output move when a pixel of the input does? That is a gradient; here is its
# size, the mean over 64 noisy images. Seven 3 × 3 convolutions see a square of 15 × 15 pixels and nothing beyond it. In
# the U-Net a step on the coarse map is four pixels wide, and attention and norms see the whole map. Both look hardest
# at what is near.


# %%
def noisy(x0: torch.Tensor, t: float) -> torch.Tensor:
    alpha, sigma = schedule.levels(torch.tensor(t), x0)
    return alpha * x0 + sigma * torch.randn_like(x0)


figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
for axis, (name, t) in zip(axes, [(name, t) for name in nets for t in (0.1, 0.6)], strict=True):
    x_t = noisy(sd.to_unit(images.pixels[:64]), t).requires_grad_()
    centre = nets[name].predict(x_t, torch.tensor(t))[:, 0, 14, 14]
    size = torch.autograd.grad(centre.sum(), x_t)[0].abs().mean((0, 1))
    picture = axis.imshow(size / size.max(), norm="log", vmin=1e-4, vmax=1)
    axis.set(title=f"{name}, t = {t:g}", xticks=[0, 14, 27], yticks=[0, 14, 27], facecolor="black")
figure.colorbar(picture, ax=axes, label="gradient / largest")
plt.show()

# %% [markdown]
# ## Parts taken away
#
# Two parts of the trained U-Net are spoilt in turn, by hooks that change what a module is given.
#
# - The *skip connection*: its channels, the second half of what the first level on the way up is given, are set to 0.
#   What comes from the coarse map is too coarse for the noise of each pixel, and that is what is asked for.
# - The *noise level*: it reaches the U-Net as one factor for each channel of each block, `h * (1 + self.scale(emb))`,
#   which turns some features up and others down. What for, a lie shows; the truth is t = 0.2.


# %%
def cut(module: nn.Module, args: tuple) -> tuple:
    coarse, skip = args[0].chunk(2, 1)
    return torch.cat([coarse, torch.zeros_like(skip)], 1), args[1]


def tell(t: float, module: nn.Module, args: tuple) -> tuple:
    return schedule.ratio(torch.full_like(args[0], t)).log() / 4, args[1]  # as in `Denoiser.predict`


@torch.no_grad()
def guess() -> torch.Tensor:
    return sd.to_uint8(nets["U-Net"](x_t, torch.tensor(0.2)))


x_t = noisy(sd.to_unit(images.pixels[:12]), 0.2)
rows = {"clean": images.pixels, "noisy, t = 0.2": sd.to_uint8(x_t), "guess": guess()}
with unet.up[0].register_forward_pre_hook(cut):
    rows["without skip"] = guess()
for t in (0.05, 0.1, 0.4, 0.8):
    with unet.embedding.register_forward_pre_hook(partial(tell, t)):
        rows[f"told t = {t:g}"] = guess()
show(rows)

# %% [markdown]
# Told of less noise, it leaves specks; told of more, the ink fades and the ground turns grey. A pixel means something
# else at each level, and the knobs say which.
#
# ## The number that moved

# %%
fids = ", ".join(f"{sd.fid(pixels, images):.2f} with {name}" for name, pixels in samples.items())
print(f"FID[digits-cnn-1, n={COUNT} vs train]: {fids}")

# %% [markdown]
# **What is new since lesson 2**, in code: nothing, as it used the U-Net without a word. With one level it is this:
#
# ```python
# skip = down(h)
# h = middle(shrink(skip))
# h = up(torch.cat([F.interpolate(grow(h), scale_factor=2.0), skip], 1))
# ```
#
# **Exercise.** Write `receptive_field(layers)`, how many pixels a side one output pixel sees through a list of (kernel,
# stride): `simple-diffusion check 3 my_solution.py`.
