"""Each method on quadratics in float64 goes to its own optimum, known in closed form, and not to another method's."""

import numpy as np
import pytest


def close(one, other, atol=1e-9):
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("mu", [0.3, 2.0])
def test_fedprox_with_exact_local_solutions(make, quadratics, mu):
    # argmin F_k + mu/2 |w - w^t|^2 = (a c + mu w^t) / (a + mu); w is fixed where the mean of these is w.
    share = quadratics.a / (quadratics.a + mu)
    expected = (share * quadratics.c).sum(0) / share.sum(0)
    weights, _ = quadratics.federate(make("fedprox", mu=mu), rounds=60, steps=100, lr=0.25)
    close(weights, expected)
    fedavg, _ = quadratics.federate(make("fedprox", mu=0.0), rounds=3, steps=250, lr=0.25)
    close(fedavg, quadratics.c.mean(0))  # exact local solutions without the pull: the mean of the sites' own optima
    assert np.abs(expected - fedavg).min() > 0.05


def test_one_step_of_fedprox_is_fedavgs_whatever_the_pull(make, quadratics):
    one, _ = quadratics.federate(make("fedprox", mu=5.0), rounds=1)
    close(one, 0.1 * (quadratics.a * quadratics.c).mean(0), 1e-15)
    two, _ = quadratics.federate(make("fedprox", mu=5.0), rounds=1, steps=2)
    first = 0.1 * quadratics.a * quadratics.c
    close(two, (first - 0.1 * (quadratics.a * (first - quadratics.c) + 5.0 * first)).mean(0), 1e-15)


def shared_optimum(quadratics, steps, lr=0.1):
    """Where FedAvg stands still with that many local gradient steps: ``sum s c / sum s``, ``s = 1 - (1 - lr a)^steps``."""
    s = 1 - (1 - lr * quadratics.a) ** steps
    return (s * quadratics.c).sum(0) / s.sum(0)


@pytest.mark.parametrize("strength", [0.2, 3.0])
def test_ditto_is_pulled_to_what_was_received(make, quadratics, strength):
    # Several local steps, so that the weights received and those the site has just trained are different points.
    rule = make("ditto", strength=strength, personal_steps=7)
    weights, states = quadratics.federate(rule, rounds=250, steps=5)
    w = shared_optimum(quadratics, 5)
    close(weights, w)
    for k, state in enumerate(states):
        expected = (quadratics.a[k] * quadratics.c[k] + strength * w) / (quadratics.a[k] + strength)
        close(state["model"]["w"].numpy(), expected)
        close(quadratics.adapted(rule, weights, k, state), expected)
        trained = w + (1 - 0.9**5) * (quadratics.c[k] - w)
        assert np.abs(expected - (quadratics.a[k] * quadratics.c[k] + strength * trained) / (quadratics.a[k] + strength)).max() > 0.01


def test_ditto_with_a_large_strength_keeps_to_the_shared_model(make, quadratics):
    weights, states = quadratics.federate(make("ditto", strength=1e4), rounds=300, steps=1, lr=1e-4)
    for k, state in enumerate(states):
        assert np.abs(state["model"]["w"].numpy() - weights).max() < 1e-3 * np.abs(quadratics.c[k] - weights).max()


@pytest.mark.parametrize("alpha", [0.4, 0.9])
def test_apfls_mixture_fits_the_site_and_its_shared_part_is_fedavgs(make, quadratics, alpha):
    rule = make("apfl", alpha=alpha, alpha_lr=0.0)
    weights, states = quadratics.federate(rule, rounds=1100, steps=1, lr=0.3)
    w = shared_optimum(quadratics, 1, 0.3)
    close(weights, w)
    for k, state in enumerate(states):
        # v is free, so v_bar = c_k: v = (c_k - (1 - alpha) w) / alpha.
        close(state["v"]["w"].numpy(), (quadratics.c[k] - (1 - alpha) * w) / alpha, 1e-8)
        close(quadratics.adapted(rule, weights, k, state), quadratics.c[k], 1e-8)
        assert state["alpha"] == alpha


def test_apfl_step_by_step(make, quadratics, point):
    """Algorithm 1 with its step of alpha written out for one site: three rounds of four steps from moving shared weights."""
    rule, lr, rate = make("apfl", alpha=0.6, alpha_lr=0.02), 0.1, 0.02
    c, a = quadratics.c[1], quadratics.a[1]
    state = {}
    v, alpha, seen = np.zeros(2), 0.6, []
    for received in (np.zeros(2), np.array([0.5, -1.0]), np.array([2.0, 2.0])):
        model = point(received)
        update, state = rule.local_update(model, quadratics.site(1, steps=4), quadratics.gradients(), state)
        w = received.copy()
        for _ in range(4):
            g = a * (alpha * v + (1 - alpha) * w - c)
            slope = float((v - w) @ g)
            v, w, alpha = v - lr * alpha * g, w - lr * a * (w - c), min(1.0, max(0.0, alpha - rate * slope))
        close(update.delta["w"].numpy(), w - received, 1e-14)
        close(state["v"]["w"].numpy(), v, 1e-14)
        assert state["alpha"] == pytest.approx(alpha, abs=1e-14)
        seen.append(alpha)
    assert len({0.6, *seen}) == 4, "alpha moves in every round"
    close(quadratics.adapted(rule, received, 1, state), alpha * v + (1 - alpha) * received, 1e-14)


@pytest.mark.parametrize(("alpha_lr", "end"), [(50.0, {0.0, 1.0}), (0.0, {0.6})])
def test_apfls_alpha_stays_between_0_and_1(make, quadratics, alpha_lr, end):
    _, states = quadratics.federate(make("apfl", alpha=0.6, alpha_lr=alpha_lr), rounds=3, steps=3)
    assert {s["alpha"] for s in states} <= end
    assert all(0.0 <= s["alpha"] <= 1.0 for s in states)
