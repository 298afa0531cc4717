"""The round, on both sides: plan, pipeline, round, run, site, ledger, policy, checkpoint, run directory."""
