# %% [markdown]
# # 11 · Evaluation: inception score, FID, precision and recall
#
# Each lesson so far ended with a FID. This lesson explains it. A classifier computes *features* of images, and the
# scores compare the features of samples with those of real images. You train a classifier (this replaces notebooks that
# train one on digits or Fashion-MNIST), compute four scores, and apply known damage to real images. So you learn what
# each score detects and what it misses, without a diffusion model.
#
# Files: [`evaluation/classifier.py`](../src/simple_diffusion/evaluation/classifier.py),
# [`evaluation/metrics.py`](../src/simple_diffusion/evaluation/metrics.py), [all scores](../docs/evaluation.md).

# %%
import os

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import simple_diffusion as sd
from simple_diffusion.evaluation import metrics
from simple_diffusion.evaluation.classifier import accuracy, infer, train_classifier
from simple_diffusion.evaluation.extractors import extractor_for
from simple_diffusion.evaluation.metrics import Moments, frechet_distance

FAST = bool(os.environ.get("FAST"))  # the tests set it: seconds instead of minutes
TRAINED_ON, EPOCHS, REAL, COUNT, MOST = (200, 1, 256, 64, 128) if FAST else (5000, 3, 5000, 512, 4096)
images = sd.load_images("digits")
test = sd.load_images("digits", split="test")[: 500 if FAST else None]

# %% [markdown]
# ## A classifier
#
# It has four convolutions and a linear layer. `train_classifier` holds out a tenth of its images and keeps the weights
# of the best epoch.

# %%
net, report = train_classifier(images[:TRAINED_ON], epochs=EPOCHS)
features, logits = infer(net, test.pixels[:MOST])
print(f"test accuracy {accuracy(net, test):.2%} on {len(test):,} images; shape of the features {list(features.shape)}")

predicted = logits.argmax(1)
wrong = (predicted != test.labels[:MOST]).nonzero().flatten()[:16]
figure, axes = plt.subplots(1, len(wrong), figsize=(10, 1), layout="constrained", squeeze=False)
for axis, i in zip(axes[0], wrong.tolist(), strict=True):
    axis.imshow(test.pixels[i, 0], cmap="gray")
    axis.set(title=f"{test.labels[i]} as {predicted[i]}", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Four scores
#
# The **inception score** (IS; Salimans et al. 2016) is $\exp E_x\, KL(p(y|x) \,\|\, p(y))$, from 1 to the number of
# classes. It is high if the classifier is confident for each image and the classes are balanced. It uses no real image.
#
# The **Fréchet distance** (FID; Heusel et al. 2017) compares the features with those of real images. The features are
# the inputs of the last layer. Both sets are approximated by Gaussians with means $\mu$ and covariances $S$:
#
# $$|\mu_a - \mu_b|^2 + \mathrm{tr}\left(S_a + S_b - 2 (S_a S_b)^{1/2}\right).$$
#
# **Precision** is the share of samples whose features lie near a real image, and **recall** is the share of real images
# whose features lie near a sample (Kynkäänniemi et al. 2019). Precision measures quality, recall measures diversity.
#
# ## Damaged images
#
# The images come from the test set. You score them as if a model had generated them.

# %%
pixels = test.pixels[:MOST]
sets = {
    "real": pixels,
    "blurred": F.avg_pool2d(pixels.float(), 3, 1, 1).byte(),
    "10 % darker": (pixels * 0.9).byte(),
    "shifted by 3": pixels.roll(3, -1),
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
# Two feature extractors score each set: `digits-cnn-1` of the library, which all lessons use, and your classifier.

# %%
extractors = {"digits-cnn-1": extractor_for(images), "ours": lambda pixels: infer(net, pixels)}
fid, table = {}, []
for extractor_name, extractor in extractors.items():
    real, _ = extractor(images.pixels[:REAL])
    table.append(f"{extractor_name}, {COUNT} images against {REAL:,} training images")
    table.append(f"{'':16}    FID    IS  precision  recall")
    for name, some in sets.items():
        features, logits = extractor(some[:COUNT])
        fid[extractor_name, name] = frechet_distance(Moments.of(real), Moments.of(features))
        score, _ = metrics.inception_score(logits, splits=1)
        near = metrics.precision_recall(real[:COUNT], features)
        table.append(f"{name:16}{fid[extractor_name, name]:7.3f}{score:6.2f}{near.precision:11.2f}{near.recall:8.2f}")
print("\n".join(table))

# %% [markdown]
# - **FID** reacts more to a 10 % darker image, hardly visible, and to a shift, which keeps every digit, than to a
#   missing class. With `digits-cnn-1`, fifty images, repeated about ten times each, score like three missing classes.
# - **The inception score** falls with the missing classes. **Precision** detects neither missing classes nor
#   repetition. **Recall** is 0 for repeated images, and falls with each missing class.
# - **The extractors** agree on the best and the worst set. They disagree whether 10 % darker images are worse than
#   three missing classes. So a FID is valid for one extractor only: never compare FIDs of two extractors.
#
# ## FID depends on the sample size
#
# FID is higher with fewer samples. Above 192 samples (the number of features) this bias is about proportional to $1/n$.
# So report the sample size with each FID, compare only at equal sizes, and give the *real-data baseline*, the FID of
# real images. `frechet_by_count` extrapolates to infinitely many samples (Chong & Forsyth 2020).

# %%
extractor = extractors["digits-cnn-1"]
real, _ = extractor(images.pixels[:MOST])
counts = [n for n in (64, 128, 256, 512, 1024, 2048, 4096) if n <= MOST]
plt.figure(figsize=(6, 3.4), layout="constrained")
for name in ("10 % darker", "real"):
    features, _ = extractor(sets[name])
    fids = [frechet_distance(Moments.of(real), Moments.of(features[:n])) for n in counts]
    plt.loglog(counts, fids, "o-", label=name)
    print(f"{name}: {fids[-1]:.3f} at n={MOST}, {metrics.frechet_by_count(real, features).limit:.3f} extrapolated")
plt.xticks(counts, counts)
plt.yticks([0.02, 0.05, 0.1, 0.2, 0.5], [0.02, 0.05, 0.1, 0.2, 0.5])
plt.minorticks_off()
plt.gca().set(xlabel="sample size", ylabel="FID [digits-cnn-1]")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Result

# %%
scores = ", ".join(f"{fid['digits-cnn-1', name]:.2f} {name}" for name in sets)
print(f"FID[digits-cnn-1, n={COUNT} vs {REAL} of train]: {scores}")

# %% [markdown]
# **New code since lesson 10:** a classifier, and a distance between features.
#
# ```python
# net, report = train_classifier(images[:5000], epochs=3)
# features, logits = infer(net, pixels)
# frechet_distance(Moments.of(real), Moments.of(features))
# ```
#
# **Exercise.** Write `fid(real, fake)` for features of shape [N, F]: `simple-diffusion check 11 my_solution.py`.
