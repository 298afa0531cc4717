"""Settings of ``per-fedavg``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pppml_core.builtin.configs import FedAvgConfig

Order = Literal["first", "hessian-free", "exact"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PerFedAvgConfig(FedAvgConfig):
    """`per-fedavg`: Algorithm 1 of Fallah, Mokhtari and Ozdaglar (NeurIPS 2020, arXiv:2002.07948).

    The mean of the sites' losses f_i is not minimized itself (eq. 1 there), but after one gradient step with the inner rate alpha (eq. 3)::

        F(w) = 1/n sum_i F_i(w),   F_i(w) = f_i(w - alpha grad f_i(w))
        grad F_i(w) = (I - alpha H_i(w)) grad f_i(w - alpha grad f_i(w))

    A local step takes three batches D, D', D'' and the outer rate beta; g and H are gradient and Hessian of a batch's mean loss::

        w <- w - beta (I - alpha H(w, D'')) g(w - alpha g(w, D), D')

    `order: first` leaves the Hessian out (FO). `hessian-free` (HF) replaces its product with v = g(w - alpha g(w, D), D') by
    [g(w + delta v, D'') - g(w - delta v, D'')] / (2 delta). `exact` computes it by automatic differentiation. On smooth losses the error
    of HF vanishes with delta; that of FO, alpha H v, only with alpha.

    **Rates in theory.** Let every f_i be L-smooth, with gradients bounded by B and rho-Lipschitz Hessians. The analysis takes
    alpha in (0, 1/L]. Then F is smooth with L_F = 4 L + alpha rho B, and tau local steps a round are covered for
    beta <= 1/(10 tau L_F), so never more than 1/(40 tau L): the outer rate must fall as the local steps grow. L is not known of a network,
    so nothing of this is checked.

    **Departures.** In the paper the outer step is plain gradient descent, all sites count the same, and batches are drawn
    independently. Here the outer step is `training.optimizer` (momentum, Adam, weight decay and a schedule are possible), sites weigh by
    their training examples unless `weight_cap: 1` or a privacy mechanism gives all the same weight, the server may have an optimizer, and
    the batches of one step have no example in common. The plan names those that apply.
    """

    inner_lr: float = Field(0.01, ge=0, allow_inf_nan=False, description="alpha, the rate of the step each site is to take; 0 is FedAvg")
    outer_lr: Positive | None = Field(None, description="beta, the rate of local training; default: training.optimizer.lr")
    order: Order = Field("first", description="first: no Hessian; hessian-free: its product by differences of gradients; exact")
    hessian_step: Literal["auto"] | Positive = Field("auto", description="delta of hessian-free; auto: from the sizes of w and v")
    batch_norm: Literal["shared", "local", "frozen"] = Field(
        "shared", description="running statistics: averaged like weights, kept at each site, or fixed at what training began with"
    )
    adapt_steps: int = Field(1, ge=0, description="gradient steps from the shared weights to a site's own model")
    adapt_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(None, description="rate of these steps; default: inner_lr")
