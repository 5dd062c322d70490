"""Faults at random moments into real runs, and a judge that owes nothing to the product.

`python -m tests.chaos --rounds 40 --seed 1` for many; a short round of each kind is in the suite.
"""
