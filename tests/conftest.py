"""One thread per test process: small tensors gain nothing from more, and on a busy machine they wait for each other."""

import torch

torch.set_num_threads(1)
