"""Training of the embedded teacher `var-fashion`; entry point: benchmarks/train_var_fashion.py."""
