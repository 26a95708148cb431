"""Prove that an artifact computes the same outputs as its checkpoint."""
