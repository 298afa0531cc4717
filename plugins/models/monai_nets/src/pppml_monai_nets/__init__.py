"""Networks for pppml, mostly MONAI's."""
