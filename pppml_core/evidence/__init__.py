"""Evidence: attacks on finished runs and audits of what they claim."""
