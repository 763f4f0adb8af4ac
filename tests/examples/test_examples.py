"""The examples in their quick mode: each writes its picture, and what it is there to teach holds in its numbers.

What they share, and the digits demo, are tested in test_digits.py.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
import warnings

import pytest
import torch

for _module in ("mlxtend", "matplotlib", "tqdm"):
    pytest.importorskip(_module, reason="the extra of training is not installed")

from examples import collapse, conditional, estimators, plain_loop, ring  # noqa: E402

NAMES = ("ring", "estimators", "conditional", "collapse")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are small: more threads gain little alone, and wait for each other where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


def _run(example, output):
    """One run for all tests of a module: it leaves the random state as it was, and writes its picture."""
    state = torch.get_rng_state()
    came = example.run(output=output / "new", quick=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert came.picture.parent == output / "new"
    assert came.picture.read_bytes().startswith(b"\x89PNG")
    return came


@pytest.fixture(scope="module")
def bent(output):
    return _run(ring, output)


@pytest.fixture(scope="module")
def estimated(output):
    return _run(estimators, output)


@pytest.fixture(scope="module")
def written(output):
    return _run(conditional, output)


@pytest.fixture(scope="module")
def collapsed(output):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what collapses is told in the results, not to whoever runs the example
        return _run(collapse, output)


def test_the_prior_fills_the_plane_and_the_function_makes_it_a_ring(bent):
    before, after = bent.z.norm(dim=1), bent.x.norm(dim=1)
    assert before.min() < 0.2
    assert before.max() > 2.5
    assert after.min() >= 1.0
    assert after.max() < 1.5
    assert before.std() > 9.9 * after.std()
    torch.testing.assert_close(after, 1 + before / 10)


def test_the_ring_has_points_in_every_direction(bent):
    eighths = (torch.atan2(bent.x[:, 1], bent.x[:, 0]) / (torch.pi / 4)).floor().long() + 4
    assert eighths.bincount(minlength=8).min() > len(bent.x) / 16


def _mean_at_the_end(estimated, name) -> float:
    return estimated.nats[name][-1].mean().item()


def test_the_bounds_are_in_order_and_below_log_p(estimated):
    elbo, iwae = (_mean_at_the_end(estimated, name) for name in ("ELBO", "IWAE, 10 draws"))
    assert elbo < iwae - 1 < estimated.exact - 1


def test_importance_sampling_finds_log_p_where_naive_sampling_is_far_off(estimated):
    errors = {name: (estimated.nats[name][-1] - estimated.exact).abs() for name in ("naive", "importance")}
    assert errors["importance"].max() < 0.5
    assert errors["naive"].min() > 10


def test_naive_sampling_comes_nearer_with_every_tenfold_of_draws_but_slowly(estimated):
    medians = [nats.median().item() for nats in estimated.nats["naive"]]
    assert medians == sorted(medians)
    assert medians[-1] - medians[-2] > 5


def test_more_draws_spread_less_but_leave_the_elbo_where_it_is(estimated):
    one, most = (estimated.nats["ELBO"][place] for place in (0, -1))
    assert most.std() < one.std() / 10
    gap = estimated.exact - most.mean()
    assert 2 < gap < 5
    assert (one.mean() - most.mean()).abs() < 4 * one.std() / estimators.REPETITIONS**0.5


def test_with_one_draw_importance_sampling_is_the_elbo(estimated):
    torch.testing.assert_close(estimated.nats["importance"][0], estimated.nats["ELBO"][0])
    assert estimated.nats["IWAE, 10 draws"][0].isnan().all()
    torch.testing.assert_close(estimated.nats["importance"][1], estimated.nats["IWAE, 10 draws"][1])


def test_the_table_of_estimates_is_printed(capsys, tmp_path):
    came = estimators.run(output=tmp_path, seed=3, quick=True)
    printed = capsys.readouterr().out
    assert f"log p(x) = {came.exact:.2f} nats" in printed
    assert "nan" not in printed


@pytest.mark.slow
def test_labels_change_the_image_of_one_style_and_styles_that_of_one_label(written):
    for images in (written.samples, written.rewritten):
        assert images.shape == (conditional.STYLES, 10, 784)
        assert images.var(1).sum(-1).min() > 3  # over labels, with the same z
        assert images.var(0).sum(-1).min() > 1  # over styles, with the same label


@pytest.mark.slow
def test_images_are_of_the_label_that_was_asked_for_more_often_than_by_chance(written):
    assert written.agreement > 0.6


def test_agreement_with_labels_is_counted_as_it_says():
    images = torch.eye(10, 784)
    samples = images.expand(3, 10, 784).clone()
    assert conditional.label_agreement(samples, images, torch.arange(10)) == 1.0
    samples[0, 4], samples[2, 6] = images[5], images[7]
    assert conditional.label_agreement(samples, images, torch.arange(10)) == pytest.approx(28 / 30)


@pytest.mark.slow
def test_the_kl_falls_and_the_distortion_rises_as_beta_grows(collapsed):
    by_beta = [collapsed.trained[f"beta {beta:g}"] for beta in collapse.BETAS]
    rates, distortions = [came.rate for came in by_beta], [came.distortion for came in by_beta]
    assert all(more > 1.5 * less for more, less in itertools.pairwise(rates))
    assert distortions == sorted(distortions)
    for came in by_beta:
        assert came.kl.sum().item() == pytest.approx(came.rate, rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_the_largest_beta_collapses_latents_and_the_smallest_does_not(collapsed):
    least, most = (collapsed.trained[f"beta {collapse.BETAS[place]:g}"] for place in (0, -1))
    assert least.active == collapse.LATENT
    assert least.warning is None
    assert most.active < 0.8 * collapse.LATENT
    assert (most.kl < 0.01).sum() > collapse.LATENT / 2
    assert f"of {collapse.LATENT} latents is below 0.01 nats" in most.warning


@pytest.mark.slow
def test_warm_up_and_free_bits_keep_more_than_the_weight_alone(collapsed):
    weight = f"beta {collapse.REMEDY_BETA:g}"
    alone, warm, free = (collapsed.trained[name] for name in (weight, f"{weight}, warm-up", f"{weight}, free bits"))
    assert warm.rate > alone.rate
    assert free.rate > alone.rate
    assert (free.kl > collapse.FREE_BITS / 2).all()
    assert free.warning is None


@pytest.mark.parametrize("example", [conditional, collapse], ids=lambda example: example.__name__)
def test_an_example_that_trains_goes_through_in_two_epochs(example, monkeypatch, tmp_path):
    """What its training comes to is asked of whole runs, in the slow tests."""
    monkeypatch.setattr(example, "EPOCHS", 2)
    _run(example, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_has_the_three_arguments(name, monkeypatch, tmp_path):
    example = importlib.import_module(f"examples.{name}")
    given = {}
    monkeypatch.setattr(example, "run", lambda **options: given.update(options))
    example.main(["--quick", "--output", str(tmp_path), "--seed", "5"])
    assert given == {"quick": True, "output": tmp_path, "seed": 5}
    example.main([])
    assert (given["quick"], str(given["output"]), given["seed"]) == (False, "demo", 0)


@pytest.mark.parametrize("name", NAMES)
def test_without_its_extra_an_example_says_how_to_get_it(name, monkeypatch):
    for module in (f"examples.{name}", "examples.common"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(SystemExit, match="pip install"):
        importlib.import_module(f"examples.{name}")


def test_the_seed_determines_the_draws(tmp_path):
    one, same, other = (ring.run(output=tmp_path, seed=seed, quick=True).x for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_plain_loop_learns_and_saves_its_weights(tmp_path, capsys):
    short = plain_loop.main(["--rows=500", "--epochs=1", f"--output={tmp_path / 'short.pt'}"])
    longer = plain_loop.main(["--rows=500", "--epochs=12", f"--output={tmp_path / 'new' / 'longer.pt'}"])
    assert longer > short + 20
    weights = torch.load(tmp_path / "new/longer.pt", weights_only=True)
    assert "decoder.layers.0.weight" in weights
    shown = capsys.readouterr().out
    assert "epoch 12: held out, nats an image: elbo -" in shown
    assert f"{longer:.2f} nats" in shown


def test_the_plain_loop_needs_no_framework():
    source = inspect.getsource(plain_loop)
    assert "lightning" not in source
    assert "fastvae.training" not in source
