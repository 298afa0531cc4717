"""Gradient matching attacks for pppml: dlg, idlg-published, idlg and inverting-gradients; see README.md."""
