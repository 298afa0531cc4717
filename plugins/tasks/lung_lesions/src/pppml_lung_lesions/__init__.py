"""Lung lesions in chest CT slices: a segmentation task for pppml."""
