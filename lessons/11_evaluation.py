# %% [markdown]
# # 11 · How good are the pictures?
#
# Every lesson so far ended with a FID. Here is what that is: a classifier looks at the pictures, and what it sees is
# compared with what it sees in real ones. So we train a classifier first (those who come from a notebook that trains
# one on digits or Fashion-MNIST find it here), then write down the scores, and then damage real images in ways that we
# know, to find out which score notices what. No diffusion model is needed to learn how far to trust a number.
#
# Files: [`evaluation/classifier.py`](../src/simple_diffusion/evaluation/classifier.py),
# [`evaluation/metrics.py`](../src/simple_diffusion/evaluation/metrics.py), and
# [the manual of the numbers](../docs/evaluation.md).

# %%
import os

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import simple_diffusion as sd
from simple_diffusion.evaluation.classifier import accuracy, infer, train_classifier
from simple_diffusion.evaluation.extractors import extractor_for
from simple_diffusion.evaluation.metrics import (
    Moments,
    frechet_by_count,
    frechet_distance,
    inception_score,
    precision_recall,
)

FAST = bool(os.environ.get("FAST"))  # seconds instead of minutes, for the tests
TRAINED_ON, EPOCHS, REAL, COUNT, MOST = (200, 1, 256, 64, 128) if FAST else (5000, 3, 5000, 512, 4096)
images = sd.load_images("digits")
test = sd.load_images("digits", split="test")[: 500 if FAST else None]

# %% [markdown]
# ## A classifier
#
# Four convolutions and a linear layer, trained on a part of the data to name the digit. `train_classifier` keeps a
# tenth of its images out, to take the weights of the best pass. The test set is looked at once, at the end.

# %%
net, report = train_classifier(images[:TRAINED_ON], epochs=EPOCHS)
features, logits = infer(net, test.pixels[:MOST])
print(f"{accuracy(net, test):.2%} of {len(test):,} test images named rightly; features {list(features.shape)}")

guess = logits.argmax(1)
wrong = (guess != test.labels[:MOST]).nonzero().flatten()[:16]
figure, axes = plt.subplots(1, len(wrong), figsize=(10, 1), layout="constrained", squeeze=False)
for axis, i in zip(axes[0], wrong.tolist(), strict=True):
    axis.imshow(test.pixels[i, 0], cmap="gray")
    axis.set(title=f"{test.labels[i]} as {guess[i]}", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Two scores, by their formulas
#
# The **inception score** asks whether the classifier is sure of each picture, and its answers are spread over all
# classes: $\exp E_x\, KL(p(y|x) \,\|\, p(y))$, from 1 to the number of classes. It never looks at a real image.
#
# The **Fréchet distance** (FID) compares the features, the numbers before the classifier's last layer, with those of
# real images. Both sets are taken for Gaussians, with means $\mu$ and covariances $S$:
#
# $$|\mu_a - \mu_b|^2 + \mathrm{tr}\left(S_a + S_b - 2 (S_a S_b)^{1/2}\right).$$
#
# **Precision** is the share of pictures that lie near a real image in the space of features, **recall** the share of
# real images that lie near a picture: the first one hears of bad pictures, the second of missing ones.
#
# ## The damage
#
# Real images that the classifier has not been trained on, as if a model had drawn them.

# %%
pixels = test.pixels[:MOST]
sets = {
    "as they are": pixels,
    "blurred": F.avg_pool2d(pixels.float(), 3, 1, 1).byte(),
    "a tenth dimmer": (pixels * 0.9).byte(),
    "3 to the right": pixels.roll(3, -1),
    "no 9": test.pixels[test.labels != 9],
    "no 7, 8 or 9": test.pixels[test.labels < 7],
    "50, repeated": pixels[torch.arange(COUNT) % 50],
}
figure, axes = plt.subplots(len(sets), 1, figsize=(8, 3.6), layout="constrained")
for axis, (name, some) in zip(axes, sets.items(), strict=True):
    axis.imshow(sd.make_grid(some[:16], 16))
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# Each set goes through two extractors: `digits-cnn-1`, which comes with the library and which all lessons use, and the
# classifier above, which saw fewer images. Read the tables by columns.

# %%
extractors = {"digits-cnn-1": extractor_for(images), "ours": lambda pixels: infer(net, pixels)}
fid = {}
for who, extractor in extractors.items():
    real, _ = extractor(images.pixels[:REAL])
    print(f"{who}, {COUNT} images against {REAL:,} training images\n{'':16}    FID    IS  precision  recall")
    for name, some in sets.items():
        features, logits = extractor(some[:COUNT])
        fid[who, name] = frechet_distance(Moments.of(real), Moments.of(features))
        sure, _ = inception_score(logits, splits=1)
        near = precision_recall(real[:COUNT], features)
        print(f"{name:16}{fid[who, name]:7.3f}{sure:6.2f}{near.precision:11.2f}{near.recall:8.2f}")

# %% [markdown]
# - **FID** finds a dimming that hardly anyone would see, and a shift that leaves every digit a digit, worse than a
#   digit that is missing. Fifty images, ten times each, are to it about as bad as three digits missing, and far better
#   than a blur: means and covariances need few images.
# - **The inception score** falls with the missing digits, and hardly for anything else. **Precision** sees neither
#   these nor repetition, because what is there is real. **Recall** is 0 for repeated images, and falls with each digit.
# - **The extractors** agree on the best and the worst row, and not on whether a dimming is worse than three missing
#   digits. So a FID belongs to its extractor, and is compared with no other one's.
#
# ## FID falls with the count
#
# Of two equally good models the one that drew more images has the lower FID, because a covariance of few images is too
# thin, and the distance counts that. Once there are more images than features (192), the excess falls about as $1/n$.
# So a FID is named with its count and compared at one count only, and it has a *floor*: what real images get.
# `frechet_by_count` draws the line in $1/n$ on to infinitely many images (Chong & Forsyth 2020).

# %%
extractor = extractors["digits-cnn-1"]
real, _ = extractor(images.pixels[:MOST])
counts = [n for n in (64, 128, 256, 512, 1024, 2048, 4096) if n <= MOST]
plt.figure(figsize=(6, 3.4), layout="constrained")
for name in ("a tenth dimmer", "as they are"):
    features, _ = extractor(sets[name])
    by_count = [frechet_distance(Moments.of(real), Moments.of(features[:n])) for n in counts]
    plt.loglog(counts, by_count, "o-", label=f"real images, {name}")
    print(f"{name}: {by_count[-1]:.3f} at n={MOST}, {frechet_by_count(real, features).limit:.3f} extrapolated")
plt.xticks(counts, counts)
plt.yticks([0.02, 0.05, 0.1, 0.2, 0.5], [0.02, 0.05, 0.1, 0.2, 0.5])
plt.minorticks_off()
plt.gca().set(xlabel="images", ylabel="FID [digits-cnn-1]")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## The number that moved

# %%
first, *others = (f"{fid['digits-cnn-1', name]:.2f} {name}" for name in sets)
print(f"FID[digits-cnn-1, n={COUNT} vs {REAL} of train]: real images {first}; {', '.join(others)}")

# %% [markdown]
# **What is new since lesson 10**, in code: a classifier, and its features in the place of pixels.
#
# ```python
# net, report = train_classifier(images[:5000], epochs=3)
# features, logits = infer(net, pixels)
# frechet_distance(Moments.of(real), Moments.of(features))
# ```
#
# **Exercise.** Write `fid(real, fake)` for features of shape [N, F], and let `simple-diffusion check 11 my_solution.py`
# compare it.
