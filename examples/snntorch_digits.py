"""An snnTorch network learns handwritten digits; one line runs it layer by layer, fused."""

from time import perf_counter

import snntorch as snn
import torch
from torch import Tensor, nn

import snnkern

T = 8


class Net(nn.Module):
    """A network with the usual loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.lif1 = snn.Leaky(beta=0.9)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.lif2 = snn.Leaky(beta=0.9)
        self.fc = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at every step, ``[T, N, 10]``."""
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        logits = []
        for _ in range(T):
            spikes, mem1 = self.lif1(self.conv1(x), mem1)
            spikes, mem2 = self.lif2(self.conv2(spikes), mem2)
            logits.append(self.fc(nn.functional.max_pool2d(spikes, 2).flatten(1)))
        return torch.stack(logits)


torch.manual_seed(0)
data = snnkern.data.digits()
model: nn.Module = Net()
model = snnkern.interop.layerwise(model, T)  # the line that is new

optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
for epoch in range(3):
    start = perf_counter()
    for x, y in snnkern.data.loader(data.train, shuffle=True):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x).mean(0), y).backward()
        optimiser.step()
    seconds = perf_counter() - start
    with torch.no_grad():
        x, y = data.test.tensors
        right = model(x).mean(0).argmax(1) == y
    print(f"epoch {epoch}: {seconds:.2f} s, {right.float().mean():.1%} right")
