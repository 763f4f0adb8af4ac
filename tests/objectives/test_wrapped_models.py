"""Objectives on models inside of DistributedDataParallel and torch.compile: the same numbers, and shared gradients."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastvae.likelihoods import Gaussian
from fastvae.monitors import kl_per_latent
from fastvae.nn import VAE, MLPDecoder, MLPEncoder
from fastvae.objectives import ELBO, IWAE, log_marginal, naive_log_marginal

OBJECTIVES = {
    "ELBO": ELBO(beta=0.5, free_bits=0.01, per_coordinate=True),
    "IWAE": IWAE(3),
    "IWAE, doubly reparameterised": IWAE(3, gradient="dreg"),
}


def model_and_data():
    torch.manual_seed(0)
    # A learned scale: a parameter that is used outside of the model's forward.
    return VAE(MLPEncoder(6, 8, 2), MLPDecoder(2, 8, 6), Gaussian(0.5, learned=True)), torch.rand(4, 6)


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


@pytest.fixture(scope="module")
def one_process():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Holder(nn.Module):
    """A wrapper that counts how often it is called."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *arguments, **keywords):
        self.calls += 1
        return self.module(*arguments, **keywords)


@pytest.mark.parametrize("settings", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
def test_distributed_data_parallel_gives_the_models_own_numbers(one_process, objective, settings):
    model, x = model_and_data()
    expected = objective(model, x, seed=1)
    expected_gradients = gradients(expected.loss, model)
    wrapped = DistributedDataParallel(model, **settings)
    reduced = []
    wrapped.register_comm_hook(None, lambda state, bucket: reduced.append(1) or _as_it_is(bucket))
    for _ in range(2):
        came = objective(wrapped, x, seed=1)
        torch.testing.assert_close(came.loss, expected.loss)
        model.zero_grad()
        came.loss.backward()
    assert len(reduced) == 2
    torch.testing.assert_close(tuple(parameter.grad for parameter in model.parameters()), expected_gradients)
    assert "forward" not in vars(model)


def _as_it_is(bucket):
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def test_a_wrapper_is_called_once_and_the_model_is_left_as_it_was(objective):
    model, x = model_and_data()
    inner = Holder(model)
    outer = Holder(inner)
    torch.testing.assert_close(objective(outer, x, seed=1), objective(model, x, seed=1))
    assert outer.calls == inner.calls == 1
    torch.testing.assert_close(outer(x, seed=1), model(x, seed=1))
    with pytest.raises(TypeError, match="x is a str"):
        objective(outer, "x")
    assert "forward" not in vars(model)


@pytest.mark.parametrize(("name", "number"), [("ELBO", 1), ("IWAE, doubly reparameterised", 0)])
def test_what_torch_compile_has_wrapped_runs_compiled(name, number):
    objective = OBJECTIVES[name]
    model, x = model_and_data()
    expected = objective(model, x, seed=1)
    expected_gradients = gradients(expected.loss, model)
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    compiled = torch.compile(model, backend=backend)
    for wrapped in (compiled, Holder(compiled), torch.compile(Holder(model), backend=backend)):
        graphs.clear()
        torch.compiler.reset()  # what was compiled for the one before would do for this one
        for _ in range(2):
            came = objective(wrapped, x, seed=1)
            torch.testing.assert_close(came.loss, expected.loss)
            torch.testing.assert_close(gradients(came.loss, model), expected_gradients)
        assert len(graphs) == number


def test_the_method_of_a_compiled_model_has_no_graph_break():
    model, x = model_and_data()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for one in (ELBO(beta=0.5), IWAE(3)):
        torch.testing.assert_close(one(compiled, x, seed=1).loss, one(model, x, seed=1).loss)


def test_estimates_without_gradients_are_of_the_model_inside():
    model, x = model_and_data()
    wrapped = Holder(torch.compile(model, backend="eager"))
    for estimate in (log_marginal, naive_log_marginal):
        torch.testing.assert_close(estimate(wrapped, x, 5, seed=1), estimate(model, x, 5, seed=1))
    torch.testing.assert_close(kl_per_latent(wrapped, [x], seed=1), kl_per_latent(model, [x], seed=1))
    assert wrapped.calls == 0


def test_data_parallel_and_modules_without_the_method_are_refused():
    model, x = model_and_data()
    with pytest.raises(TypeError, match="model is a DataParallel, expected a DistributedDataParallel"):
        ELBO()(nn.DataParallel(model), x)
    with pytest.raises(TypeError, match="model is a Linear, expected one with the method terms"):
        ELBO()(Holder(nn.Linear(2, 3)), x)


PROCESS = """
import sys, torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from fastvae.objectives import ELBO, IWAE
from tests.objectives.test_wrapped_models import model_and_data

rank, file = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
model, x = model_and_data()
wrapped = DistributedDataParallel(model)
rows = slice(2 * rank, 2 * rank + 2)
for objective in (ELBO(), IWAE(3, gradient="dreg")):
    model.zero_grad()
    objective(wrapped, x[rows], seed=1, row_offset=rows.start).loss.backward()
    expected = objective(model, x, seed=1).loss
    expected = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(tuple(parameter.grad for parameter in model.parameters()), expected)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
