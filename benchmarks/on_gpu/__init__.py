"""The parts of benchmarks/gpu.py: each module has STEPS, which yield figures one after the other."""
