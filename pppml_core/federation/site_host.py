"""What the sites of one process share: the parts of a job, built once, and the models that are held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from pppml_core.config import resolve
from pppml_core.errors import InconsistentModel
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.evaluation import evaluation_fields
from pppml_core.federation.policy import Policy, load_policy, refuse_unheld
from pppml_core.federation.site import Site
from pppml_core.federation.terms import ROUND_FIELDS
from pppml_core.federation.vetting import suspicious
from pppml_core.interfaces.engine import Job
from pppml_core.learning.arrays import to_numpy
from pppml_core.registry import Registry
from pppml_core.wire.codec import sha256_of
from pppml_core.wire.manifest import Manifest
from pppml_core.wire.messages import Body


class SiteHost:
    """Builds a job's parts once and brings its sites to life in this process; all sites of a process share one network."""

    def __init__(self, job: Job) -> None:
        self.job = job
        assembly = job.parts
        if assembly is None:
            registry = Registry.discover()
            assembly = Assembly.build(resolve(job.config, registry=registry), registry, job.objects)
        self.assembly: Assembly = assembly
        self.clock: dict[str, float] = {}
        #: the newest models by hash, shared by the sites of this process.
        self.models: dict[bytes, Mapping[str, npt.NDArray[Any]]] = {}
        self._suspicions: dict[bytes, list[str]] = {}
        self.privacy = self.assembly.mechanism.plan(self.assembly.privacy_setting(job.sizes))
        shared = self.assembly.config.run.metrics
        self.manifest = Manifest((*ROUND_FIELDS, *evaluation_fields(self.assembly.spec, job.sites, shared)))

    def site(self, name: str, policy: Policy | None = None) -> Site:
        """The site of that name, with the policy of its home unless another is given. Raises ConfigError where its home is not in order."""
        if policy is None:
            # A home under the run's folder is that of a simulated site, whose secrets are in the hands of whoever started the run anyway.
            policy = load_policy(self.job.home(name), otherwise=Policy(record_secrets=self.job.homes is None))
            refuse_unheld(policy, self.job.home(name))
        return Site(name, self, policy)

    def take_model(self, body: Body, site: str) -> Mapping[str, npt.NDArray[Any]] | None:
        """The weights that a message to ``site`` speaks of: sent along, or already here; None: neither.

        Their hash, names, shapes and dtypes are checked: raises InconsistentModel.
        """
        sha256 = body["sha256"]
        # Whoever shares this process may have taken in this very model, checked against this very hash.
        if "weights" in body and sha256 not in self.models:
            weights = body["weights"]
            if sha256_of(weights) != sha256:
                raise InconsistentModel("the model does not have the announced hash", place=site)
            expected = to_numpy(self.assembly.initial_weights)
            if {n: (a.shape, a.dtype) for n, a in weights.items()} != {n: (a.shape, a.dtype) for n, a in expected.items()}:
                raise InconsistentModel("the model has other tensors than this site's configuration", place=site)
            self.keep_model(sha256, weights)
        return self.models.get(sha256)

    def keep_model(self, sha256: bytes, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Hold a model; only the newest two are needed."""
        self.models.setdefault(sha256, weights)
        for old in list(self.models)[:-2]:
            del self.models[old]
            self._suspicions.pop(old, None)

    def suspicions(self, sha256: bytes) -> list[str]:
        """What does not look like a trained network in a model that is held; looked at once for all sites of this process."""
        if sha256 not in self._suspicions:
            self._suspicions[sha256] = suspicious(self.models[sha256], to_numpy(self.assembly.initial_weights))
        return self._suspicions[sha256]
