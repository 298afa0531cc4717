"""Run files in, one self-contained HTML page out. Light to import: figures and templates load when a page is written."""

from pppml_core.report.page import write_report

__all__ = ["write_report"]
