"""Export as a MONAI bundle: a trained network with everything that is needed to use it without pppml.

``readings``: files in MONAI's config form; ``network``: the network in that form, or as TorchScript; ``targets``: what a config
may name; ``inference``: the configs;
``documents``: metadata and texts; ``export``: all of it in a folder. Contract: docs/export.md; MONAI's specification:
https://docs.monai.io/en/stable/mb_specification.html.
"""
