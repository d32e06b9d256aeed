"""Numerical helpers of the rules: linear algebra in n, selection by order, quadratic programmes.

Nothing here knows of a rule, of the Gram matrix as an object, or of a kernel. Rules, mixings, kernels and
the modules of `varangian.aggregators` itself may import it; it imports nothing of the package but what it
computes with.
"""
