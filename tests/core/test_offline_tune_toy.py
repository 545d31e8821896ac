"""The toy problem: its hand-written gradients against PyTorch's, and ConicGrad reaching the global minimum."""

import numpy as np
import pytest
import torch

from glass_core.offline.tune import toy
from glass_core.offline.tune.cone import ConicCombination, Floats

NEAR_THE_MINIMUM = 0.95 * toy.GLOBAL_MINIMUM


def torch_losses(x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
    """The formulas as the paper has them, shape (2, n)."""
    tanh = torch.tanh(-x2)
    f1 = (0.5 * (-x1 - 7) - tanh).abs().clamp(min=5e-6).log() + 6
    f2 = (0.5 * (-x1 + 3) + tanh + 2).abs().clamp(min=5e-6).log() + 6
    c1 = torch.tanh(0.5 * x2).clamp(min=0)
    c2 = torch.tanh(-0.5 * x2).clamp(min=0)
    q1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    q2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    return torch.stack([0.1 * (f1 * c1 + q1 * c2), f2 * c1 + q2 * c2])


def check_against_torch(points: Floats) -> None:
    variable = torch.from_numpy(points).requires_grad_()
    expected = torch_losses(variable[:, 0], variable[:, 1])
    gradients = [torch.autograd.grad(loss.sum(), variable, retain_graph=True)[0] for loss in expected]
    losses, slopes = toy.losses_and_gradients(points)
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(slopes, torch.stack(gradients).numpy(), rtol=1e-9, atol=1e-12)


def test_gradients_equal_those_of_torch() -> None:
    check_against_torch(np.random.default_rng(5).uniform(-10, 10, size=(500, 2)))
    check_against_torch(toy.STARTS)


def test_gradient_in_the_clamp_is_zero() -> None:
    check_against_torch(np.array([(-7 + 2 * np.tanh(2.0), 2.0), (7 - 2 * np.tanh(3.0), 3.0)]))


def test_a_start_on_the_border_has_gradients() -> None:
    _, gradients = toy.losses_and_gradients(np.zeros((1, 2)))
    assert (gradients[:, 0, 1] != 0).all()


def test_the_minimum_is_where_it_is_said_to_be() -> None:
    x1, x2 = np.meshgrid(np.linspace(-10, 10, 401), np.linspace(-10, 10, 401))
    points = np.stack([x1.ravel(), x2.ravel()], axis=1)
    mean = toy.losses_and_gradients(points)[0].mean(axis=0)
    assert mean.min() == pytest.approx(toy.GLOBAL_MINIMUM, abs=1e-3)
    np.testing.assert_allclose(points[mean.argmin()], (-5.7, -8.4), atol=0.05)


def test_descent_is_that_of_torch_adam() -> None:
    point = torch.from_numpy(toy.STARTS.copy()).requires_grad_()
    adam = torch.optim.Adam([point], lr=toy.LEARNING_RATE)
    for _ in range(200):
        adam.zero_grad()
        torch_losses(point[:, 0], point[:, 1]).mean(dim=0).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
    descent = toy.descend(lambda gram: np.full(gram.shape[:-1], 0.5), num_steps=200)
    np.testing.assert_allclose(descent.points[-1], point.detach().numpy(), rtol=1e-9)
    assert len(descent.losses) == 201


def test_steps_to_a_level() -> None:
    losses = np.array([(3.0, 5.0), (1.0, 4.0), (2.0, 3.0)])
    descent = toy.Descent(np.zeros((3, 2, 2)), losses)
    assert descent.steps_to(2.0).tolist() == [1, -1]
    assert descent.steps_to(5.0).tolist() == [0, 0]


@pytest.mark.slow
def test_conic_grad_reaches_the_global_minimum_from_every_start() -> None:
    descent = toy.descend(ConicCombination(0.5, 1e-3).coefficients, stop_at=NEAR_THE_MINIMUM)
    steps = descent.steps_to(NEAR_THE_MINIMUM)
    assert (steps > 0).all()
    assert len(descent.points) == steps.max() + 1 < toy.NUM_STEPS
