"""What docs/deployment.md says can be traced and exported gives the model's own results after saving and loading."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import fastvae
from fastvae.likelihoods import Bernoulli, NegativeBinomial
from fastvae.nn import VAE, ConditionalVAE, HierarchicalVAE, MLPDecoder, MLPEncoder
from fastvae.priors import LearnedGaussian, VampPrior

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Encode(nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, x):
        return self.vae.encode(x)


class Decode(Encode):
    def forward(self, z):
        return self.vae.decode(z)


class Reconstruct(Encode):
    def forward(self, x):
        return self.vae.reconstruct(x)


class OfClass(Encode):
    def forward(self, x, classes):
        return self.vae(x, condition=classes)


class Draw(nn.Module):
    def forward(self, mu, logvar):
        z, kl = fastvae.sample_and_kl(mu, logvar)
        return z, kl, fastvae.DiagonalGaussian(mu, logvar).rsample((2,), seed=3)


def vae(**keywords):
    return VAE(MLPEncoder(6, 8, 3), MLPDecoder(3, 8, 6), Bernoulli(), **keywords).eval()


@pytest.fixture
def model():
    return vae()


def flat(result):
    return [result] if isinstance(result, torch.Tensor) else [tensor for part in result for tensor in flat(part)]


def assert_same(one, other, *arguments):
    """The same results from the same state of torch's generator."""
    results = []
    for function in (one, other):
        torch.manual_seed(7)
        results.append(flat(function(*arguments)))
    torch.testing.assert_close(*results)


# torch.jit.trace


def traced(module, *examples):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, examples, check_trace=False), file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("part", [Encode, Decode, Reconstruct, lambda vae: vae])
def test_a_traced_part_of_a_model_takes_other_batches(model, part):
    module, inputs = part(model), torch.rand(9, 3 if part is Decode else 6)
    loaded = traced(module, inputs[:4])
    assert_same(loaded, module, inputs)


def test_a_traced_draw_draws_anew_and_torchs_seed_rules_it():
    mu, logvar = torch.randn(2, 4, 5)
    loaded = traced(Draw(), mu, logvar)
    assert not torch.equal(loaded(mu, logvar)[0], loaded(mu, logvar)[0])
    assert_same(loaded, Draw(), torch.zeros(7, 5), torch.ones(7, 5))


def test_a_traced_draw_has_gradients():
    mu, logvar = (one.requires_grad_() for one in torch.randn(2, 4, 5))
    results = []
    for function in (torch.jit.trace(Draw(), (mu, logvar), check_trace=False), Draw()):
        torch.manual_seed(7)
        results.append(torch.autograd.grad(sum(one.sin().sum() for one in function(mu, logvar)), (mu, logvar)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_under_patch_a_trace_is_of_torchs_own_operators(requires_grad):
    mu = torch.randn(4, 5, requires_grad=requires_grad)

    def draw(mu):
        posterior = Normal(2 * mu, mu.exp())
        return posterior.rsample(), torch.distributions.kl_divergence(posterior, Normal(0.0 * mu, torch.ones_like(mu)))

    with fastvae.patch("torch"):
        graph = torch.jit.trace(draw, (mu,), check_trace=False)
        came = graph(mu)
        assert not [node.kind() for node in graph.graph.nodes() if "fastvae" in node.kind() or "Python" in node.kind()]
        torch.manual_seed(7)
    assert_same(graph, draw, mu)
    assert came[0].shape == (4, 5)


@pytest.mark.parametrize("part", [Encode, Decode, lambda vae: vae, lambda vae: Draw()])
def test_torch_jit_script_refuses_all_of_it(model, part):
    with pytest.raises((ValueError, RuntimeError, torch.jit.frontend.FrontendError)):
        torch.jit.script(part(model))


# torch.export


def exported(module, *examples):
    program = torch.export.export(module, examples, dynamic_shapes=[{0: torch.export.Dim("batch")}] * len(examples))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


MODELS = {
    "standard prior": vae,
    "learned prior": lambda: vae(prior=LearnedGaussian(3)),
    "mixture of posteriors": lambda: vae(prior=VampPrior(MLPEncoder(6, 8, 3), 6, components=2)),
    "levels": lambda: HierarchicalVAE.of_mlps((6,), 8, (3, 2), Bernoulli()).eval(),
    "counts": lambda: VAE(MLPEncoder(6, 8, 3), MLPDecoder(3, 8, 6), NegativeBinomial(6)).eval(),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model_is_exported_saved_and_loaded(name):
    model, x = MODELS[name](), torch.rand(9, 6)
    loaded = exported(model, x[:4])
    assert_same(loaded, model, x)
    assert type(loaded(x)) is type(model(x))


def test_a_conditional_model_is_exported():
    encoder, decoder = MLPEncoder(6, 8, 3, condition_dim=4), MLPDecoder(3, 8, 6, condition_dim=4)
    model = OfClass(ConditionalVAE(encoder, decoder, Bernoulli(), num_classes=4, prior=MLPEncoder(4, [], 3)).eval())
    x, classes = torch.rand(9, 6), torch.arange(9) % 4
    assert_same(exported(model, x[:5], classes[:5]), model, x, classes)


@pytest.mark.parametrize("part", [Encode, Decode, Reconstruct])
def test_an_exported_part_has_torchs_own_operators_alone(model, part):
    module, inputs = part(model), torch.rand(9, 3 if part is Decode else 6)
    loaded = exported(module, inputs[:4])
    assert_same(loaded, module, inputs)
    assert not [node for node in loaded.graph.nodes if "fastvae" in str(node.target)]


# ONNX


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("part", [Encode, Decode, Reconstruct])
def test_onnx_of_what_draws_nothing(model, part):
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install onnx onnxscript onnxruntime")
    import onnxruntime

    module, inputs = part(model).eval(), torch.rand(9, 3 if part is Decode else 6)
    shapes = [{0: torch.export.Dim("batch", min=2)}]
    program = torch.onnx.export(module, (inputs[:4],), dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    came = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    torch.testing.assert_close([torch.from_numpy(one) for one in came], flat(module(inputs)))
