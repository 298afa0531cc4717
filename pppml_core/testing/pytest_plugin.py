"""Loaded by every pytest run in an environment with pppml: has the suites' assertions explained in full, and imports nothing else."""

import pytest

pytest.register_assert_rewrite(
    "pppml_core.testing.aggregator_suite",
    "pppml_core.testing.he_suite",
    "pppml_core.testing.hostile_peers",
    "pppml_core.testing.knowledge",
    "pppml_core.testing.knowledge_suite",
    "pppml_core.testing.personalization_suite",
    "pppml_core.testing.plugin_suite",
    "pppml_core.testing.privacy_claims",
    "pppml_core.testing.privacy_clip",
    "pppml_core.testing.privacy_noise",
    "pppml_core.testing.privacy_runs",
    "pppml_core.testing.privacy_sampling",
    "pppml_core.testing.privacy_suite",
    "pppml_core.testing.rule_adapting",
    "pppml_core.testing.rule_needs",
    "pppml_core.testing.rule_wire",
    "pppml_core.testing.suite",
    "pppml_core.testing.sum_suite",
    "pppml_core.testing.task_suite",
)
