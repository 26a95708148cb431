"""What is wrong with a data set: everything at once, where training stops at the first error.

The parsers (`y7edge.data.formats`) note problems, images are decoded once (`decoding`), and checks
(`registry`) find what looks wrong beyond that. `fix` writes a cleaned copy.
"""
