"""Which sub-layer joins which convolution."""
