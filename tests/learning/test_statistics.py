"""Running statistics measured anew: the plain mean over one pass, for the modules named and for nothing else."""

import pytest
import torch
from torch import nn

from pppml_core.learning.statistics import measure_statistics, with_statistics
from pppml_core.testing.local_data import FixedData


def batches(data):
    seen = []
    data.train(nn.Linear(1, 1), lambda _, batch: seen.append(batch[0]) or 0.0, epochs=1, purpose="adapt-statistics")
    return seen


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, lambda c: nn.InstanceNorm2d(c, track_running_stats=True)], ids=["batch", "instance"])
def test_the_plain_mean_over_the_batches_of_one_pass(kind):
    other = nn.BatchNorm2d(1)
    network = nn.Sequential(other, kind(1)).double()
    own = network[1]
    own.running_mean.fill_(5.0)
    own.momentum = 0.3
    weights = {n: p.clone() for n, p in network.named_parameters()}
    measure_statistics(network, [own], FixedData(dtype=torch.float64))
    images = [x / (1 + other.eps) ** 0.5 for x in batches(FixedData(dtype=torch.float64))]
    assert len(images) == 4
    torch.testing.assert_close(own.running_mean, torch.stack([x.mean() for x in images]).mean().reshape(1))
    dims = (0, 1, 2, 3) if isinstance(own, nn.BatchNorm2d) else (1, 2, 3)
    variances = [x.var(dims, unbiased=True).mean() for x in images]
    torch.testing.assert_close(own.running_var, torch.stack(variances).mean().reshape(1))
    assert own.momentum == 0.3
    assert (float(other.running_mean), float(other.running_var), int(other.num_batches_tracked)) == (0.0, 1.0, 0)
    assert all(torch.equal(p, weights[n]) for n, p in network.named_parameters())


def test_a_last_batch_of_one_is_passed_over():
    class Uneven(FixedData):
        def train(self, model, rule, **options):
            model.train()
            for size in (3, 1):
                rule(model, (torch.full((size, 2), float(size)) + torch.arange(size)[:, None], torch.zeros(size)))
            return {}

    network = nn.Sequential(nn.BatchNorm1d(2))
    measure_statistics(network, with_statistics(network), Uneven())
    assert network[0].running_mean.tolist() == [4.0, 4.0]


def test_modules_without_statistics_are_none_of_its_business():
    network = nn.Sequential(nn.GroupNorm(1, 1), nn.InstanceNorm2d(1), nn.BatchNorm2d(1, track_running_stats=False))
    assert with_statistics(network) == []
