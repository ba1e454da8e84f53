"""Score a model as the predecessor's scores were computed: with its classifier, sample counts and image size.

    python benchmarks/published.py RUN [--guidance 1.5 1] [--seeds 3]

The predecessor's classifier is trained once per seed with its published settings: Fashion-MNIST resized to 32 x 32,
Adam at 3e-4, batches of 128, three epochs. Then 5,120 samples are compared with the 60,000 training images: Frechet
distance of the 192 features, Inception score of the logits in one split. The predecessor published FID 2.642 and
IS 5.959. The rows of test images are the real-data baseline.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from simple_diffusion.data.images import Images
from simple_diffusion.data.labels import labels_like
from simple_diffusion.data.sources import held_out, load_images
from simple_diffusion.evaluation.classifier import accuracy, infer, sized
from simple_diffusion.evaluation.metrics import Moments, frechet_distance, inception_score
from simple_diffusion.model.generate import generate
from simple_diffusion.model.model_file import read
from simple_diffusion.networks.classifier import Classifier

N = 5120


def classifier(images: Images, seed: int, epochs: int = 3, batch: int = 128) -> Classifier:
    """The predecessor's network, trained with its settings."""
    torch.manual_seed(seed)
    net = Classifier()  # the same 345,194 weights
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-4)
    assert images.labels is not None
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch):
            loss = F.cross_entropy(net(sized(images.pixels[chosen], 32))[1], images.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5, 1.0])
    parser.add_argument("--seeds", type=int, default=3, help="number of classifiers")
    args = parser.parse_args()
    train, test = load_images("fashion-mnist"), held_out("fashion-mnist")
    assert test is not None
    model = read(args.run)
    sets: dict[str, Tensor] = {"10,000 test images": test.pixels, f"{N:,} of them": test.pixels[:N]}
    for guidance in args.guidance:
        of_scale = model.changed(guidance=guidance)
        sets[f"guidance {guidance:g}"] = generate(of_scale, N, labels_like(train, N, 0), seed=0)
    print(f"{args.run}, {N:,} samples, {torch.get_num_threads()} threads\n")
    print("| classifier and its accuracy | images | FID | IS |\n|---|---|---|---|")
    for seed in range(args.seeds):
        net = classifier(train, seed)
        real = Moments.of(infer(net, train.pixels)[0])
        for name, pixels in sets.items():
            features, logits = infer(net, pixels)
            fid, score = frechet_distance(real, Moments.of(features)), inception_score(logits, splits=1)[0]
            print(f"| {seed}, {accuracy(net, test):.2%} | {name} | {fid:.4f} | {score:.3f} |", flush=True)


if __name__ == "__main__":
    main()
