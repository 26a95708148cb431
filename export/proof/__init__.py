"""The proof that an artifact computes what its checkpoint computes."""
