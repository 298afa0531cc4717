"""TensorBoard reporter of pppml."""
