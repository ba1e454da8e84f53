"""Your own training loop: `sd.train` yields after each update, and everything around it is yours."""

import sys

import torch

import simple_diffusion as sd

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
images = sd.load_images("digits")
null = images.classes  # the label that means "no label"
net = sd.UNet(classes=images.classes, widths=(32, 64), blocks=(1, 2))
denoiser = sd.Denoiser(net, sd.Karras(), sd.targets.v, images.std, images.mean)
ema = sd.EMA(denoiser)
times, labels = sd.karras_grid(denoiser.schedule, 12), torch.arange(40) % 10


def loss(denoiser, x0, cond, draws):
    """The noise levels of EDM: ln(sigma/alpha) is normal."""
    return sd.denoising_loss(denoiser, x0, cond, draws, density=sd.LogNormal(-0.85, 1.2))


for step in sd.train(
    denoiser,
    sd.batches(images, 32, seed=0),
    sd.muon(denoiser),
    loss=sd.drop_labels(loss, null),
    lr=lambda n: 3e-3 * sd.warmup_linear((n - 0.5) / steps),
):
    ema.update(denoiser, step.n)
    if step.n % (steps // 4) == 0:  # your own logging, pictures, checkpoints ...
        guided = sd.Clipped(sd.Guided(ema.model, scale=1.5, null=null))
        samples = sd.sample(guided, (40, 1, 28, 28), times, labels)
        sd.make_grid(sd.to_uint8(samples), columns=10).save(f"own_loop-{step.n}.png")
        print(f"step {step.n}: loss {step.loss:.4f}, gradient norm {step.grad_norm:.3f}")
    if step.n == steps:
        break
