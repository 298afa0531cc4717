"""Read-out attacks on linear layers for pppml: images from gradients and from secure sums, without optimization; see README.md."""
