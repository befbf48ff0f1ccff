"""Training steps of this project beside those of PyTorch and Opacus, measured in one run.

Alternates processes: the benchmark `private_step`, then PyTorch, and again. On one thread it compares
the processor time of that thread, on several the time on the wall. Needs a Python with what
`requirements.txt` beside this file pins, and an otherwise idle machine:

    cargo bench -p tributary-agent --bench private_step --no-run
    python client-agent/benches/step_comparison.py target/release/deps/private_step-HASH --threads 1
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

MODELS = {
    "MLP 784-128-10, batch 500": "mlp-500",
    "MLP 784-128-10, batch 250": "mlp-250",
    "CNN 28x28-16-32-10, batch 64": "cnn",
    "sequence 64 x 128, 5 layers, batch 16": "sequence",
    "transformer block 64 x 128, batch 16": "transformer",
}
ROUNDS = 3
SECONDS = 1.2


def build(key):
    """The model, its inputs and its classes."""
    import torch
    from torch import nn

    class MeanOverTime(nn.Module):
        def forward(self, x):
            return x.mean(1)

    class Block(nn.Module):
        """A pre-norm transformer block of width 128 with a low-rank adapter on the values."""

        def __init__(self, width=128):
            super().__init__()
            self.embedding = nn.Embedding(500, width)
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.query, self.key = (nn.Linear(width, width, bias=False) for _ in range(2))
            self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(2))
            self.down, self.up = nn.Linear(width, 8, bias=False), nn.Linear(8, width, bias=False)
            self.wide, self.narrow = nn.Linear(width, 512), nn.Linear(512, width)
            self.classes = nn.Linear(width, 10)

        def forward(self, ids):
            x = self.embedding(ids)
            normal = self.first(x)
            scores = self.query(normal) @ self.key(normal).transpose(1, 2) * 128**-0.5
            value = self.value(normal) + self.up(self.down(normal))
            x = x + self.output(scores.softmax(2) @ value)
            x = x + self.narrow(self.wide(self.second(x)).relu())
            return self.classes(x.mean(1))

    torch.manual_seed(1)
    if key.startswith("mlp"):
        batch = int(key.split("-")[1])
        model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        inputs = torch.rand(batch, 784)
    elif key == "cnn":
        batch = 64
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(1568, 10),
        )
        inputs = torch.rand(batch, 1, 28, 28)
    else:
        batch = 16
        inputs = torch.randint(0, 500, (batch, 64))
        model = Block() if key == "transformer" else nn.Sequential(
            nn.Embedding(500, 128), nn.RMSNorm(128), nn.Linear(128, 512), nn.ReLU(),
            nn.Linear(512, 128), nn.ReLU(), MeanOverTime(), nn.Linear(128, 10),
        )
    return model, inputs, torch.arange(batch) % 10


def steps(key):
    """By name, one step of each kind on models of their own."""
    import torch
    from torch import nn
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    def plain(wrap=lambda model: model, private=lambda sgd, batch: sgd, loss_of=lambda m, o, c: c):
        model, inputs, classes = build(key)
        model = wrap(model)
        optimizer = private(torch.optim.SGD(model.parameters(), lr=1e-4), len(inputs))
        loss = loss_of(model, optimizer, nn.CrossEntropyLoss())

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss(model(inputs), classes).backward()
            optimizer.step()

        return step

    private = {"noise_multiplier": 1.0, "max_grad_norm": 1.0}

    def hooks():
        return plain(GradSampleModule, lambda sgd, batch: DPOptimizer(
            sgd, expected_batch_size=batch, **private))

    def ghost():
        return plain(
            lambda model: GradSampleModuleFastGradientClipping(
                model, max_grad_norm=1.0, use_ghost_clipping=True),
            lambda sgd, batch: DPOptimizerFastGradientClipping(
                sgd, expected_batch_size=batch, **private),
            DPLossFastGradientClipping,
        )

    return {"pytorch": plain, "opacus hooks": hooks, "opacus ghost": ghost}


def measure(key, threads):
    """The best milliseconds a step of each kind; nothing for what the library cannot do."""
    import torch

    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    best = {}
    for name, make in steps(key).items():
        try:
            step = make()
            step()
        except Exception as error:  # whatever a library says to a layer that it does not know
            print(f"{key}: {name}: {error}", file=sys.stderr)
            continue
        times, end = [], time.monotonic() + SECONDS
        while time.monotonic() < end or len(times) < 5:
            start = clock()
            for _ in range(4):
                step()
            times.append((clock() - start) / 4 * 1e3)
        best[name] = min(times)
    return best


def ours(binary, name, threads):
    """Milliseconds a plain and a private step, and the median of the ratios of pairs."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    words = name.replace(",", " ").split()
    text = subprocess.run([binary, *words], env=environment, text=True, check=True,
                          capture_output=True).stdout
    found = re.search(r"plain\s+([\d.]+) .*private\s+([\d.]+) ms\s+ratio ([\d.]+)", text)
    return [float(number) for number in found.groups()]


def theirs(key, threads):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--worker", key, "--threads", str(threads)]
    return json.loads(subprocess.run(command, env=environment, text=True, check=True,
                                     stdout=subprocess.PIPE).stdout)


def compare(binary, threads, keys):
    print(f"{threads} thread(s); milliseconds a step, best of all")
    print("| step | plain | private | private / plain | PyTorch | Opacus hooks | Opacus ghost |"
          " plain / PyTorch | private / Opacus |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, key in MODELS.items():
        if keys and key not in keys:
            continue
        own, other = [], []
        for _ in range(ROUNDS):
            own.append(ours(binary, name, threads))
            other.append(theirs(key, threads))
        plain, private = (min(run[at] for run in own) for at in (0, 1))
        ratio = statistics.median(run[2] for run in own)
        best = {kind: min(run[kind] for run in other if kind in run)
                for kind in {kind for run in other for kind in run}}
        cell = lambda kind: f"{best[kind]:.3f}" if kind in best else "–"
        opacus = min((best[kind] for kind in best if "opacus" in kind), default=float("nan"))
        print(f"| {name} | {plain:.3f} | {private:.3f} | {ratio:.2f} | {cell('pytorch')} | "
              f"{cell('opacus hooks')} | {cell('opacus ghost')} | "
              f"{plain / best['pytorch']:.2f} | {private / opacus:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", nargs="?", help="the built benchmark `private_step`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="*", default=[], choices=sorted(MODELS.values()))
    parser.add_argument("--worker", choices=sorted(MODELS.values()), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments.threads)))
    elif arguments.binary:
        compare(arguments.binary, arguments.threads, arguments.models)
    else:
        parser.error("name the built benchmark `private_step`")


if __name__ == "__main__":
    main()
